//! The objects of a fleet, as they are stored in etcd: JSON with the version of the format.
//! Out of scope: their keys ([`super::keys`]).
//!
//! # Versions
//! A daemon reads its own version and the one before, so that the daemons of a fleet can be upgraded one after the other. A new field
//! has a default; a value of a later version is an error, not an absent object.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::host_group::HostGroupSpec;
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::secret::SecretName;
use crate::api::vm::Hypervisor;

pub use crate::api::placement::{Labels, Placement, Reconcile, Replacement, Strategy, Subnets};

#[cfg(test)]
mod tests;

/// The version of the format that this daemon writes.
pub const VERSION: u32 = 1;

/// A group of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Name, uid, generation. The generation is incremented by each change of the spec, the placement or the replacement. `deleting`:
    /// all its VMs are deleted, then the scheduler removes it.
    pub meta: Meta,
    /// The generation at which the template of the spec has changed last: VMs of an earlier one are updated. Another number of VMs, or
    /// another placement, updates none.
    #[serde(default)]
    pub template_generation: u64,
    /// As on one host: VMs `<name>-1` to `<name>-<count>`, on any nodes.
    pub spec: HostGroupSpec,
    /// Where its VMs may run.
    pub placement: Placement,
    /// Whether its VMs are replaced when contact to their node is lost; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<Replacement>,
}

/// The subnet of a group in bridge mode on one node. It stays until the group is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSubnet {
    /// The subnet.
    pub subnet: Ipv4Network,
    /// The address of the node in it: the first.
    pub gateway: std::net::Ipv4Addr,
}

/// A VM of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Name (`<group>-<index>`), uid, generation. `deleting`: all nodes that the object names delete their copies and report
    /// [`Phase::Deleted`], then the scheduler removes the object, then the nodes remove their status.
    pub meta: Meta,
    /// The name of its group.
    pub group: Name,
    /// The uid of its group.
    pub group_uid: Uid,
    /// 1 to the `count` of its group.
    pub index: u32,
    /// The template generation of its group when it got its template: a rolling update raises it VM by VM.
    pub group_generation: u64,
    /// The node that runs it; `None`: pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// Incremented by each binding and each release; 0: it was never bound. A node deletes a copy with a smaller epoch, unless the
    /// binding names this node.
    #[serde(default)]
    pub epoch: u64,
    /// Copies that other nodes may have: of bindings that were replaced without a confirmation of their node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<PreviousCopy>,
    /// Nodes that refused it, which are excluded until the backoff ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// Why it is pending, a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<String>,
}

/// A copy of a VM that may exist.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'v> {
    /// Its node.
    pub node: &'v Name,
    /// The epoch of the binding to it.
    pub epoch: u64,
    /// What it uses of the node.
    pub resources: &'v Resources,
}

impl Vm {
    /// The copies that the object names: that of the binding, that of the node it is moved from, those that were replaced.
    pub fn copies(&self) -> impl Iterator<Item = Copy<'_>> {
        let binding = self.binding.iter();
        let moving = binding.clone().filter_map(|it| it.moving_from.as_ref());
        let copy = |node, epoch, resources| Copy {
            node,
            epoch,
            resources,
        };
        binding
            .map(move |it| copy(&it.node, it.epoch, &it.resources))
            .chain(moving.map(move |it| copy(&it.node, it.epoch, &it.resources)))
            .chain(
                self.previous
                    .iter()
                    .map(move |it| copy(&it.node, it.epoch, &it.resources)),
            )
    }
}

/// The node of a VM. It is an offer: the node may refuse it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The node.
    pub node: Name,
    /// Incremented by each binding of the VM, also by one to the same node.
    pub epoch: u64,
    /// The generation of the group when it was bound. A node that has not reported the VM obeys this one or a later one.
    #[serde(default)]
    pub group_generation: u64,
    /// What it uses of the node: the request of the group when it was bound or last updated.
    #[serde(default)]
    pub resources: Resources,
    /// The VM is being moved from this node, which deletes its copy first. The node of the binding does not start it while this is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_from: Option<MovingFrom>,
}

/// The previous node of a VM that is being moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingFrom {
    /// The node.
    pub node: Name,
    /// The epoch of the binding to it.
    pub epoch: u64,
    /// What the copy uses of that node.
    #[serde(default)]
    pub resources: Resources,
    /// The persistent disk is deleted too (a drain with `delete_local`); otherwise it is kept, as always.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_disk: bool,
}

