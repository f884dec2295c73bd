//! Objects of a fleet, as returned by any daemon of it. The keys are a stable API for scripts.
//! Out of scope: reading them from etcd; HTTP; text output.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::condition::Status;
use super::super::host_group::HostGroupSpec;
use super::super::meta::{Name, Timestamp, Uid};
use super::super::placement::{Labels, Placement, Replacement};
use super::super::vm::Hypervisor;
use super::MetaView;

/// A list of objects of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetList<T> {
    /// Ordered by name (VMs by group, then index).
    pub items: Vec<T>,
    /// The values in etcd that cannot be read. While there is one, the scheduler changes nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Unreadable>,
}

/// A value in etcd that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unreadable {
    /// The key.
    pub key: String,
    /// Why it cannot be read, a sentence.
    pub error: String,
}

impl Unreadable {
    /// Whether it is a VM, by its key: which one, of which group and on which node, is not known.
    pub fn is_vm(&self) -> bool {
        self.kind() == Some("vms")
    }

    /// Whether it is a group, by its key.
    pub fn is_group(&self) -> bool {
        self.kind() == Some("groups")
    }

    /// Whether a node has written it, by its key: it concerns that node alone.
    pub fn is_of_node(&self) -> bool {
        matches!(self.kind(), Some("nodestatus" | "status" | "alive"))
    }

    /// Of `/slice/v1/KIND/…`.
    fn kind(&self) -> Option<&str> {
        self.key.split('/').nth(3)
    }
}

/// `KEY cannot be read: WHY`.
impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be read: {}", self.key, self.error)
    }
}

/// A group of a fleet with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetGroup {
    /// The identity of the group.
    pub metadata: MetaView,
    /// The desired state.
    pub spec: HostGroupSpec,
    /// Where its VMs may run.
    pub placement: Placement,
    /// Whether its VMs are replaced when contact to their node is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<Replacement>,
    /// The state of its VMs.
    pub status: FleetGroupStatus,
}

/// The state of the VMs of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetGroupStatus {
    /// The VMs that exist.
    pub vms: usize,
    /// Those that are Ready on a node with contact.
    pub ready: usize,
    /// Those of which the node has the current generation.
    pub up_to_date: usize,
    /// Those without a node.
    pub pending: usize,
}

impl FleetGroup {
    /// Whether the group has as many VMs as specified, all are Ready, and all have the current generation.
    pub fn is_ready(&self) -> bool {
        let count = self.spec.count as usize;
        let FleetGroupStatus {
            vms,
            ready,
            up_to_date,
            ..
        } = self.status;
        !self.metadata.deleting && [vms, ready, up_to_date] == [count; 3]
    }
}

/// A VM of a fleet with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetVm {
    /// The identity of the VM.
    pub metadata: MetaView,
    /// 1 to the `count` of its group.
    pub index: u32,
    /// The generation of the group whose spec it has.
    pub group_generation: u64,
    /// The node that runs it; `None`: pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Incremented by each binding and each release.
    pub epoch: u64,
    /// Its state.
    pub state: FleetVmState,
    /// Its address, as reported by the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// Why it is pending or not Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The node that it is being moved from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_from: Option<Name>,
    /// Nodes that may still have a copy, without contact.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<Name>,
    /// Nodes that have refused it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<FleetRefusal>,
}

/// A node that has refused a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetRefusal {
    /// The node.
    pub node: Name,
    /// The reason, a sentence.
    pub reason: String,
    /// When it may be offered again.
    pub until: Timestamp,
}

/// The state of a VM of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub enum FleetVmState {
    /// It has no node.
    Pending,
    /// It has a node, which has not reported it yet.
    Scheduled,
    /// Its previous node deletes its copy first.
    Moving,
    /// The node has it, and it is not Ready.
    NotReady,
    /// It is Ready.
    Ready,
    /// The node has stopped it, because contact was lost for `stop_after`.
    Stopped,
    /// The node cannot run it; it gets another one.
    Refused,
    /// The node has deleted it, on request of its user; it is created again.
    Deleted,
    /// It is being deleted.
    Deleting,
    /// Its node has no contact: whether it runs is not known.
    Unknown,
}

impl fmt::Display for FleetVmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        f.pad(&name)
    }
}

/// Amounts of what VMs use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeResources {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory in bytes.
    pub ram_bytes: u64,
    /// Disk space for copies of images, in bytes.
    pub disk_bytes: u64,
    /// VMs in isolated mode.
    pub isolated: u64,
    /// VMs in bridge mode.
    pub bridge_ports: u64,
}

