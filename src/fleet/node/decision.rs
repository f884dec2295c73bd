//! What an object requests of a local VM.
//! Out of scope: VMs that do not exist here yet.

use super::{Input, LocalVm, RemoveCause, ReportReason};
use crate::fleet::object::{Binding, Vm};

/// What an object requests of the local VM.
pub(super) enum Decision {
    /// It is deleted.
    Remove(RemoveCause),
    /// It runs, with this epoch.
    Run(u64),
    /// It is stopped and kept.
    Stop,
    /// It is left as it is.
    Keep(ReportReason, String),
}

/// The decision.
pub(super) fn decide(input: &Input<'_>, vm: &Vm, local: &LocalVm) -> Decision {
    if vm.meta.deleting {
        return Decision::Remove(RemoveCause::Deleting {
            forced: vm.meta.forced,
        });
    }
    let is_here = |binding: &&Binding| binding.node == *input.node;
    if let Some(binding) = vm.binding.as_ref().filter(is_here)
        && binding.epoch >= local.epoch
    {
        return Decision::Run(binding.epoch);
    }
    let is_bound_here = vm.binding.as_ref().is_some_and(|b| is_here(&b));
    if vm.epoch > local.epoch && !is_bound_here {
        let mut previous = vm.previous.iter();
        if previous.any(|copy| copy.node == *input.node && copy.keep) {
            return Decision::Stop;
        }
        let moving = vm.binding.as_ref().and_then(|b| b.moving_from.as_ref());
        let moving = moving.filter(|from| from.node == *input.node);
        return Decision::Remove(RemoveCause::Superseded {
            epoch: vm.epoch,
            delete_disk: moving.is_some_and(|from| from.delete_disk),
        });
    }
    let Some(binding) = &vm.binding else {
        let message = "it is bound to no node; that is no request to delete it";
        return Decision::Keep(ReportReason::Unbound, message.to_owned());
    };
    Decision::Keep(
        ReportReason::StaleEpoch,
        format!(
            "its object has the epoch {} on node {}, and this VM has {}; was etcd restored?",
            binding.epoch, binding.node, local.epoch
        ),
    )
}

/// Whether the local VM is deleted.
pub(super) fn is_removed(input: &Input<'_>, vm: &Vm, local: &LocalVm) -> bool {
    matches!(decide(input, vm, local), Decision::Remove(_))
}
