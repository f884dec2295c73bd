//! The VMs of a group that need nodes, and how steps are built.
//! Out of scope: what is decided.

use std::collections::BTreeMap;

use super::step::{Action, Compare, Step, Write};
use super::view::Stored;
use crate::api::meta::Name;
use crate::fleet::keys::Key;
use crate::fleet::object::{Binding, Group, Resources, Vm};

/// What needs nodes.
pub(super) struct Work<'v> {
    pub(super) group: &'v Stored<Group>,
    /// VMs without a node, or that lose theirs.
    pub(super) candidates: Vec<Candidate>,
    /// VMs on nodes with contact that may be updated, moved or returned.
    pub(super) bound: Vec<&'v Stored<Vm>>,
    /// The number of VMs that are not available, pending ones included.
    pub(super) unavailable: usize,
    /// The number of VMs that may become unavailable.
    pub(super) budget: usize,
    /// The number of VMs by position of the node.
    pub(super) counts: BTreeMap<usize, u64>,
}

/// A VM that needs a node.
pub(super) struct Candidate {
    /// As it is stored, or new.
    pub(super) vm: Vm,
    pub(super) cause: Cause,
    /// What the transaction compares, except the group.
    pub(super) compares: Vec<Compare>,
}

/// Why a VM needs a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It does not exist.
    New,
    /// It has none.
    Pending,
    /// Its node has refused it.
    Refused,
    /// Its node has deleted it, because a user requested that there.
    Ended,
    /// Its node is fenced.
    Released,
    /// Contact to its node was lost for long enough.
    Replaced,
}

/// The VM has not changed.
pub(super) fn compare_vm(vm: &Stored<Vm>) -> Compare {
    Compare {
        key: Key::Vm(vm.value.meta.uid),
        revision: vm.revision,
    }
}

/// The group has not changed.
pub(super) fn compare_group(group: &Stored<Group>) -> Compare {
    Compare {
        key: Key::Group(group.value.meta.name.clone()),
        revision: group.revision,
    }
}

/// The step that stores a VM.
pub(super) fn put(action: Action, vm: Vm, compares: Vec<Compare>) -> Step {
    Step {
        action,
        name: vm.meta.name.clone(),
        write: Write::PutVm(Box::new(vm)),
        compares,
    }
}

/// Binds a VM to a node, with the current spec of its group.
pub(super) fn bind(vm: &mut Vm, group: &Group, node: Name, resources: Resources) {
    vm.epoch += 1;
    vm.group_generation = group.template_generation;
    vm.pending = None;
    vm.binding = Some(Binding {
        node,
        epoch: vm.epoch,
        group_generation: group.meta.generation,
        resources,
        moving_from: None,
    });
}
