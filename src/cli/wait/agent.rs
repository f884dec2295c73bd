//! The goal `agent`: the agent of a VM's guest answers.
//! Out of scope: waiting.

use super::super::rows::AGENT;
use crate::api::condition::{Reason, Status};
use crate::api::view::{ConditionView, Object, VmView};

fn condition(vm: &VmView) -> Option<&ConditionView> {
    vm.status.conditions.iter().find(|it| it.kind == AGENT)
}

/// Whether the agent answers.
pub(super) fn answers(object: &Object) -> bool {
    let Object::Vm(vm) = object else {
        return false;
    };
    let answers = condition(vm).is_some_and(|found| found.status == Status::True);
    answers && !vm.metadata.deleting
}

/// Why the agent does not answer. `None`: the VM has no such condition.
pub(super) fn reason(object: &Object) -> Option<String> {
    let Object::Vm(vm) = object else {
        return None;
    };
    let found = condition(vm)?;
    Some(format!("vm/{}: {}", vm.metadata.name, found.message))
}

/// Why the agent cannot answer without a change by the user.
pub(super) fn obstacle(object: &Object) -> Option<String> {
    let Object::Vm(vm) = object else {
        return None;
    };
    match condition(vm) {
        Some(found) if found.reason == Reason::Disabled => reason(object),
        Some(_) | None => None,
    }
}
