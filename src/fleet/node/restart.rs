//! Which VMs may be started, also by their restart policy.
//! Out of scope: the policy.

use std::collections::BTreeSet;

use super::{Input, LocalVm, Run, Step};
use crate::api::fleet::HOLD_AFTER_BOOT;
use crate::api::meta::Uid;
use crate::fleet::contact::Boottime;

/// The VMs that may be started: those that are never replaced, always except directly after a boot; the others only while the node has contact, their epoch is that of
/// their object, and the scheduler was informed when they end.
pub(super) fn allowed(input: &Input<'_>, steps: &[Step]) -> BTreeSet<Uid> {
    let local = input.local.values();
    let local = local.filter(|local| is_allowed(input, local, steps));
    local.map(|local| local.uid).collect()
}

/// Whether this VM may be started.
pub(super) fn is_allowed(input: &Input<'_>, local: &LocalVm, steps: &[Step]) -> bool {
    let ends = steps.iter().any(|step| match step {
        Step::StopVm { uid, .. } | Step::RemoveVm { uid, .. } => *uid == local.uid,
        _ => false,
    });
    let runs = matches!(local.run, Run::Ready | Run::NotReady);
    let may_run = match local.stop {
        Some(_) => is_confirmed(input, local),
        None => !waits_after_boot(input),
    };
    runs && !ends && may_run
}

/// The node does not know yet whether its VMs were moved while the host was off.
fn waits_after_boot(input: &Input<'_>) -> bool {
    input.now < Boottime(HOLD_AFTER_BOOT) && !input.contact.may_act(input.now)
}

fn is_confirmed(input: &Input<'_>, local: &LocalVm) -> bool {
    let object = input.objects.vms.get(&local.uid);
    let Some(vm) = object.and_then(|vm| vm.as_ref().ok()) else {
        return false;
    };
    let is_bound_here = vm.binding.as_ref().is_some_and(|binding| {
        binding.node == *input.node && binding.epoch >= local.epoch && binding.moving_from.is_none()
    });
    // The scheduler knows when this copy ends, before it exists.
    let is_reported = input
        .status(local.uid)
        .is_some_and(|status| status.epoch == local.epoch && status.stops_within.is_some());
    is_bound_here && is_reported && input.contact.may_act(input.now) && input.may_run(local.stop)
}
