//! The status keys, and the times that they report.
//! Out of scope: writing them.

use std::time::Duration;

use super::{Input, LocalVm, Plan, Run, Step};
use crate::api::meta::Uid;
use crate::fleet::contact::StopTimes;
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
            Some("it was stopped, since contact was lost or another node has it".to_owned())
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
        stops_within: later(within(local.stop), within(desired_stop(local, group)))
            .filter(|_| input.is_guarded(local.uid)),
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
        stops_within: None,
        message,
    }
}

/// The times to store for a VM: shorter ones at once, longer ones after they were reported.
pub(super) fn stop_in_effect(
    input: &Input<'_>,
    local: &LocalVm,
    group: Option<&Group>,
) -> Option<StopTimes> {
    let desired = desired_stop(local, group);
    let is_reported = |within| {
        let status = input.status(local.uid);
        let status = status.filter(|status| status.epoch == local.epoch);
        status.is_some_and(|status| later(status.stops_within, within) == status.stops_within)
    };
    let is_shorter = later(within(local.stop), within(desired)) == within(local.stop);
    match is_shorter || is_reported(within(desired)) {
        true => desired,
        false => local.stop,
    }
}

/// Those of the group; if it cannot be read, nothing changes.
fn desired_stop(local: &LocalVm, group: Option<&Group>) -> Option<StopTimes> {
    match group {
        Some(group) => stop_of(group),
        None => local.stop,
    }
}

/// The times of VMs of this group.
pub(super) fn stop_of(group: &Group) -> Option<StopTimes> {
    let after = group.replacement?.stop_after;
    let grace = group.spec.template.lifecycle.graceful_shutdown.get();
    Some(StopTimes {
        after,
        within: after.saturating_add(grace),
    })
}

fn within(stop: Option<StopTimes>) -> Option<Duration> {
    stop.map(|stop| stop.within)
}

/// The later of two; `None` is never.
fn later(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.zip(b).map(|(a, b)| a.max(b))
}
