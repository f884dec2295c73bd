//! What is to be done with the VMs of a group: deletions and confirmations at once; the rest, which needs nodes, as work.
//! Out of scope: choosing nodes ([`super::place`], [`super::disrupt`]).
//!
//! # What proves that a VM does not run
//! It was never bound; or each node that the object names has reported `Deleted` or `Refused` with this epoch or a greater one, or is fenced
//! ([`Index::proof_of_absence`]). The object stays until then, and so does its name: the next VM of the same index is created after it.

use std::collections::BTreeMap;

use super::index::Index;
use super::replacement::{self, Due};
use super::step::{Action, Compare, Plan, Step, Write};
use super::view::Stored;
use super::work::{Candidate, Cause, Work, compare_group, compare_vm, put};
use crate::api::host_group::HostGroup;
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::fleet::keys::Key;
use crate::fleet::object::{Binding, Group, Phase, PreviousCopy, Reconcile, Vm};

/// The steps for the VMs of this group that need no node, and the work for the others.
pub(super) fn survey<'v>(
    index: &Index<'v>,
    name: &'v Name,
    uids: &mut dyn FnMut() -> Uid,
    plan: &mut Plan,
) -> Option<Work<'v>> {
    let members = index.members.get(name).map_or(&[][..], Vec::as_slice);
    let Some(group) = index.view.groups.get(name) else {
        orphans(index, members, plan);
        return None;
    };
    let is_deleting = group.value.meta.deleting;
    if is_deleting && members.is_empty() {
        remove_group(index, group, plan);
    }
    let count = if is_deleting {
        0
    } else {
        group.value.spec.count
    };
    let mut survey = Survey::new(index, group, count);
    let (kept, excess): (Vec<_>, Vec<_>) = members
        .iter()
        .copied()
        .partition(|vm| survey.keeps(&vm.value));
    // The highest indexes are deleted first.
    for vm in excess.into_iter().rev() {
        delete(index, group, vm, plan);
    }
    for vm in kept {
        survey.visit(vm, plan);
    }
    survey.create(members, uids);
    Some(survey.finish())
}

/// The survey of one group.
struct Survey<'i, 'v> {
    index: &'i Index<'v>,
    group: &'v Stored<Group>,
    count: u32,
    /// The index of the last VM that is kept.
    last: u32,
    available: usize,
    candidates: Vec<Candidate>,
    bound: Vec<&'v Stored<Vm>>,
    counts: BTreeMap<usize, u64>,
}

