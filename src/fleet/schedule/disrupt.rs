//! Changes that interrupt a VM that has a node: returns to the original copy, drains and updates.
//! Out of scope: VMs without a node ([`super::place`]).
//!
//! # Why a move stops the old copy first
//! A copy elsewhere that becomes Ready before the old one stops would be a second copy of the VM: the same name, the same index, for a
//! while the same addresses. So a move is one write that binds the VM to the new node, which reserves its place there, with `moving_from`:
//! the old node deletes its copy because the epoch is greater, and reports `Deleted`; then the scheduler clears `moving_from`, and the new
//! node starts the VM. No copy is stopped without a node that fits. Availability is what `max_unavailable` of the group states, as for
//! updates: the next VM is moved when the previous one is Ready.
//!
//! # Budget
//! At most `max_unavailable` VMs of a group are not available. A VM that is reported as not Ready is changed without regard to it, since
//! that makes no other VM unavailable; its transaction compares its status, which may become Ready at any time. A VM of which nothing is
//! reported may be Ready.

use super::candidates::Session;
use super::filter;
use super::index::Index;
use super::refusal;
use super::replacement::local_data;
use super::request::Request;
use super::step::{Action, Blocked, Compare, Plan};
use super::subnets;
use super::view::Stored;
use super::work::{Work, bind, compare_group, compare_vm, put};
use crate::api::host_group::UpdatePolicy;
use crate::fleet::keys::Key;
use crate::fleet::object::{Binding, Drain, Group, MovingFrom, Phase, Vm};

/// An interruption. The order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Return,
    Drain,
    Update,
}

fn kind(index: &Index<'_>, group: &Group, request: &Request<'_>, vm: &Vm) -> Option<Kind> {
    let drains = vm
        .binding
        .as_ref()
        .is_some_and(|it| drain(index, it).is_some());
    let is_outdated = vm.group_generation < group.template_generation
        && group.spec.update == UpdatePolicy::Rolling;
    match () {
        () if original(index, request, vm).is_some() => Some(Kind::Return),
        () if drains => Some(Kind::Drain),
        () if is_outdated => Some(Kind::Update),
        () => None,
    }
}

fn drain(index: &Index<'_>, binding: &Binding) -> Option<Drain> {
    let admin = index.node(&binding.node)?.view.admin.as_ref()?;
    admin.value.drain
}

/// The original copy that the VM returns to: its position in `previous`, and that of the node. The node has reported that it has stopped it
/// and keeps it.
pub(super) fn original(
    index: &Index<'_>,
    request: &Request<'_>,
    vm: &Vm,
) -> Option<(usize, usize)> {
    let mut copies = vm.previous.iter().enumerate();
    copies.find_map(|(position, copy)| {
        let at = index.position(&copy.node).filter(|_| copy.keep)?;
        let node = &index.nodes[at];
        let status = &index.status(vm.meta.uid, &copy.node)?.value;
        let is_kept = status.phase == Phase::Stopped && status.epoch == copy.epoch;
        let fits = filter::accepting(node).is_ok()
            && filter::mismatch(node, request).is_none()
            && filter::insufficient(node, request, Some(&copy.resources)).is_none();
        (is_kept && fits).then_some((position, at))
    })
}

/// Whether the VM may serve: nothing says that it does not.
fn may_be_available(index: &Index<'_>, vm: &Vm) -> bool {
    let Some(binding) = &vm.binding else {
        return false;
    };
    let status = index.status(vm.meta.uid, &binding.node);
    let is_reported = status.is_some_and(|it| it.value.epoch == binding.epoch);
    !is_reported || index.is_available(vm)
}

/// Whether a group has VMs to interrupt.
pub(super) fn is_due(index: &Index<'_>, work: &Work<'_>, request: &Request<'_>) -> bool {
    let is_due = |vm: &&Stored<Vm>| kind(index, &work.group.value, request, &vm.value).is_some();
    work.bound.iter().any(is_due)
}

/// Interrupts VMs of the group, as many as its budget allows.
pub(super) fn disrupt<'v>(
    index: &mut Index<'v>,
    session: &mut Session<'_, 'v>,
    work: &Work<'v>,
    plan: &mut Plan,
) {
    let mut due: Vec<(Kind, bool, &Stored<Vm>)> = Vec::new();
    for vm in &work.bound {
        let kind = kind(index, &work.group.value, session.request(), &vm.value);
        due.extend(kind.map(|kind| (kind, may_be_available(index, &vm.value), *vm)));
    }
    due.sort_by_key(|(kind, is_counted, vm)| (*kind, *is_counted, vm.value.index));
    let mut budget = work.budget;
    for (kind, is_counted, vm) in due {
        let mut disruption = Disruption {
            index: &mut *index,
            session: &mut *session,
            group: work.group,
            vm,
            is_counted,
            may: !is_counted || budget > 0,
            plan: &mut *plan,
        };
        if kind == Kind::Drain && !disruption.may {
            disruption.wait(work.unavailable);
        }
        if disruption.run(kind) && is_counted {
            budget -= 1;
        }
    }
}

/// The interruption of one VM.
struct Disruption<'d, 'c, 'v> {
    index: &'d mut Index<'v>,
    session: &'d mut Session<'c, 'v>,
    group: &'v Stored<Group>,
    vm: &'v Stored<Vm>,
    /// It uses the budget.
    is_counted: bool,
    /// The budget allows it.
    may: bool,
    plan: &'d mut Plan,
}