/// A node of a fleet with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetNode {
    /// The name.
    pub name: Name,
    /// Its states, in the order of [`FleetNodeState`].
    pub states: Vec<FleetNodeState>,
    /// Of a drain: persistent disks are deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_local: bool,
    /// When an administrator has confirmed that it is fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// The labels of its configuration and those that administrators have added.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The number of VMs that use it, also while they are moved away or deleted.
    pub vms: usize,
    /// What these VMs use.
    pub used: NodeResources,
    /// What it reports; `None`: it has never registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<FleetNodeStatus>,
}

/// What a node reports of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetNodeStatus {
    /// `uname -m`.
    pub architecture: String,
    /// The VMMs that it can start.
    pub hypervisors: Vec<Hypervisor>,
    /// What the node has.
    pub capacity: NodeResources,
    /// What VMs of the fleet may use of it.
    pub allocatable: NodeResources,
    /// The version of its daemon.
    pub version: String,
    /// The URL of its API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// The id of the boot in which it has reported.
    pub boot_id: String,
}

/// A state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub enum FleetNodeState {
    /// It renews its lease.
    Ready,
    /// It does not renew its lease.
    Unknown,
    /// No VM is bound to it (cordon).
    SchedulingDisabled,
    /// Its VMs are moved to other nodes.
    Draining,
    /// An administrator has confirmed that it is fenced.
    Gone,
}

impl fmt::Display for FleetNodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        f.pad(&name)
    }
}

/// A VM that uses a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeVm {
    /// The VM.
    pub name: Name,
    /// Why it stays although the node is drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<String>,
}

/// The subnet of a group in bridge mode on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetSubnet {
    /// The group.
    pub group: Name,
    /// The node.
    pub node: Name,
    /// The subnet.
    #[schema(value_type = String)]
    pub subnet: Ipv4Network,
    /// The address of the node, as its API has it; `None`: the URL of its API has none. A node may report any text: only an address is
    /// passed on, since it becomes a part of commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub via: Option<Ipv4Addr>,
}

/// The connection of a daemon to its fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetStatus {
    /// The name of this node.
    pub node: Name,
    /// The members of the etcd cluster, as configured.
    pub endpoints: Vec<String>,
    /// The condition `FleetContact`.
    pub contact: FleetContact,
    /// The id of the cluster of the fleet, in hexadecimal; `None` before the first contact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The id of the cluster that an administrator has to accept, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaccepted_cluster_id: Option<String>,
    /// The revision of the objects that this node has last read; 0: none yet.
    pub revision: u64,
    /// The node whose daemon schedules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Why etcd cannot be read now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last error of the connection, which may have been repaired since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The scheduler of this node.
    #[serde(default)]
    pub scheduler: FleetScheduler,
    /// The VMs for which this node does nothing although something differs, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchanged: Vec<FleetUnchanged>,
}

/// A VM for which a node does nothing although something differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetUnchanged {
    /// The uid of its object.
    #[schema(value_type = String)]
    pub uid: Uid,
    /// The reason, one CamelCase word.
    pub reason: String,
    /// The reason, a sentence about the VM.
    pub message: String,
}

/// The scheduler of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetScheduler {
    /// This node leads, and has confirmed that recently.
    #[serde(default)]
    pub is_leader: bool,
    /// When it has made the last plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_at: Option<Timestamp>,
    /// Why the leader plans nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_planned: Option<String>,
    /// Which nodes the leader leaves out, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Why the election or the last transaction has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The condition `FleetContact`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetContact {
    /// True while the node acts on the objects of the fleet.
    pub status: Status,
    /// The reason, one CamelCase word.
    pub reason: String,
    /// The message for users.
    pub message: String,
}

/// The body of a request to accept another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetAccept {
    /// The request is refused if the cluster has another id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
}

/// The body of a request that changes what administrators specify of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum NodeAction {
    /// No VM is bound to it from now on.
    Cordon,
    /// Ends a cordon, a drain, and the statement that the node is gone.
    Uncordon,
    /// No VM is bound to it, and its VMs are moved to other nodes.
    Drain {
        /// VMs with persistent disks are deleted with their disks; otherwise they stay.
        #[serde(default)]
        delete_local: bool,
    },
    /// An administrator confirms that nothing runs on it that the fleet has started.
    Gone {
        /// Also if it renews its lease.
        #[serde(default)]
        force: bool,
    },
    /// What is stored of it is removed. It has no VMs, and does not renew its lease.
    Remove,
}
