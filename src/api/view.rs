//! Objects with their status, as returned by the daemon. The keys are a stable API for scripts.
//! Out of scope: building the status; HTTP.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::condition::{Reason, Status};
use super::host_group::{HostGroupSpec, Origin};
use super::meta::{Name, Timestamp, Uid};
use super::network::{Block, Mac, Mode};
use super::on_demand::VmOverrides;
use super::policy::{Entry, OnDeny, Verdict};
use super::vm::{Hypervisor, Power, VmSpec};

mod answer;
mod difference;
mod fleet;
mod watch;

pub use answer::*;
pub use difference::*;
pub use fleet::*;
pub use watch::*;

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind")]
#[schema(as = ObjectView)]
pub enum Object {
    /// A group.
    HostGroup(Box<GroupView>),
    /// A VM.
    Vm(Box<VmView>),
    /// A lease.
    Lease(LeaseView),
}

/// [`Object`] by the name of its schema: the macro takes `Object` for any JSON object.
type ObjectView = Object;

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// A list of objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List {
    /// Ordered by name (VMs by group, then index).
    #[schema(value_type = Vec<ObjectView>)]
    pub items: Vec<Object>,
    /// The number of objects that were left out because of the size limit of a response.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: usize,
    /// The version from which a watch continues after this list. `None` from a daemon of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<ResourceVersion>,
}

/// `metadata` of an object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetaView {
    /// Name.
    pub name: Name,
    /// Uid; `None` for a lease, which its VM's name identifies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// Generation of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The group that the object belongs to; `None` for a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// When the object was created.
    pub created_at: Timestamp,
    /// Deletion was requested.
    #[serde(default)]
    pub deleting: bool,
    /// The finalizers that delay its removal: one for each acquired stage.
    #[serde(default)]
    pub finalizers: Vec<String>,
}

/// One condition with its type: `Lease`, `Net`, `Firewall`, `Vmm` or `Ready`; `Writable` while no change can be stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConditionView {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status.
    pub status: Status,
    /// The reason, one CamelCase word.
    pub reason: Reason,
    /// The message for users.
    pub message: String,
    /// When the status last changed.
    pub since: Timestamp,
    /// The generation that was observed.
    pub observed_generation: u64,
}

/// A VM with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// The identity of the VM.
    pub metadata: MetaView,
    /// The desired state.
    pub spec: VmSpec,
    /// The power state that the user requested.
    #[serde(default, skip_serializing_if = "Power::is_default")]
    pub power: Power,
    /// The settings of a VM made on demand; `None` for a VM that `count` of its group covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<VmOverrides>,
    /// The actual state.
    pub status: VmStatus,
}

/// The actual state of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmStatus {
    /// All stages are Ready for the current generation.
    pub ready: bool,
    /// The condition of each stage, then `Ready`.
    pub conditions: Vec<ConditionView>,
    /// Its network; `None` before the VM has a lease or, in CNI mode, before the plugins have returned a result.
    pub network: Option<NetworkStatus>,
    /// Its firewall policy.
    pub firewall: FirewallStatus,
    /// Its VMM process.
    pub vmm: VmmStatus,
    /// The root disk, created from its image; `None` if the VM has no image, or the disk does not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub disk: Option<PathBuf>,
    /// Warnings, such as entries that never match.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `status.network`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NetworkStatus {
    /// The data path.
    pub mode: Mode,
    /// The guest's address.
    #[schema(value_type = String)]
    pub ip: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Additional addresses, with their prefix lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<Ipv4Network>,
    /// Its gateway; a CNI network may have none.
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Addr>,
    /// Additional routes, in the order in which they can be added: `NETWORK` for an on-link route, or `NETWORK via NEXT HOP`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// The guest's MAC.
    pub mac: Mac,
    /// Its name servers.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<Ipv4Addr>,
    /// The path of the namespace, for `nsenter --net=` and `ip netns exec $(basename …)`.
    #[schema(value_type = Option<String>)]
    pub netns: Option<PathBuf>,
    /// The TAP in that namespace, or in the host's if there is none.
    pub tap: String,
    /// The link in the host namespace that forwards the VM's packets: a veth end, or the bridge.
    pub host_link: Option<String>,
    /// The MTU in bytes.
    pub mtu: u32,
}

