//! Conditions of the host that VMs and groups report: rules that are not known to be in place, and obstacles to their packets.
//! Out of scope: observing the host (`reconcile::host_network`).

use ipnetwork::Ipv4Network;

use crate::api::condition::{Condition, Reason, Status};
use crate::api::network::NetworkSpec;
use crate::api::stage::STAGES;
use crate::api::view::ConditionView;
use crate::api::vm::Vm;
use crate::store::{HostFault, World};

use super::{condition_view, known, ready_condition};

/// The type of the condition about the host network of a VM.
pub(super) const HOST_NETWORK: &str = "HostNetwork";

/// The condition while the host's rules that restrict the VM are not known to be in place.
pub(super) fn host_fault_condition(found: &Condition, generation: u64) -> Condition {
    Condition {
        status: Status::False,
        message: format!(
            "forwarding is disabled, because the host's rules are not known to be in place: {}",
            found.message
        ),
        observed_generation: generation,
        ..found.clone()
    }
}

/// Returns warnings about rules and settings of the host that keep packets of the VM from passing.
pub(super) fn host_warnings(world: &World, vm: &Vm) -> Vec<String> {
    let Some(host_network) = world.host_network_status() else {
        return Vec::new();
    };
    let common = match &vm.spec.network {
        NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_) => host_network.warnings.clone(),
        NetworkSpec::Cni(_) => Vec::new(),
    };
    let ip = world.lease(&vm.meta.name).map(|lease| lease.address.ip());
    let is_affected = |range: &Ipv4Network| ip.is_some_and(|ip| range.contains(ip));
    let drops = host_network
        .drops
        .iter()
        .filter(|(range, _)| is_affected(range));
    let for_range = drops.map(|(_, message)| message.clone());
    common.into_iter().chain(for_range).collect()
}

/// Returns a condition with these warnings and a conflicting writer; none if there is neither.
pub(super) fn host_condition(world: &World, vm: &Vm, warnings: &[String]) -> Option<ConditionView> {
    let host_network = world.host_network_status()?;
    let conflict = match world.host_fault(vm) {
        Some(HostFault::ConflictingWriter(writer)) => Some(writer),
        Some(HostFault::Unenforced(_)) | None => None,
    };
    let messages = conflict.map(|writer| &writer.message).into_iter();
    let messages: Vec<&str> = messages.chain(warnings).map(String::as_str).collect();
    if messages.is_empty() {
        return None;
    }
    let condition = Condition {
        status: Status::False,
        reason: conflict.map_or(Reason::Conflict, |writer| writer.reason),
        message: messages.join("; "),
        since: conflict.map_or(host_network.condition.since, |writer| writer.since),
        observed_generation: vm.meta.generation,
    };
    Some(condition_view(HOST_NETWORK.into(), &condition))
}

/// The reason of a group for a VM that is not Ready: the VM's own reason if waiting does not help.
pub(super) fn group_reason(world: &World, vm: &Vm) -> Reason {
    let reason = ready_condition(&vm.meta, false, &known(world, vm), world.host_fault(vm)).reason;
    match reason {
        Reason::Contested | Reason::Conflict => reason,
        _ if is_stuck(world, vm) => reason,
        _ => Reason::Converging,
    }
}

/// Whether a stage of the VM has a fault that only a change of the spec or of the host can end, or that may last: other VMs keep their
/// addresses, and a VMM that ends again and again.
pub(super) fn is_stuck(world: &World, vm: &Vm) -> bool {
    let uid = vm.meta.uid;
    let conditions = STAGES.into_iter().filter_map(|stage| {
        let status = world.status(uid, stage)?;
        Some(&status.condition)
    });
    let mut current = conditions.filter(|found| found.observed_generation == vm.meta.generation);
    current.any(|found| {
        let may_last = matches!(found.reason, Reason::RangeExhausted | Reason::CrashLoop);
        found.reason.is_terminal() || may_last
    })
}
