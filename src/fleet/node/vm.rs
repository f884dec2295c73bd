//! The decision for one VM.
//! Out of scope: VMs that are not of the fleet.

use super::admission::{Admission, Available};
use super::decision::{Decision, decide};
use super::status;
use super::{Input, LocalRefusal, LocalVm, Plan, Report, ReportReason, Run, Step, StopCause};
use crate::api::meta::Uid;
use crate::fleet::object::{Binding, Group, Phase, Vm};

/// With and without contact: a VM with `stop_after` is stopped when it ends.
pub(super) fn stop_overdue(input: &Input<'_>, local: &LocalVm, plan: &mut Plan) {
    let runs = match local.run {
        Run::Ready | Run::NotReady => true,
        Run::Stopped | Run::Deleting => false,
    };
    if runs && !input.may_run(local.stop) {
        plan.steps.push(Step::StopVm {
            uid: local.uid,
            cause: StopCause::NoContact,
        });
    }
}

/// With contact.
pub(super) fn plan(input: &Input<'_>, uid: Uid, available: &mut Available, plan: &mut Plan) {
    if is_forgotten(input, uid) {
        plan.steps.push(Step::ForgetRefusal { uid });
    }
    match (input.objects.vms.get(&uid), input.local.get(&uid)) {
        (Some(Ok(vm)), Some(local)) => present(input, vm, local, plan),
        (Some(Ok(vm)), None) => absent(input, vm, available, plan),
        (Some(Err(error)), local) => {
            let message = format!("its object cannot be read, and nothing is changed: {error}");
            keep(
                input,
                uid,
                local,
                Some((ReportReason::Undecodable, message)),
                plan,
            );
        }
        (None, Some(local)) => {
            let message = "its object is not in the fleet; that is no request to delete it";
            let report = (ReportReason::NotInFleet, message.to_owned());
            keep(input, uid, Some(local), Some(report), plan);
        }
        (None, None) if input.objects.statuses.contains_key(&uid) => {
            plan.steps.push(Step::DeleteStatus { uid });
        }
        (None, None) => {}
    }
}

/// Whether a refusal is of an earlier binding.
fn is_forgotten(input: &Input<'_>, uid: Uid) -> bool {
    let Some(refusal) = input.refusals.get(&uid) else {
        return false;
    };
    match input.objects.vms.get(&uid) {
        Some(Ok(vm)) => vm.meta.deleting || vm.epoch > refusal.epoch,
        Some(Err(_)) => false,
        None => true,
    }
}

/// Only the status is written.
fn keep(
    input: &Input<'_>,
    uid: Uid,
    local: Option<&LocalVm>,
    report: Option<(ReportReason, String)>,
    plan: &mut Plan,
) {
    if let Some(local) = local {
        let message = report.as_ref().map(|(_, message)| message.clone());
        status::put(
            input,
            uid,
            status::of_local(input, local, None, message),
            plan,
        );
    }
    plan.reports.extend(report.map(|(reason, message)| Report {
        uid,
        reason,
        message,
    }));
}

/// The object and the local VM exist.
fn present(input: &Input<'_>, vm: &Vm, local: &LocalVm, plan: &mut Plan) {
    let uid = local.uid;
    let report = match decide(input, vm, local) {
        Decision::Remove(cause) => {
            if local.run != Run::Deleting {
                plan.steps.push(Step::RemoveVm { uid, cause });
            }
            None
        }
        Decision::Run(epoch) => {
            run(input, vm, local, epoch, plan);
            None
        }
        Decision::Stop => {
            if local.run != Run::Stopped && local.run != Run::Deleting {
                let cause = StopCause::Kept;
                plan.steps.push(Step::StopVm { uid, cause });
            }
            None
        }
        Decision::Keep(reason, message) => Some((reason, message)),
    };
    let message = report.as_ref().map(|(_, message)| message.clone());
    status::put(
        input,
        uid,
        status::of_local(input, local, Some(vm), message),
        plan,
    );
    plan.reports.extend(report.map(|(reason, message)| Report {
        uid,
        reason,
        message,
    }));
}

/// The VM is to run here, and exists.
fn run(input: &Input<'_>, vm: &Vm, local: &LocalVm, epoch: u64, plan: &mut Plan) {
    if local.run == Run::Deleting {
        return;
    }
    let group = input.group(&vm.group, vm.group_uid);
    let mut generation = local.group_generation;
    if let Some(group) = group
        && vm.group_generation > local.group_generation
        && group.template_generation > local.group_generation
    {
        super::groups::put(input, group, plan);
        generation = group.template_generation;
    }
    let stop = status::stop_in_effect(input, local, group);
    if (epoch, generation, stop) != (local.epoch, local.group_generation, local.stop) {
        plan.steps.push(Step::UpdateVm {
            uid: local.uid,
            epoch,
            group_generation: generation,
            stop,
        });
    }
    // The copy on the other node is deleted first.
    let moving = vm.binding.as_ref().and_then(|b| b.moving_from.as_ref());
    if local.run == Run::Stopped && moving.is_none() && input.may_run(stop) {
        plan.steps.push(Step::StartVm { uid: local.uid });
    }
}