/// `status.firewall`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FirewallStatus {
    /// The decision for packets that match neither list.
    pub default: DefaultVerdict,
    /// The entries of `allow`.
    pub allow: Vec<Entry>,
    /// The entries of `drop`.
    pub drop: Vec<Entry>,
    /// What happens to a denied packet.
    pub on_deny: OnDeny,
    /// The digest of the rule set that was last read from the kernel; `None` before the first observation.
    pub digest: Option<String>,
}

/// The default decision: `allow` or `drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DefaultVerdict {
    /// Other packets pass.
    Allow,
    /// Other packets are denied.
    Drop,
}

impl From<Verdict> for DefaultVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allow,
            Verdict::Deny => Self::Drop,
        }
    }
}

/// `status.vmm`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmmStatus {
    /// The VMM.
    pub hypervisor: Hypervisor,
    /// The pid of the process.
    pub pid: Option<u32>,
    /// The state of the process.
    pub state: VmmState,
    /// The uid of the process, which is also its gid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The program that confines the process: `jailer 1.17` or `sliced`; if a jailer exists but is not used, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confined_by: Option<String>,
    /// When the process was started.
    pub started_at: Option<Timestamp>,
    /// The number of restarts after the process exited by itself.
    #[serde(default)]
    pub restarts: u32,
    /// The last exit of a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitView>,
    /// The control socket (QEMU: QMP; others: HTTP).
    #[schema(value_type = Option<String>)]
    pub api_socket: Option<PathBuf>,
    /// The log file with the guest's serial output and the VMM's output.
    #[schema(value_type = Option<String>)]
    pub log: Option<PathBuf>,
}

/// The exit of a VMM process. It has neither a status nor a signal if the daemon did not observe it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExitView {
    /// The pid.
    pub pid: u32,
    /// When the exit was observed.
    pub at: Timestamp,
    /// The exit status.
    pub status: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The cause, for users.
    pub reason: String,
    /// The last lines of the log.
    #[serde(rename = "said")]
    pub last_output: Vec<String>,
}

/// The state of a VMM process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmmState {
    /// Started, not Ready yet.
    Starting,
    /// Running.
    Running,
    /// The guest is paused.
    Paused,
    /// Requested to power down, or being terminated.
    Stopping,
    /// Stopped as requested.
    Stopped,
    /// Not running although it should, or failed and not restarted because of its restart policy.
    Failed,
    /// `hypervisor: none`: the user starts the VMM.
    None,
}

/// A group with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// The identity of the group.
    pub metadata: MetaView,
    /// Where the group is defined.
    pub origin: Origin,
    /// The desired state.
    pub spec: HostGroupSpec,
    /// The actual state.
    pub status: GroupStatus,
}

/// The actual state of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    /// All VMs exist and are Ready for their current generation.
    pub ready: bool,
    /// The condition `Ready`.
    pub conditions: Vec<ConditionView>,
    /// The desired number of VMs: `count` and those made on demand.
    pub desired: u32,
    /// The number of VMs made on demand.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub on_demand: u32,
    /// The number of existing VMs, including those that are being removed.
    pub current: u32,
    /// The number of VMs with the current spec.
    pub updated: u32,
    /// The number of VMs that are Ready.
    pub ready_count: u32,
    /// The number of VMs that are stopped, by command or because of their restart policy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stopped: u32,
    /// The number of VMs that are paused by command.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paused: u32,
    /// The range of its addresses; `None` before one is chosen.
    #[schema(value_type = Option<String>)]
    pub range: Option<Ipv4Network>,
    /// Warnings, such as entries that never match.
    #[serde(default)]
    pub warnings: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A lease as returned by the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseView {
    /// The identity; its name is that of the VM.
    pub metadata: MetaView,
    /// The /30; `None` on a bridge.
    pub block: Option<Block>,
    /// The guest's address.
    #[schema(value_type = String)]
    pub ip: Ipv4Addr,
    /// The range that contains the address.
    #[schema(value_type = String)]
    pub range: Ipv4Network,
}

/// The result of `explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The VM.
    pub vm: Name,
    /// The packet, in canonical form.
    pub packet: String,
    /// The decision.
    pub verdict: Verdict,
    /// The deciding rule, as iptables would print it.
    pub rule: String,
    /// The chain of that rule: `namespace SLICE-POLICY`, `host raw SLICE-…`.
    #[serde(rename = "place")]
    pub chain: String,
    /// The YAML entry of that rule: `allow[0] "192.168.222.1:3128"`, or `default`, or the reason why no entry applies.
    pub entry: String,
    /// What the rules do not show: they are not in place yet, or the host has no route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
