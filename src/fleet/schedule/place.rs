//! Binds VMs that have no node, or that lose theirs.
//! Out of scope: VMs that have one ([`super::disrupt`]); the order of the nodes ([`super::candidates`]).

use super::candidates::Session;
use super::disrupt;
use super::filter;
use super::index::Index;
use super::refusal;
use super::replacement::local_data;
use super::request::Request;
use super::step::{Action, Blocked, Compare, Plan};
use super::subnets;
use super::view::Stored;
use super::work::{Candidate, Cause, bind, compare_group, put};
use crate::api::meta::Name;
use crate::fleet::object::{Binding, Group, PreviousCopy, Reconcile, Resources, Vm};

/// Binds the VM if a node fits; otherwise it is pending, or stays where it is.
pub(super) fn place<'v>(
    index: &mut Index<'v>,
    session: &mut Session<'_, 'v>,
    group: &'v Stored<Group>,
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
    let place = match reusable(
        index,
        session.request(),
        group,
        &vm,
        (cause, before.as_ref()),
    ) {
        Reuse::Place(at, old) => Some((at, old)),
        Reuse::Nothing => None,
        Reuse::Blocked(binding, reason) => return block(vm.meta.name, binding, reason, plan),
    };
    let excluded = refusal::excluded(index, group, &vm);
    let picked = place.map(|(at, _)| at);
    let picked = picked.or_else(|| excluded.pick(session));
    let picked = picked.filter(|at| session.serves(*at));
    let Some(at) = picked else {
        let reason = excluded.message(session, index);
        excluded.wake.into_iter().for_each(|after| plan.wake(after));
        return stay(vm, before, cause, reason, compares, plan);
    };
    if let (Cause::Replaced, Some(before)) = (cause, before) {
        let copy = previous(&vm, before, &group.value);
        vm.previous.push(copy);
    }
    match place {
        Some((_, old)) => session.resize(index, at, &old),
        None => session.bind(index, at),
    }
    subnets::assign(index, session, group, at, plan);
    let node = index.nodes[at].name.clone();
    let copies = vm.previous.len();
    vm.previous.retain(|it| it.node != node);
    let returns = vm.previous.len() < copies;
    bind(&mut vm, &group.value, node, session.request().resources);
    let action = match cause {
        _ if returns => Action::Return,
        Cause::New => Action::Create,
        Cause::Pending | Cause::Refused | Cause::Ended => Action::Bind,
        Cause::Released => Action::Release,
        Cause::Replaced => Action::Replace,
    };
    plan.steps.push(put(action, vm, compares));
}

/// A place that is counted for the VM already.
enum Reuse<'b> {
    Nothing,
    /// That of its original copy, or that of its data: the node, and what is counted.
    Place(usize, Resources),
    /// Its data is on a node that does not accept it.
    Blocked(&'b Binding, String),
}

fn reusable<'b>(
    index: &Index<'_>,
    request: &Request<'_>,
    group: &Stored<Group>,
    vm: &Vm,
    (cause, before): (Cause, Option<&'b Binding>),
) -> Reuse<'b> {
    let local = local_data(&group.value.spec.template);
    if let (Cause::Ended, Some(binding), Some(local)) = (cause, before, local) {
        return match same_node(index, request, binding) {
            Some(at) => Reuse::Place(at, binding.resources),
            None => Reuse::Blocked(binding, format!("it is not started again: {local}")),
        };
    }
    match disrupt::original(index, request, vm) {
        Some((position, at)) => Reuse::Place(at, vm.previous[position].resources),
        None => Reuse::Nothing,
    }
}

/// The node of a binding, if it can run the VM again. A VM with data on its node starts on no other one.
fn same_node(index: &Index<'_>, request: &Request<'_>, binding: &Binding) -> Option<usize> {
    let at = index.position(&binding.node)?;
    let node = &index.nodes[at];
    let fits = filter::accepting(node).is_ok()
        && filter::mismatch(node, request).is_none()
        && filter::insufficient(node, request, Some(&binding.resources)).is_none();
    fits.then_some(at)
}

fn block(vm: Name, binding: &Binding, reason: String, plan: &mut Plan) {
    plan.blocked.push(Blocked {
        vm,
        node: binding.node.clone(),
        reason,
    });
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
            return block(
                vm.meta.name,
                &before,
                format!("it is not replaced: {reason}"),
                plan,
            );
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