/// The object exists, and there is no local VM.
fn absent(input: &Input<'_>, vm: &Vm, available: &mut Available, plan: &mut Plan) {
    let uid = vm.meta.uid;
    let Some(epoch) = named(input, vm) else {
        if input.objects.statuses.contains_key(&uid) {
            plan.steps.push(Step::DeleteStatus { uid });
        }
        return;
    };
    if input.guard.vms.contains(&uid) {
        let message = "its VMM still runs on this node, and the daemon has lost its VM";
        plan.reports.push(Report {
            uid,
            reason: ReportReason::Waiting,
            message: message.to_owned(),
        });
        return;
    }
    let bound = vm.binding.as_ref().filter(|b| b.node == *input.node);
    let stored = input.refusals.get(&uid);
    let is_final = input.status(uid).is_some_and(|status| {
        matches!(status.phase, Phase::Refused | Phase::Deleted) && status.epoch >= epoch
    });
    match bound.filter(|_| !vm.meta.deleting) {
        Some(binding) => match stored.filter(|refusal| refusal.epoch == binding.epoch) {
            Some(LocalRefusal { epoch, reason }) => {
                let status = status::refused(*epoch, vm, reason.clone());
                status::put(input, uid, status, plan);
            }
            None if is_final => {}
            None => add(input, vm, binding, available, plan),
        },
        None if is_final => {}
        None => status::put(input, uid, status::deleted(epoch, vm), plan),
    }
}

/// The epoch that the object names for this node: the greatest one of a copy that it may have.
fn named(input: &Input<'_>, vm: &Vm) -> Option<u64> {
    let here = vm.copies().filter(|copy| copy.node == input.node);
    here.map(|copy| copy.epoch).max()
}

/// The VM is bound here and does not exist yet.
fn add(input: &Input<'_>, vm: &Vm, binding: &Binding, available: &mut Available, plan: &mut Plan) {
    let uid = vm.meta.uid;
    let group = match input.objects.groups.get(&vm.group) {
        Some(Ok(group))
            if group.meta.uid == vm.group_uid
                && group.template_generation >= vm.group_generation =>
        {
            group
        }
        Some(Err(error)) => {
            let reason = format!("group {} cannot be read by this node: {error}", vm.group);
            return refuse(input, vm, binding, reason, plan);
        }
        Some(Ok(_)) | None => {
            let message = format!(
                "its group {} is not in the fleet in the generation {}",
                vm.group, vm.group_generation
            );
            plan.reports.push(Report {
                uid,
                reason: ReportReason::NoGroup,
                message,
            });
            return;
        }
    };
    if let Some(from) = &binding.moving_from {
        plan.reports.push(Report {
            uid,
            reason: ReportReason::Waiting,
            message: format!(
                "it waits for the deletion of its copy on node {}",
                from.node
            ),
        });
        return;
    }
    if super::groups::lacks_subnet(input, group) {
        plan.reports.push(Report {
            uid,
            reason: ReportReason::Waiting,
            message: format!("it waits for a subnet of group {} on this node", vm.group),
        });
        return;
    }
    match available.admit(input, vm, group) {
        Admission::Refused(reason) => refuse(input, vm, binding, reason, plan),
        Admission::Waits(message) => plan.reports.push(Report {
            uid,
            reason: ReportReason::Waiting,
            message,
        }),
        Admission::Admitted => {
            super::groups::put(input, group, plan);
            plan.steps.push(Step::AddVm {
                vm: Box::new(new_vm(vm, binding, group)),
            });
        }
    }
}

fn new_vm(vm: &Vm, binding: &Binding, group: &Group) -> LocalVm {
    LocalVm {
        uid: vm.meta.uid,
        name: vm.meta.name.clone(),
        group: vm.group.clone(),
        group_uid: vm.group_uid,
        index: vm.index,
        epoch: binding.epoch,
        group_generation: group.template_generation,
        stop: status::stop_of(group),
        run: Run::NotReady,
        address: None,
        message: None,
    }
}

fn refuse(input: &Input<'_>, vm: &Vm, binding: &Binding, reason: String, plan: &mut Plan) {
    let uid = vm.meta.uid;
    plan.steps.push(Step::RefuseVm {
        uid,
        epoch: binding.epoch,
        reason: reason.clone(),
    });
    status::put(input, uid, status::refused(binding.epoch, vm, reason), plan);
}
