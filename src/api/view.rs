//! What we answer: the objects with their status folded in. The keys are a contract, scripts rely on them.
//! Out of scope: folding them together; reading them off the wire.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::condition::{Reason, Status};
use super::host_group::{HostGroupSpec, Origin};
use super::meta::{Name, Timestamp, Uid};
use super::network::{Block, Mac, Mode};
use super::on_demand::Ask;
use super::policy::{Entry, OnDeny, Verdict};
use super::vm::{Hypervisor, Power, VmSpec};

mod answer;

pub use answer::*;

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Object {
    /// A group.
    HostGroup(Box<GroupView>),
    /// A VM.
    Vm(Box<VmView>),
    /// A lease.
    Lease(LeaseView),
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

/// Several of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List {
    /// Ordered by name (VMs by group, then index).
    pub items: Vec<Object>,
    /// How many more there are than an answer has room for.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: usize,
}

/// `metadata` of every kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetaView {
    /// Name.
    pub name: Name,
    /// Uid; a lease has its VM's name for identity and no uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// Edition of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The group it belongs to; none for a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// Being removed.
    #[serde(default)]
    pub deleting: bool,
    /// What still holds it: a fold of the held rungs.
    #[serde(default)]
    pub finalizers: Vec<String>,
}

/// One condition with its type: `Lease`, `Net`, `Firewall`, `Vmm` or `Ready`; `Writable` while no change can be stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConditionView {
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: Status,
    /// One word.
    pub reason: Reason,
    /// A sentence.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
    /// Of which generation.
    pub observed_generation: u64,
}

/// A VM as answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmView {
    /// Who it is.
    pub metadata: MetaView,
    /// What is wanted.
    pub spec: VmSpec,
    /// What a person has said it is to do since.
    #[serde(default, skip_serializing_if = "Power::is_default")]
    pub power: Power,
    /// What was asked of one made on demand; none: its group counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<Ask>,
    /// What is.
    pub status: VmStatus,
}

/// What is known of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Every rung is Ready at this generation.
    pub ready: bool,
    /// One a rung, then `Ready`.
    pub conditions: Vec<ConditionView>,
    /// Its network; none before it has a lease, or in CNI mode before the plugins have answered.
    pub network: Option<NetworkStatus>,
    /// Its policy.
    pub firewall: FirewallStatus,
    /// Its process.
    pub vmm: VmmStatus,
    /// Its own disk, made from its image; none: it is to have none, or it is not made yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<PathBuf>,
    /// Entries that never match and the like.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `status.network`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Data path.
    pub mode: Mode,
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Additional addresses, with their prefix lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Ipv4Network>,
    /// Its gateway; a CNI network may have none.
    pub gateway: Option<Ipv4Addr>,
    /// Additional routes, in the order in which they can be added: `NETWORK` for an on-link route, or `NETWORK via NEXT HOP`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// The guest's MAC.
    pub mac: Mac,
    /// Its name servers.
    pub dns: Vec<Ipv4Addr>,
    /// `nsenter --net=` and `ip netns exec $(basename …)` take it.
    pub netns: Option<PathBuf>,
    /// The TAP, in that namespace, or in the host's when there is none.
    pub tap: String,
    /// The link of the host namespace that the VM's packets pass: a veth end, or the bridge.
    pub host_link: Option<String>,
    /// Bytes.
    pub mtu: u32,
}

/// `status.firewall`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirewallStatus {
    /// What matches neither list.
    pub default: DefaultVerdict,
    /// As written.
    pub allow: Vec<Entry>,
    /// As written.
    pub drop: Vec<Entry>,
    /// What a denied packet gets.
    pub on_deny: OnDeny,
    /// Names the rule set that was last read back from the kernel; none before that.
    pub digest: Option<String>,
}

