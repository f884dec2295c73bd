//! Whether an object cannot become ready without a change by the user, so that waiting for it is pointless.
//! Out of scope: which reasons are terminal ([`crate::api::condition::Reason::is_terminal`]).

use std::time::Duration;

use super::super::rows;
use super::super::target::Target;
use super::reasons::{condition, not_ready_reason};
use crate::api::condition::Status;
use crate::api::view::{ConditionView, GroupView, Kind, Object, VmView};
use crate::wire::Client;

/// How long a terminal condition must hold: after a change of a manifest or a command, a condition may be that of the state before.
const SETTLE: Duration = Duration::from_millis(500);

/// Why the object cannot become ready; `None` if it can.
pub(super) async fn reasons(
    client: &Client,
    target: &Target,
    object: &Object,
) -> Option<Vec<String>> {
    if !may_be_terminal(object) {
        return None;
    }
    tokio::time::sleep(SETTLE).await;
    let list = client.get(target.kind, Some(&target.name)).await.ok()?;
    match list.items.first()? {
        Object::Vm(vm) => is_terminal_vm(vm).then(|| vec![not_ready_reason(vm)]),
        Object::HostGroup(group) => {
            let vms = client.get(Kind::Vm, None).await.ok()?;
            let reasons = of_group(group, &vms.items);
            (!reasons.is_empty()).then_some(reasons)
        }
        Object::Lease(_) => None,
    }
}

fn may_be_terminal(object: &Object) -> bool {
    match object {
        Object::Vm(vm) => is_terminal_vm(vm),
        Object::HostGroup(group) => terminal_condition(group).is_some(),
        Object::Lease(_) => false,
    }
}

fn terminal_condition(group: &GroupView) -> Option<&ConditionView> {
    let mut conditions = group.status.conditions.iter();
    let is_terminal = |found: &&ConditionView| {
        found.status == Status::False && found.reason.is_terminal() && found.kind == "Ready"
    };
    conditions
        .find(is_terminal)
        .filter(|_| !group.metadata.deleting)
}

/// The VMs of a group that cannot become ready. A VM with another spec than the group's is changed or replaced first. Without such a VM: why
/// the group does not replace its VMs.
fn of_group(group: &GroupView, objects: &[Object]) -> Vec<String> {
    let Some(own) = terminal_condition(group) else {
        return Vec::new();
    };
    let template = &group.spec.template;
    let is_current = |vm: &&VmView| match &vm.on_demand {
        None => vm.spec == *template,
        Some(overrides) => vm.spec == overrides.spec(template),
    };
    let vms = objects.iter().filter_map(|object| match object {
        Object::Vm(vm) => Some(&**vm),
        Object::HostGroup(_) | Object::Lease(_) => None,
    });
    let members: Vec<&VmView> = vms
        .filter(|vm| vm.metadata.group.as_ref() == Some(&group.metadata.name))
        .collect();
    let current = members.iter().copied().filter(is_current);
    let reasons: Vec<String> = current
        .filter(|vm| is_terminal_vm(vm))
        .map(not_ready_reason)
        .collect();
    let is_blocked = members.iter().any(|vm| !is_current(vm));
    match reasons.is_empty() && is_blocked {
        true => vec![format!(
            "hostgroup/{}: {}",
            group.metadata.name,
            condition(own)
        )],
        false => reasons,
    }
}

/// Whether the first condition that is not True is terminal for the VM's generation.
fn is_terminal_vm(vm: &VmView) -> bool {
    let generation = vm.metadata.generation;
    let blocking = rows::missing(&vm.status.conditions);
    let is_terminal = blocking.is_some_and(|found| {
        found.reason.is_terminal() && Some(found.observed_generation) == generation
    });
    is_terminal && !vm.metadata.deleting
}
