//! Binds VMs that have no node, or that lose theirs.
//! Out of scope: VMs that have one ([`super::disrupt`]); the order of the nodes ([`super::candidates`]).

use super::candidates::Session;
use super::disrupt;
use super::index::Index;
use super::refusal;
use super::step::{Action, Blocked, Compare, Plan};
use super::survey::{compare_group, put};
use super::view::Stored;
use crate::api::meta::Name;
use crate::fleet::object::{Binding, Group, PreviousCopy, Reconcile, Resources, Vm};

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

/// Binds a VM to a node, with the current spec of its group.
pub(super) fn bind(vm: &mut Vm, group: &Group, node: Name, resources: Resources) {
    vm.epoch += 1;
    vm.group_generation = group.meta.generation;
    vm.pending = None;
    vm.binding = Some(Binding {
        node,
        epoch: vm.epoch,
        resources,
        moving_from: None,
    });
}

/// Binds the VM if a node fits; otherwise it is pending, or stays where it is.
pub(super) fn place<'v>(
    index: &mut Index<'v>,
    session: &mut Session<'_, 'v>,
    group: &Stored<Group>,
    candidate: Candidate,
    plan: &mut Plan,
) {
    let Candidate {
        mut vm,
        cause,
        mut compares,
    } = candidate;
    compares.push(compare_group(group));
    let before = vm.binding.take();
    if let (Cause::Refused, Some(binding)) = (cause, &before) {
        let status = index.status(vm.meta.uid, &binding.node);
        let message = status.and_then(|it| it.value.message.clone());
        refusal::record(index, &mut vm, &binding.node, message.unwrap_or_default());
    }
    let (excluded, wake) = refusal::excluded(index, group, &vm);
    let original = disrupt::original(index, session.request(), &vm);
    let original_node = original.map(|(_, at)| at);
    let Some(at) = original_node.or_else(|| session.pick(&excluded)) else {
        let reason = session.message(index, &excluded);
        wake.into_iter().for_each(|after| plan.wake(after));
        return stay(vm, before, cause, reason, compares, plan);
    };
    if let (Cause::Replaced, Some(before)) = (cause, before) {
        let copy = previous(&vm, before, &group.value);
        vm.previous.push(copy);
    }
    let node = index.nodes[at].name.clone();
    let resources = session.request().resources;
    match original {
        Some((position, _)) => {
            let copy = vm.previous.remove(position);
            session.resize(index, at, &copy.resources);
        }
        None => session.bind(index, at),
    }
    bind(&mut vm, &group.value, node, resources);
    let action = match cause {
        _ if original.is_some() => Action::Return,
        Cause::New => Action::Create,
        Cause::Pending | Cause::Refused | Cause::Ended => Action::Bind,
        Cause::Released => Action::Release,
        Cause::Replaced => Action::Replace,
    };
    plan.steps.push(put(action, vm, compares));
}

/// The copy of a binding that is replaced. Of several, the node of the first keeps it.
fn previous(vm: &Vm, binding: Binding, group: &Group) -> PreviousCopy {
    let settings = group.replacement.as_ref();
    let keeps = settings.is_some_and(|it| it.reconcile == Reconcile::KeepOriginal);
    PreviousCopy {
        node: binding.node,
        epoch: binding.epoch,
        resources: binding.resources,
        keep: keeps && !vm.previous.iter().any(|it| it.keep),
    }
}

/// No node fits.
fn stay(
    mut vm: Vm,
    before: Option<Binding>,
    cause: Cause,
    reason: String,
    compares: Vec<Compare>,
    plan: &mut Plan,
) {
    let action = match (cause, before) {
        (Cause::Replaced, Some(before)) => {
            plan.blocked.push(Blocked {
                vm: vm.meta.name,
                node: before.node,
                reason: format!("it is not replaced: {reason}"),
            });
            return;
        }
        (Cause::Pending, _) if vm.pending.as_ref() == Some(&reason) => return,
        (Cause::New, _) => Action::Create,
        (Cause::Pending, _) => Action::Pending,
        (Cause::Refused | Cause::Ended, _) => Action::Unbind,
        (Cause::Released | Cause::Replaced, _) => Action::Release,
    };
    // A release has an epoch of its own: a copy that the object no longer names must not run.
    if matches!(action, Action::Unbind | Action::Release) {
        vm.epoch += 1;
    }
    vm.pending = Some(reason);
    plan.steps.push(put(action, vm, compares));
}
