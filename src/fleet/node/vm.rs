//! The decision for one VM.
//! Out of scope: VMs that are not of the fleet.

use std::time::Duration;

use super::admission::{Admission, Room};
use super::status;
use super::{
    Input, LocalRefusal, LocalVm, Plan, RemoveCause, Report, ReportReason, Run, Step, StopCause,
};
use crate::api::meta::Uid;
use crate::fleet::object::{Binding, Phase, Vm, VmStatus};

/// With and without contact: a VM with `stop_after` is stopped when it ends.
pub(super) fn stop_overdue(input: &Input<'_>, local: &LocalVm, plan: &mut Plan) {
    let runs = match local.run {
        Run::Ready | Run::NotReady => true,
        Run::Stopped | Run::Deleting => false,
    };
    if runs && !input.may_run(local.stop_after) {
        plan.steps.push(Step::StopVm {
            uid: local.uid,
            cause: StopCause::NoContact,
        });
    }
}

/// With contact.
pub(super) fn plan(input: &Input<'_>, uid: Uid, room: &mut Room, plan: &mut Plan) {
    if is_forgotten(input, uid) {
        plan.steps.push(Step::ForgetRefusal { uid });
    }
    match (input.objects.vms.get(&uid), input.local.get(&uid)) {
        (Some(Ok(vm)), Some(local)) => present(input, vm, local, plan),
        (Some(Ok(vm)), None) => absent(input, vm, room, plan),
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
                let cause = StopCause::Unbound;
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

/// What an object requests of the local VM.
enum Decision {
    /// It is deleted.
    Remove(RemoveCause),
    /// It runs, with this epoch.
    Run(u64),
    /// It is stopped and kept.
    Stop,
    /// It is left as it is.
    Keep(ReportReason, String),
}

fn decide(input: &Input<'_>, vm: &Vm, local: &LocalVm) -> Decision {
    if vm.meta.deleting {
        return Decision::Remove(RemoveCause::Deleting {
            forced: vm.meta.forced,
        });
    }
    let Some(binding) = &vm.binding else {
        return match vm.epoch > local.epoch {
            true => Decision::Stop,
            false => Decision::Keep(
                ReportReason::Unbound,
                "it is bound to no node; that is no request to delete it".to_owned(),
            ),
        };
    };
    let is_bound_here = binding.node == *input.node;
    match binding.epoch.cmp(&local.epoch) {
        std::cmp::Ordering::Greater if is_bound_here => Decision::Run(binding.epoch),
        std::cmp::Ordering::Equal if is_bound_here => Decision::Run(local.epoch),
        std::cmp::Ordering::Greater if is_moving_from(input, binding, local) => {
            Decision::Run(local.epoch)
        }
        std::cmp::Ordering::Greater => Decision::Remove(RemoveCause::Superseded {
            node: binding.node.clone(),
            epoch: binding.epoch,
        }),
        std::cmp::Ordering::Less | std::cmp::Ordering::Equal => Decision::Keep(
            ReportReason::StaleEpoch,
            format!(
                "its object has the epoch {} on node {}, and this VM has {}; was etcd restored?",
                binding.epoch, binding.node, local.epoch
            ),
        ),
    }
}

/// Whether the local VM is deleted.
pub(super) fn is_removed(input: &Input<'_>, vm: &Vm, local: &LocalVm) -> bool {
    matches!(decide(input, vm, local), Decision::Remove(_))
}

/// Whether this node runs the VM until another one has it Ready.
pub(super) fn is_moving_from(input: &Input<'_>, binding: &Binding, local: &LocalVm) -> bool {
    let from = binding.moving_from.as_ref();
    from.is_some_and(|from| from.node == *input.node && from.epoch == local.epoch)
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
        && group.meta.generation > local.group_generation
    {
        super::groups::put(input, group, plan);
        generation = group.meta.generation;
    }
    let stop_after = status::stop_after_in_effect(input, local, group);
    if (epoch, generation, stop_after) != (local.epoch, local.group_generation, local.stop_after) {
        plan.steps.push(Step::UpdateVm {
            uid: local.uid,
            epoch,
            group_generation: generation,
            stop_after,
        });
    }
    // A VM that is being moved away is not started again: the other node has it, or will have.
    let is_bound_here = vm.binding.as_ref().is_some_and(|b| b.node == *input.node);
    if local.run == Run::Stopped && is_bound_here && input.may_run(stop_after) {
        plan.steps.push(Step::StartVm { uid: local.uid });
    }
}

/// The object exists, and there is no local VM.
fn absent(input: &Input<'_>, vm: &Vm, room: &mut Room, plan: &mut Plan) {
    let status = input.status(vm.meta.uid);
    let bound = vm.binding.as_ref().filter(|b| b.node == *input.node);
    match bound {
        Some(binding) if !vm.meta.deleting => {
            let is_refused =
                |status: &VmStatus| status.phase == Phase::Refused && status.epoch == binding.epoch;
            let stored = input.refusals.get(&vm.meta.uid);
            match stored.filter(|refusal| refusal.epoch == binding.epoch) {
                Some(LocalRefusal { epoch, reason }) => {
                    let status = status::refused(*epoch, vm, reason.clone());
                    status::put(input, vm.meta.uid, status, plan);
                }
                None if status.is_some_and(is_refused) => {}
                None => add(input, vm, binding, room, plan),
            }
        }
        _ if vm.meta.deleting => {
            let moving = vm.binding.as_ref().and_then(|b| b.moving_from.as_ref());
            let moving = moving.filter(|from| from.node == *input.node);
            let epoch = bound.map(|b| b.epoch).or(moving.map(|from| from.epoch));
            if epoch.is_some() || input.objects.statuses.contains_key(&vm.meta.uid) {
                report_deleted(input, vm, epoch, plan);
            }
        }
        _ => match status {
            Some(refused) if refused.phase == Phase::Refused => {
                if vm.epoch > refused.epoch {
                    plan.steps.push(Step::DeleteStatus { uid: vm.meta.uid });
                }
            }
            Some(_) => report_deleted(input, vm, None, plan),
            None => {}
        },
    }
}

/// Nothing of the VM is here. `epoch`: that of its binding to this node; otherwise that of its status.
fn report_deleted(input: &Input<'_>, vm: &Vm, epoch: Option<u64>, plan: &mut Plan) {
    let status = input.status(vm.meta.uid);
    let epoch = epoch.max(status.map(|status| status.epoch));
    let epoch = epoch.unwrap_or(vm.epoch);
    let is_reported = |status: &VmStatus| status.phase == Phase::Deleted && status.epoch == epoch;
    if !status.is_some_and(is_reported) {
        status::put(input, vm.meta.uid, status::deleted(epoch, vm), plan);
    }
}

/// The VM is bound here and does not exist yet.
fn add(input: &Input<'_>, vm: &Vm, binding: &Binding, room: &mut Room, plan: &mut Plan) {
    let uid = vm.meta.uid;
    let group = match input.objects.groups.get(&vm.group) {
        Some(Ok(group)) if group.meta.uid == vm.group_uid => group,
        Some(Err(error)) => {
            let reason = format!("group {} cannot be read by this node: {error}", vm.group);
            return refuse(input, vm, binding, reason, plan);
        }
        Some(Ok(_)) | None => {
            let message = format!("its group {} is not in the fleet", vm.group);
            plan.reports.push(Report {
                uid,
                reason: ReportReason::NoGroup,
                message,
            });
            return;
        }
    };
    match room.admit(input, vm, group) {
        Admission::Refused(reason) => refuse(input, vm, binding, reason, plan),
        Admission::Waits(message) => plan.reports.push(Report {
            uid,
            reason: ReportReason::Waiting,
            message,
        }),
        Admission::Admitted => {
            super::groups::put(input, group, plan);
            let stop_after = group.replacement.map(|replacement| replacement.stop_after);
            plan.steps.push(Step::AddVm {
                vm: Box::new(new_vm(vm, binding, group.meta.generation, stop_after)),
            });
        }
    }
}

fn new_vm(
    vm: &Vm,
    binding: &Binding,
    group_generation: u64,
    stop_after: Option<Duration>,
) -> LocalVm {
    LocalVm {
        uid: vm.meta.uid,
        name: vm.meta.name.clone(),
        group: vm.group.clone(),
        group_uid: vm.group_uid,
        index: vm.index,
        epoch: binding.epoch,
        group_generation,
        stop_after,
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