impl Disruption<'_, '_, '_> {
    /// Returns whether the VM is interrupted.
    fn run(&mut self, kind: Kind) -> bool {
        let Some(binding) = &self.vm.value.binding else {
            return false;
        };
        match kind {
            Kind::Return => self.may && self.return_to_original(binding),
            Kind::Drain => self.drain(binding),
            Kind::Update => self.may && self.update(binding),
        }
    }

    fn return_to_original(&mut self, binding: &Binding) -> bool {
        let mut vm = self.vm.value.clone();
        let Some((position, at)) = original(self.index, self.session.request(), &vm) else {
            return false;
        };
        let copy = vm.previous.remove(position);
        self.session.resize(self.index, at, &copy.resources);
        self.put_moved(Action::Return, vm, binding, at, false);
        true
    }

    fn drain(&mut self, binding: &Binding) -> bool {
        let local = local_data(&self.group.value.spec.template);
        let deletes = drain(self.index, binding).is_some_and(|it| it.delete_local);
        match local {
            Some(reason) if !deletes => {
                if self.may {
                    self.block(binding, format!("it is not moved: {reason}"));
                }
                self.may && self.is_outdated() && self.update(binding)
            }
            _ => self.may && self.relocate(binding, local.is_some()),
        }
    }

    fn is_outdated(&self) -> bool {
        let group = &self.group.value;
        self.vm.value.group_generation < group.template_generation
            && group.spec.update == UpdatePolicy::Rolling
    }

    /// Updates the VM on its node, or moves it if the node cannot run what it is updated to.
    fn update(&mut self, binding: &Binding) -> bool {
        let Some(at) = self.index.position(&binding.node) else {
            return false;
        };
        let (node, request) = (&self.index.nodes[at], self.session.request());
        // Nothing is known of the node: it is not a reason to move a VM.
        if node.view.status.is_none() {
            return false;
        }
        let old = &binding.resources;
        let obstacle = filter::mismatch(node, request)
            .or_else(|| filter::insufficient(node, request, Some(old)));
        match (obstacle, local_data(&self.group.value.spec.template)) {
            (None, _) => {
                let resources = request.resources;
                let mut vm = self.vm.value.clone();
                vm.group_generation = self.group.value.template_generation;
                vm.binding = Some(Binding {
                    resources,
                    ..binding.clone()
                });
                self.session.resize(self.index, at, old);
                let compares = self.compares(binding);
                self.plan.steps.push(put(Action::Update, vm, compares));
                true
            }
            (Some(obstacle), Some(local)) => {
                let reason = format!("it is not updated: {obstacle}; it is not moved: {local}");
                self.block(binding, reason);
                false
            }
            (Some(_), None) => self.relocate(binding, false),
        }
    }

    /// Moves the VM to another node.
    fn relocate(&mut self, binding: &Binding, delete_disk: bool) -> bool {
        let excluded = refusal::excluded(self.index, self.group, &self.vm.value);
        let Some(at) = excluded.pick(self.session) else {
            let wake = excluded.wake.into_iter();
            wake.for_each(|after| self.plan.wake(after));
            let reason = excluded.message(self.session, self.index);
            self.block(binding, format!("it is not moved: {reason}"));
            return false;
        };
        self.session.bind(self.index, at);
        subnets::assign(self.index, self.session, self.group, at, self.plan);
        self.put_moved(
            Action::Move,
            self.vm.value.clone(),
            binding,
            at,
            delete_disk,
        );
        true
    }

    fn put_moved(&mut self, action: Action, mut vm: Vm, from: &Binding, at: usize, disk: bool) {
        let node = self.index.nodes[at].name.clone();
        let resources = self.session.request().resources;
        bind(&mut vm, &self.group.value, node, resources);
        if let Some(binding) = &mut vm.binding {
            binding.moving_from = Some(MovingFrom {
                node: from.node.clone(),
                epoch: from.epoch,
                resources: from.resources,
                delete_disk: disk,
            });
        }
        let compares = self.compares(from);
        self.plan.steps.push(put(action, vm, compares));
    }

    /// The VM, the group, and the report that the VM is not available if that is why it is interrupted.
    fn compares(&self, binding: &Binding) -> Vec<Compare> {
        let mut compares = vec![compare_vm(self.vm), compare_group(self.group)];
        if !self.is_counted {
            let uid = self.vm.value.meta.uid;
            let status = self.index.status(uid, &binding.node);
            compares.push(Compare {
                key: Key::VmStatus(binding.node.clone(), uid),
                revision: status.map_or(0, |it| it.revision),
            });
        }
        compares
    }

    /// Reports that the budget of the group is used: a drain would seem to make no progress otherwise.
    fn wait(&mut self, unavailable: usize) {
        let Some(binding) = &self.vm.value.binding else {
            return;
        };
        let allowed = self.group.value.placement.max_unavailable.max(1);
        let group = &self.group.value.meta.name;
        let reason = format!(
            "it is not moved yet: {unavailable} VMs of group {group} are not available, and max_unavailable is {allowed}"
        );
        self.block(binding, reason);
    }

    fn block(&mut self, binding: &Binding, reason: String) {
        self.plan.blocked.push(Blocked {
            vm: self.vm.value.meta.name.clone(),
            node: binding.node.clone(),
            reason,
        });
    }
}
