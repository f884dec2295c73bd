//! What the scheduler sees: the objects in etcd at one revision, contact with the nodes, and the time.
//! Out of scope: reading them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::meta::{Name, Timestamp, Uid};
use crate::fleet::object::{Group, Node, NodeStatus, NodeSubnet, Vm, VmStatus};

/// A value with the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// `mod_revision`, at least 1.
    pub revision: u64,
    /// The value.
    pub value: T,
}

/// The input of [`super::plan`].
///
/// It is complete: all keys of these prefixes at one revision, which is not before the last transaction of this scheduler. While a value
/// cannot be decoded, nothing is planned: a VM that is left out would be created again, and its node would seem to have free capacity.
#[derive(Clone, Debug)]
pub struct View {
    /// The time, for backoffs and new objects.
    pub now: Timestamp,
    /// Groups by name.
    pub groups: BTreeMap<Name, Stored<Group>>,
    /// VMs by uid.
    pub vms: BTreeMap<Uid, Stored<Vm>>,
    /// Nodes by name: each that has an object, a status or a key in `alive/`.
    pub nodes: BTreeMap<Name, NodeView>,
    /// The reports on each VM, by node.
    pub statuses: BTreeMap<Uid, BTreeMap<Name, Stored<VmStatus>>>,
    /// The subnets of groups in bridge mode, by group and node.
    pub ranges: BTreeMap<Name, BTreeMap<Name, NodeSubnet>>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// What administrators specify; `None`: nothing.
    pub admin: Option<Stored<Node>>,
    /// What it reports; `None`: it has not registered.
    pub status: Option<Stored<NodeStatus>>,
    /// Whether it renews its lease.
    pub contact: Contact,
    /// How long it is still waited for: it has not looked yet for all files that groups name. `None`: not at all.
    pub looks: Option<Duration>,
}

/// Whether a node renews its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// `alive/<node>` exists.
    Alive,
    /// `alive/<node>` is absent.
    Lost {
        /// For how long this scheduler has seen it absent, without a gap of its watch, on `CLOCK_BOOTTIME`: a step of the wall clock
        /// replaces no VM. Zero for a scheduler that has just been elected.
        elapsed: Duration,
    },
}
