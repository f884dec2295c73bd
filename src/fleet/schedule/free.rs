//! The addresses of a group that nodes have left.
//! Out of scope: the subnets ([`super::subnets`]).

use std::collections::BTreeMap;

use super::filter::Reason;

/// How many more VMs of a group nodes have addresses for.
#[derive(Debug)]
pub(super) struct Free {
    /// What a node without one lacks.
    pub(super) lacking: Reason,
    /// That of a node without copies of VMs of the group.
    whole: u64,
    /// Those of the others, and of nodes with a subnet of another size, by position.
    nodes: BTreeMap<usize, u64>,
}

impl Free {
    /// `nodes`: those with subnets that have another number than `whole`.
    pub(super) fn new(lacking: Reason, whole: u64, nodes: BTreeMap<usize, u64>) -> Self {
        Self {
            lacking,
            whole,
            nodes,
        }
    }

    /// Whether the subnet of the node with this position has one.
    pub(super) fn has(&self, at: usize) -> bool {
        *self.nodes.get(&at).unwrap_or(&self.whole) > 0
    }

    /// One more VM of the group is on the node.
    pub(super) fn take(&mut self, at: usize) {
        let free = self.nodes.entry(at).or_insert(self.whole);
        *free = free.saturating_sub(1);
    }
}
