//! The status keys, and the `stop_after` that they report.
//! Out of scope: writing them.

use std::time::Duration;

use super::{Input, LocalVm, Plan, Run, Step};
use crate::api::meta::Uid;
use crate::fleet::object::{Group, Phase, Vm, VmStatus};

/// Writes a status if it differs from that in etcd.
pub(super) fn put(input: &Input<'_>, uid: Uid, status: VmStatus, plan: &mut Plan) {
    if input.status(uid) != Some(&status) {
        plan.steps.push(Step::PutStatus {
            uid,
            status: Box::new(status),
        });
    }
}

/// The status of a local VM; `report`: why nothing is done for it.
pub(super) fn of_local(
    input: &Input<'_>,
    local: &LocalVm,
    vm: Option<&Vm>,
    report: Option<String>,
) -> VmStatus {
    let group = vm.and_then(|vm| input.group(&vm.group, vm.group_uid));
    let own = match local.run {
        Run::Ready => None,
        Run::NotReady => local.message.clone(),
        Run::Stopped => {
            Some("it was stopped, since contact was lost or it is bound to no node".to_owned())
        }
        Run::Deleting => Some("it is being deleted".to_owned()),
    };
    VmStatus {
        epoch: local.epoch,
        phase: match local.run {
            Run::Ready => Phase::Ready,
            Run::NotReady | Run::Deleting => Phase::NotReady,
            Run::Stopped => Phase::Stopped,
        },
        group_generation: local.group_generation,
        address: local.address,
        stop_after: later(local.stop_after, desired_stop_after(local, group)),
        message: report.or(own),
    }
}

/// The status of a VM that does not exist here any more.
pub(super) fn deleted(epoch: u64, vm: &Vm) -> VmStatus {
    final_status(epoch, vm, Phase::Deleted, None)
}

/// The status of a VM that is refused.
pub(super) fn refused(epoch: u64, vm: &Vm, reason: String) -> VmStatus {
    final_status(epoch, vm, Phase::Refused, Some(reason))
}

fn final_status(epoch: u64, vm: &Vm, phase: Phase, message: Option<String>) -> VmStatus {
    VmStatus {
        epoch,
        phase,
        group_generation: vm.group_generation,
        address: None,
        stop_after: None,
        message,
    }
}

/// The `stop_after` to store for a VM: a shorter time at once, a longer one after it was reported.
pub(super) fn stop_after_in_effect(
    input: &Input<'_>,
    local: &LocalVm,
    group: Option<&Group>,
) -> Option<Duration> {
    let desired = desired_stop_after(local, group);
    let is_shorter = later(local.stop_after, desired) == local.stop_after;
    let reported = input
        .status(local.uid)
        .filter(|status| status.epoch == local.epoch)
        .is_some_and(|status| later(status.stop_after, desired) == status.stop_after);
    match is_shorter || reported {
        true => desired,
        false => local.stop_after,
    }
}

/// That of the group; if it cannot be read, nothing changes.
fn desired_stop_after(local: &LocalVm, group: Option<&Group>) -> Option<Duration> {
    match group {
        Some(group) => group.replacement.map(|replacement| replacement.stop_after),
        None => local.stop_after,
    }
}

/// The later of two; `None` is never.
fn later(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.zip(b).map(|(a, b)| a.max(b))
}
