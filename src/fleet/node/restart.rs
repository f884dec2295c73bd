//! Which VMs may be restarted by their restart policy.
//! Out of scope: the policy.

use std::collections::BTreeSet;

use super::vm::is_moving_from;
use super::{Input, LocalVm, Run, Step};
use crate::api::meta::Uid;

/// The VMs that may be restarted: those that are never replaced, always; the others only while the node has contact and their
/// epoch is that of their object.
pub(super) fn allowed(input: &Input<'_>, steps: &[Step]) -> BTreeSet<Uid> {
    let ends = |local: &LocalVm| {
        steps.iter().any(|step| match step {
            Step::StopVm { uid, .. } | Step::RemoveVm { uid, .. } => *uid == local.uid,
            _ => false,
        })
    };
    let may_restart = |local: &&LocalVm| {
        let runs = matches!(local.run, Run::Ready | Run::NotReady);
        runs && !ends(local) && (local.stop_after.is_none() || is_confirmed(input, local))
    };
    let local = input.local.values().filter(may_restart);
    local.map(|local| local.uid).collect()
}

fn is_confirmed(input: &Input<'_>, local: &LocalVm) -> bool {
    let object = input.objects.vms.get(&local.uid);
    let Some(vm) = object.and_then(|vm| vm.as_ref().ok()) else {
        return false;
    };
    let is_current = vm.binding.as_ref().is_some_and(|binding| {
        let is_bound_here = binding.node == *input.node && binding.epoch >= local.epoch;
        is_bound_here || is_moving_from(input, binding, local)
    });
    is_current && input.contact.may_act(input.now) && input.may_run(local.stop_after)
}
