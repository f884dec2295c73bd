//! The goals `agent` and `userdata`: the agent of a VM's guest answers; the guest has all that it is to get, and its userdata has succeeded.
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

/// Whether the guest has all that it is to get, and its userdata, if there is any, has succeeded.
pub(super) fn is_provisioned(object: &Object) -> bool {
    let Object::Vm(vm) = object else {
        return false;
    };
    let generation = vm.metadata.generation;
    condition(vm).is_some_and(|found| {
        found.reason == Reason::Answering && Some(found.observed_generation) == generation
    }) && !vm.metadata.deleting
}

/// Why the userdata cannot succeed without a change by the user.
pub(super) fn failure(object: &Object) -> Option<String> {
    let Object::Vm(vm) = object else {
        return None;
    };
    match condition(vm) {
        Some(found) if found.reason == Reason::UserdataFailed => reason(object),
        Some(_) | None => None,
    }
}