impl<'i, 'v> Survey<'i, 'v> {
    fn new(index: &'i Index<'v>, group: &'v Stored<Group>, count: u32) -> Self {
        Self {
            index,
            group,
            count,
            last: 0,
            available: 0,
            candidates: Vec::new(),
            bound: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Whether this is the VM of its index. VMs come in the order of [`Index::members`]. A VM of a group that had this name before is
    /// none: that group has been removed.
    fn keeps(&mut self, vm: &Vm) -> bool {
        let keeps = (self.last + 1..=self.count).contains(&vm.index)
            && !vm.meta.deleting
            && vm.group_uid == self.group.value.meta.uid;
        if keeps {
            self.last = vm.index;
        }
        keeps
    }

    fn visit(&mut self, vm: &'v Stored<Vm>, plan: &mut Plan) {
        if self.index.is_available(&vm.value) {
            self.available += 1;
        }
        let binding = vm.value.binding.as_ref();
        if let Some(at) = binding.and_then(|it| self.index.position(&it.node)) {
            *self.counts.entry(at).or_default() += 1;
        }
        if let Some((changed, mut compares)) = self.confirm(&vm.value, plan) {
            compares.push(compare_vm(vm));
            plan.steps.push(put(Action::Confirm, changed, compares));
            return;
        }
        match binding {
            None => self.push(vm, Cause::Pending, Vec::new()),
            // The copy that is deleted first.
            Some(binding) if binding.moving_from.is_some() => {}
            Some(binding) => self.visit_bound(vm, binding, plan),
        }
    }

    fn visit_bound(&mut self, vm: &'v Stored<Vm>, binding: &Binding, plan: &mut Plan) {
        let status = self.index.status(vm.value.meta.uid, &binding.node);
        let current = status.filter(|it| it.value.epoch == binding.epoch);
        match current.map(|it| it.value.phase) {
            Some(Phase::Refused) => return self.push(vm, Cause::Refused, Vec::new()),
            Some(Phase::Deleted) => return self.push(vm, Cause::Ended, Vec::new()),
            Some(Phase::NotReady | Phase::Ready | Phase::Stopped) | None => {}
        }
        if let Some(compares) = self.index.fenced(&binding.node) {
            return self.push(vm, Cause::Released, compares);
        }
        let copy = (&binding.node, binding.epoch, false);
        match replacement::due(self.index, self.group, &vm.value, copy) {
            Due::Now => {
                plan.depends_on_time = true;
                let compares = without_contact(self.index, vm.value.meta.uid, &binding.node);
                self.push(vm, Cause::Replaced, compares.to_vec());
            }
            Due::In(rest) => plan.wake(rest),
            Due::Never if self.index.has_contact(&binding.node) => self.bound.push(vm),
            Due::Never => {}
        }
    }

    /// The VM without the copies that are proven to be absent; `None`: nothing changes.
    fn confirm(&self, vm: &Vm, plan: &mut Plan) -> Option<(Vm, Vec<Compare>)> {
        let moving = vm.binding.as_ref().and_then(|it| it.moving_from.as_ref());
        if moving.is_none() && vm.previous.is_empty() {
            return None;
        }
        let (index, uid) = (self.index, vm.meta.uid);
        let mut changed = vm.clone();
        let mut compares = Vec::new();
        changed.previous.retain(|copy| {
            let proof = index.proof_of_absence(uid, &copy.node, copy.epoch);
            compares.extend(proof.iter().flatten().cloned());
            proof.is_none()
        });
        let replacement = self.group.value.replacement.as_ref();
        let keeps = replacement.is_some_and(|it| it.reconcile == Reconcile::KeepOriginal);
        // A node that is drained keeps nothing.
        for copy in &mut changed.previous {
            copy.keep &= keeps && !index.is_drained(&copy.node);
        }
        if let Some(moving) = moving {
            let copy = (&moving.node, moving.epoch, true);
            match index.proof_of_absence(uid, &moving.node, moving.epoch) {
                Some(proof) => {
                    compares.extend(proof);
                    changed.binding.as_mut()?.moving_from = None;
                }
                None => match replacement::due(index, self.group, vm, copy) {
                    Due::Now => {
                        plan.depends_on_time = true;
                        compares.extend(without_contact(index, uid, &moving.node));
                        changed.binding.as_mut()?.moving_from = None;
                        changed.previous.push(PreviousCopy {
                            node: moving.node.clone(),
                            epoch: moving.epoch,
                            resources: moving.resources,
                            keep: false,
                        });
                    }
                    Due::In(rest) => plan.wake(rest),
                    Due::Never => {}
                },
            }
        }
        (changed != *vm).then_some((changed, compares))
    }

    fn push(&mut self, vm: &'v Stored<Vm>, cause: Cause, mut compares: Vec<Compare>) {
        compares.push(compare_vm(vm));
        self.candidates.push(Candidate {
            vm: vm.value.clone(),
            cause,
            compares,
        });
    }

    /// A VM for each index that has none, also none that is being deleted.
    fn create(&mut self, members: &[&Stored<Vm>], uids: &mut dyn FnMut() -> Uid) {
        let group = &self.group.value;
        let mut occupied = members.iter().map(|vm| vm.value.index).peekable();
        for index in 1..=self.count {
            while occupied.next_if(|other| *other < index).is_some() {}
            if occupied.peek() == Some(&index) {
                continue;
            }
            // The validation of groups refuses a count with which a name would be invalid.
            let Some(name) = HostGroup::vm_name(&group.meta.name, index) else {
                continue;
            };
            let uid = uids();
            let vm = new_vm(group, name, uid, index, self.index.view.now);
            self.candidates.push(Candidate {
                vm,
                cause: Cause::New,
                compares: vec![Compare {
                    key: Key::Vm(uid),
                    revision: 0,
                }],
            });
        }
    }

    fn finish(self) -> Work<'v> {
        let allowed = self.group.value.placement.max_unavailable.max(1) as usize;
        let unavailable = self.count as usize - self.available;
        Work {
            group: self.group,
            candidates: self.candidates,
            bound: self.bound,
            unavailable,
            budget: allowed.saturating_sub(unavailable),
            counts: self.counts,
        }
    }
}

fn new_vm(group: &Group, name: Name, uid: Uid, index: u32, now: Timestamp) -> Vm {
    Vm {
        meta: Meta {
            name,
            uid,
            generation: 1,
            created_at: now,
            deleting: false,
            forced: false,
        },
        group: group.meta.name.clone(),
        group_uid: group.meta.uid,
        index,
        group_generation: group.template_generation,
        binding: None,
        epoch: 0,
        previous: Vec::new(),
        refusals: Vec::new(),
        pending: None,
    }
}

/// The key of the node's lease is absent, and the node has not reported another time to stop its copy.
fn without_contact(index: &Index<'_>, vm: Uid, node: &Name) -> [Compare; 2] {
    let status = index.status(vm, node);
    [
        Compare {
            key: Key::Alive(node.clone()),
            revision: 0,
        },
        Compare {
            key: Key::VmStatus(node.clone(), vm),
            revision: status.map_or(0, |it| it.revision),
        },
    ]
}

/// Removes a group that has no VM, after its subnets.
fn remove_group(index: &Index<'_>, group: &Stored<Group>, plan: &mut Plan) {
    let name = &group.value.meta.name;
    let step = |action, write| Step {
        action,
        name: name.clone(),
        write,
        compares: vec![compare_group(group)],
    };
    let mut nodes = index.view.ranges.get(name).into_iter().flatten().peekable();
    if nodes.peek().is_none() {
        let write = Write::DeleteGroup(name.clone());
        plan.steps.push(step(Action::RemoveGroup, write));
    }
    for (node, _) in nodes {
        let write = Write::DeleteSubnet(name.clone(), node.clone());
        plan.steps.push(step(Action::FreeSubnet, write));
    }
}

/// What proves that the VM has no copy; `None`: nothing does.
fn proof(index: &Index<'_>, vm: &Vm) -> Option<Vec<Compare>> {
    let proofs = vm
        .copies()
        .map(|copy| index.proof_of_absence(vm.meta.uid, copy.node, copy.epoch));
    let proofs: Option<Vec<Vec<Compare>>> = proofs.collect();
    proofs.map(|it| it.into_iter().flatten().collect())
}

/// Removes a VM that has no copy, or requests that it be deleted.
fn delete(index: &Index<'_>, group: &Stored<Group>, vm: &Stored<Vm>, plan: &mut Plan) {
    let meta = &vm.value.meta;
    let forces = group.value.meta.forced && !meta.forced;
    if let Some(proof) = proof(index, &vm.value) {
        let mut compares = vec![compare_vm(vm), compare_group(group)];
        compares.extend(proof);
        plan.steps.push(remove(&vm.value, compares));
    } else if !meta.deleting || forces {
        let mut changed = vm.value.clone();
        changed.meta.deleting = true;
        changed.meta.forced |= group.value.meta.forced;
        let compares = vec![compare_vm(vm), compare_group(group)];
        plan.steps.push(put(Action::Delete, changed, compares));
    }
}

fn remove(vm: &Vm, compares: Vec<Compare>) -> Step {
    Step {
        action: Action::Remove,
        name: vm.meta.name.clone(),
        write: Write::DeleteVm(vm.meta.uid),
        compares,
    }
}

/// VMs of a group that is not there: unseen is not deleted. They stay as they are.
fn orphans(index: &Index<'_>, members: &[&Stored<Vm>], plan: &mut Plan) {
    for vm in members {
        let value = &vm.value;
        let reason = format!("group {} is not found", value.group);
        match value.meta.deleting {
            true => {
                if let Some(mut compares) = proof(index, value) {
                    compares.push(compare_vm(vm));
                    plan.steps.push(remove(value, compares));
                }
            }
            false if value.binding.is_none() && value.pending.as_ref() != Some(&reason) => {
                let mut changed = value.clone();
                changed.pending = Some(reason);
                let compares = vec![compare_vm(vm)];
                plan.steps.push(put(Action::Pending, changed, compares));
            }
            false => {}
        }
    }
}
