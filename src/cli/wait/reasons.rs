//! Why objects have not reached the state that a command waits for, as text for users.
//! Out of scope: waiting.

use super::super::rows;
use super::super::target::Target;
use crate::api::condition::Reason;
use crate::api::view::{ConditionView, Kind, Object, VmView};
use crate::wire::Client;

/// How a condition message names the action that runs DEL (the text of that action's `Display`).
const DETACH: &str = "detach from CNI network";

/// What blocks a deletion in addition to the object's own finalizers. For a group: each of its VMs that is being deleted, with the
/// stages that it has acquired and what the highest of these waits for; for a VM: only the latter.
pub(super) async fn holders(client: &Client, target: &Target, object: &Object) -> Vec<String> {
    let group = match object {
        Object::Vm(vm) if vm.metadata.deleting => {
            let name = &vm.metadata.name;
            let reason = blocked_reason(vm, target).map(|why| format!("vm/{name}: {why}"));
            return reason.into_iter().collect();
        }
        Object::Vm(_) | Object::Lease(_) => return Vec::new(),
        Object::HostGroup(group) => &group.metadata.name,
    };
    let vms = match client.get(Kind::Vm, None).await {
        Ok(list) => list.items,
        Err(error) => return error.causes(),
    };
    let blocker = |object: &Object| match object {
        Object::Vm(vm) if vm.metadata.group.as_ref() == Some(group) && vm.metadata.deleting => {
            let stages = vm.metadata.finalizers.join(", ");
            let why = blocked_reason(vm, target).map_or_else(String::new, |why| format!(": {why}"));
            Some(format!(
                "vm/{} has finalizers {stages}{why}",
                vm.metadata.name
            ))
        }
        Object::Vm(_) | Object::HostGroup(_) | Object::Lease(_) => None,
    };
    vms.iter().filter_map(blocker).collect()
}

/// What the deletion of a VM waits for; if a forced deletion of the target skips this wait, with the command for it.
fn blocked_reason(vm: &VmView, target: &Target) -> Option<String> {
    let blocking = blocking_condition(vm)?;
    let is_forceable = match blocking.reason {
        Reason::Stopping => true,
        Reason::ActionFailed => blocking.message.starts_with(DETACH),
        _ => false,
    };
    let reason = condition(blocking);
    Some(match is_forceable {
        true => format!("{reason}; `slicectl delete {target} --force` skips this wait"),
        false => reason,
    })
}

/// The condition of the highest stage that a VM has acquired, which is released first.
fn blocking_condition(vm: &VmView) -> Option<&ConditionView> {
    let stage = vm.metadata.finalizers.last()?;
    let highest = stage.rsplit('/').next()?;
    let mut conditions = vm.status.conditions.iter();
    conditions.find(|condition| {
        condition.kind.eq_ignore_ascii_case(highest) && !condition.message.is_empty()
    })
}

/// The condition of each VM that is not ready; for a group with ready VMs only, its own.
pub(super) async fn not_ready_reasons(client: &Client, object: &Object) -> Vec<String> {
    match object {
        Object::Vm(vm) => vec![not_ready_reason(vm)],
        Object::Lease(_) => Vec::new(),
        Object::HostGroup(group) => {
            let name = &group.metadata.name;
            let vms = match client.get(Kind::Vm, None).await {
                Ok(list) => list.items,
                Err(error) => return error.causes(),
            };
            let mut causes: Vec<String> = vms
                .iter()
                .filter_map(|object| match object {
                    Object::Vm(vm) => Some(vm),
                    Object::HostGroup(_) | Object::Lease(_) => None,
                })
                .filter(|vm| vm.metadata.group.as_ref() == Some(name) && !vm.status.ready)
                .map(|vm| not_ready_reason(vm))
                .collect();
            if causes.is_empty() {
                // The condition may be newer than the last change of the watch.
                let current = client.get(Kind::HostGroup, Some(name)).await;
                let now = current.map(|list| list.items).unwrap_or_default();
                let group = now.iter().find_map(|object| match object {
                    Object::HostGroup(group) => Some(group),
                    Object::Vm(_) | Object::Lease(_) => None,
                });
                let conditions = group.map(|group| &group.status.conditions);
                let own_condition = conditions.and_then(|conditions| rows::missing(conditions));
                causes.extend(
                    own_condition.map(|found| format!("hostgroup/{name}: {}", condition(found))),
                );
            }
            causes
        }
    }
}

pub(super) fn not_ready_reason(vm: &VmView) -> String {
    let reason = rows::missing(&vm.status.conditions).map_or_else(
        || "its latest generation is not observed yet".to_owned(),
        condition,
    );
    format!("vm/{}: {reason}", vm.metadata.name)
}

/// `Firewall is False (Conflict): chain … is not ours`.
pub(super) fn condition(condition: &ConditionView) -> String {
    let summary = format!(
        "{} is {:?} ({})",
        condition.kind, condition.status, condition.reason
    );
    match condition.message.is_empty() {
        true => summary,
        false => format!("{summary}: {}", condition.message),
    }
}