/// `allow` or `drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultVerdict {
    /// The rest passes.
    Allow,
    /// The rest is denied.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmmStatus {
    /// Who runs it.
    pub hypervisor: Hypervisor,
    /// The process.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: VmmState,
    /// The user, and the group of the same number, that the process runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// What confines the process: `jailer 1.17`, or `sliced`; with why it is not the jailer, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confined_by: Option<String>,
    /// When the process was started.
    pub started_at: Option<Timestamp>,
    /// How often it was started again because it had ended of itself.
    #[serde(default)]
    pub restarts: u32,
    /// How the last process that ended did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitView>,
    /// Its control socket (QEMU: QMP; the others: their own HTTP).
    pub api_socket: Option<PathBuf>,
    /// The guest's serial output and the VMM's own.
    pub log: Option<PathBuf>,
}

/// How a VMM process ended. Neither status nor signal: nobody was there to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitView {
    /// Which.
    pub pid: u32,
    /// When that was seen.
    pub at: Timestamp,
    /// Its exit status.
    pub status: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// What that means.
    pub reason: String,
    /// The last lines of its log.
    pub said: Vec<String>,
}

/// What a VMM process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmState {
    /// Not Ready yet.
    Starting,
    /// Alive.
    Running,
    /// Alive, and its guest is held.
    Paused,
    /// Asked to power down, or on its way out.
    Stopping,
    /// Down, and is to be.
    Stopped,
    /// Down, and is not to be, or ended badly and is left so by its restart policy.
    Failed,
    /// `hypervisor: none`.
    None,
}

/// A group as answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupView {
    /// Who it is.
    pub metadata: MetaView,
    /// Who may change it.
    pub origin: Origin,
    /// What is wanted.
    pub spec: HostGroupSpec,
    /// What is.
    pub status: GroupStatus,
}

/// What is known of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// All VMs are there and Ready at their newest generation.
    pub ready: bool,
    /// `Ready`.
    pub conditions: Vec<ConditionView>,
    /// VMs wanted: those that are counted, and those made on demand.
    pub desired: u32,
    /// How many of them are made on demand.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub on_demand: u32,
    /// VMs there, those being removed included.
    pub current: u32,
    /// VMs with the newest spec.
    pub updated: u32,
    /// VMs Ready.
    pub ready_count: u32,
    /// Where its addresses come from; none before one was chosen.
    pub range: Option<Ipv4Network>,
    /// Entries that never match and the like.
    #[serde(default)]
    pub warnings: Vec<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A lease as answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Its name is the VM's.
    pub metadata: MetaView,
    /// The /30; none on a bridge.
    pub block: Option<Block>,
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// Where it was taken from.
    pub range: Ipv4Network,
}

/// What `apply` did, or would do, to one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    /// New.
    Created,
    /// Changed.
    Configured,
    /// As it was.
    Unchanged,
    /// Removed.
    Deleted,
}

/// `apply`'s answer for one group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplyResult {
    /// The group.
    pub name: Name,
    /// What was done.
    pub applied: Applied,
    /// Entries that never match and the like.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Actions that a change would take, by object (`vm/sandbox-1`, `ground`), in order.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct DiffResult {
    /// The groups and what would become of them.
    pub groups: Vec<ApplyResult>,
    /// Object to actions; an object without actions is left out.
    pub actions: BTreeMap<String, Vec<String>>,
    /// Object to why no more of its actions can be told, as when looking failed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stuck: BTreeMap<String, String>,
    /// How many more VMs would be created, changed or deleted, of which nothing is told: an answer has room for so many.
    #[serde(default, skip_serializing_if = "is_none")]
    pub more: usize,
}

/// `explain`'s answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The VM.
    pub vm: Name,
    /// What was asked, in canonical form.
    pub packet: String,
    /// What happens.
    pub verdict: Verdict,
    /// The deciding rule, as iptables would print it.
    pub rule: String,
    /// Where that rule stands: `namespace SLICE-POLICY`, `host raw SLICE-…`.
    pub place: String,
    /// The YAML entry it came from: `allow[0] "192.168.222.1:3128"`, or `default`, or why no entry can decide.
    pub entry: String,
}
