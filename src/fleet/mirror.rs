//! The objects of the fleet as they were listed and watched.
//! Out of scope: requests.

use std::collections::BTreeMap;

use super::kv::LeaseId;
use super::object::{DecodeError, Group, Node, NodeStatus, Vm, VmStatus};
use super::schedule::view::Stored;
use crate::api::meta::{Name, Uid};

/// All objects at one revision.
#[derive(Debug, Default)]
pub struct Mirror {
    /// The revision; 0: nothing was listed yet.
    pub revision: u64,
    /// Groups by name.
    pub groups: BTreeMap<Name, Stored<Result<Group, DecodeError>>>,
    /// VMs by uid.
    pub vms: BTreeMap<Uid, Stored<Result<Vm, DecodeError>>>,
    /// What administrators specify of nodes.
    pub nodes: BTreeMap<Name, Stored<Result<Node, DecodeError>>>,
    /// What nodes report of themselves.
    pub node_statuses: BTreeMap<Name, Stored<Result<NodeStatus, DecodeError>>>,
    /// The keys `alive/<node>`, with their leases.
    pub alive: BTreeMap<Name, Stored<Option<LeaseId>>>,
    /// What nodes report of VMs.
    pub statuses: BTreeMap<Name, BTreeMap<Uid, Stored<Result<VmStatus, DecodeError>>>>,
}