/// A copy of a VM that was replaced while its node was without contact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousCopy {
    /// The node.
    pub node: Name,
    /// The epoch of the binding to it.
    pub epoch: u64,
    /// What the copy uses of that node.
    #[serde(default)]
    pub resources: Resources,
    /// The node keeps the copy, stopped, until the VM is bound to it again ([`Reconcile::KeepOriginal`]); otherwise it deletes the copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
}

/// A node that has refused a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The node.
    pub node: Name,
    /// The reason, a sentence.
    pub reason: String,
    /// The number of refusals by this node, for the backoff.
    pub times: u32,
    /// The template generation of the group that was refused. The backoff ends when the group has another one.
    #[serde(default)]
    pub group_generation: u64,
    /// What VMs could use of the node. The backoff ends when this changes.
    #[serde(default)]
    pub allocatable: Resources,
    /// When it may be offered again.
    pub until: Timestamp,
}

/// What administrators specify of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Labels, in addition to those of its configuration; on conflict these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// No VM is bound to it (cordon).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// Its VMs are moved to other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// An administrator has confirmed that the node is fenced: nothing runs on it that this fleet has started before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Gone>,
}

/// A drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// VMs with persistent disks are deleted with their disks; otherwise they stay and are reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_local: bool,
}

/// The statement that a node is fenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// When it was made.
    pub at: Timestamp,
    /// The boot id of the status of the node at that time; `None`: it had no status. A node that has started again since is not fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// What a node reports of itself. Written on change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The labels of its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// `uname -m`.
    pub architecture: String,
    /// The VMMs that it can start.
    pub hypervisors: Vec<Hypervisor>,
    /// The files that groups of the fleet name, as far as it has looked for them, and whether its VMs can use them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, bool>,
    /// The names of its secrets. Their values are not in etcd.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<SecretName>,
    /// A guard runs, which VMs that may be replaced need.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_guard: bool,
    /// The CNI networks that are configured, with all of their plugins.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<String>,
    /// It has `slice-agent` for `agent: inject`.
    #[serde(default)]
    pub has_agent: bool,
    /// What the node has.
    pub capacity: Resources,
    /// What VMs of the fleet may use of it: capacity without the reserves and without the VMs that are not of the fleet.
    pub allocatable: Resources,
    /// The version of its daemon. `version` is that of the format.
    #[serde(rename = "daemon_version")]
    pub version: String,
    /// The newest version of objects that it reads.
    pub format: u32,
    /// `https://` URL of the API of the node; `None`: it has no listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// Amounts of what VMs use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory in bytes.
    pub ram_bytes: u64,
    /// Disk space for copies of images, in bytes.
    pub disk_bytes: u64,
    /// VMs in isolated mode: /30 networks.
    pub isolated: u64,
    /// VMs in bridge mode: ports.
    pub bridge_ports: u64,
}

/// What a node reports of a VM. Written on change. The node removes it when the object of the VM does not exist or no longer names the
/// node, and the node has no copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// The epoch of the binding that this is about.
    pub epoch: u64,
    /// The state.
    pub phase: Phase,
    /// The template generation of its group when the VM got its template.
    pub group_generation: u64,
    /// The address of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::Ipv4Addr>,
    /// How long after the last confirmed renewal the node has stopped its copy at the latest: `stop_after` and the grace period of the
    /// spec that the VM has. `None`: the node does not stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_within: Option<Duration>,
    /// The reason of a state that is not Ready, a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The state of a VM on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Phase {
    /// The node does not run it and has no copy of it: its own admission failed. Final for this epoch.
    Refused,
    /// It is stored and not Ready.
    NotReady,
    /// It is Ready.
    Ready,
    /// The node has stopped it, because contact was lost for `stop_after`.
    Stopped,
    /// The node has no copy of this epoch or a smaller one, and starts none. Final for these epochs.
    Deleted,
}

/// A value as it is stored.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}

/// The error of a value that cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is of a later version.
    #[error(
        "format {found} is newer than {VERSION}, the newest that this daemon reads: upgrade it"
    )]
    TooNew {
        /// The version of the value.
        found: u32,
    },
    /// It is not an object of this kind.
    #[error("invalid value: {0}")]
    Invalid(Arc<serde_json::Error>),
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        Self::Invalid(Arc::new(error))
    }
}

/// The value as it is stored.
///
/// # Errors
/// It cannot be expressed in JSON.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Versioned {
        version: VERSION,
        value,
    })
}

/// The value that was stored.
///
/// # Errors
/// [`DecodeError`]
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes)?;
    if version > VERSION {
        return Err(DecodeError::TooNew { found: version });
    }
    let Versioned { value, .. } = serde_json::from_slice(bytes)?;
    Ok(value)
}
