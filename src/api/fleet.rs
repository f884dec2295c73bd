//! What the local store has of a fleet of several hosts: the facts of VMs that were bound to this node, refusals, the etcd cluster.
//! Out of scope: the objects in etcd.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::meta::{Name, Uid};

/// What a VM of a fleet stores in addition to its spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetVm {
    /// The uid of its object in the fleet. The local VM has another one, so that it can be replaced on this node.
    pub uid: Uid,
    /// The name of this node when it was bound. With another name, this node would renew another key than the scheduler looks at.
    pub node: Name,
    /// The uid of its group in the fleet.
    pub group_uid: Uid,
    /// The epoch of its binding to this node.
    pub epoch: u64,
    /// The generation of the group of the fleet whose template it has.
    pub group_generation: u64,
    /// When it is stopped without contact to etcd; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopTimes>,
    /// It was stopped since contact was lost, or since another node has it. Only the agent of the fleet starts it again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

/// How long after the boot of a host its VMs of a fleet that are never replaced wait for contact; then they are started without it. A host that
/// was declared gone and is powered on again has VMs that run elsewhere by now.
pub const HOLD_AFTER_BOOT: Duration = Duration::from_secs(90);

/// When a VM that may be replaced is stopped, counted from the sending of the last confirmed renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopTimes {
    /// When the daemon begins to stop it: `stop_after` of its group.
    pub after: Duration,
    /// When the guard stops it, if it still runs: after its grace period in addition. This is reported to the scheduler.
    pub within: Duration,
}

/// A VM that this node has refused.
///
/// # Why
/// The scheduler binds a VM to another node when it reads the refusal. Resources that become free after it was decided must not be used, although
/// the status that was sent is not listed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRefusal {
    /// The epoch of the binding.
    pub epoch: u64,
    /// Why, a sentence.
    pub reason: String,
}

/// The etcd cluster of the fleet, as it was seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The cluster of the fleet.
    pub cluster_id: u64,
    /// The greatest revision that was seen.
    pub revision: u64,
    /// A response of another cluster, or of an earlier revision, that no administrator has accepted. It is stored since a restored cluster
    /// reaches the revision again after some time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaccepted: Option<Header>,
}

/// The header of a response of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The id of the cluster.
    pub cluster_id: u64,
    /// The revision of the store when the request was processed.
    pub revision: u64,
}
