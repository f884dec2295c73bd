//! Conditions as the API returns them: those of the stages, and those of a VM and its group that are computed from them.
//! Out of scope: the other fields of an object.

use crate::api::condition::{Condition, Reason, Status};
use crate::api::meta::Meta;
use crate::api::stage::{STAGES, Stage};
use crate::api::view::ConditionView;
use crate::api::vm::Vm;
use crate::status::host_network::{HOST_NETWORK, host_fault_condition};
use crate::store::{HostFault, World};

/// The condition of each stage; none for a stage that was never acquired.
pub(super) type StageConditions = [(Stage, Option<Condition>); 4];

pub(super) fn known(world: &World, vm: &Vm) -> StageConditions {
    STAGES.map(|stage| {
        let stage_status = world.status(vm.meta.uid, stage);
        let condition = stage_status.map(|stage_status| match world.unobserved_since(vm, stage) {
            None => stage_status.condition.clone(),
            Some(since) => Condition {
                status: Status::Unknown,
                reason: Reason::NotObserved,
                message: "not observed since sliced was started".to_owned(),
                since,
                observed_generation: 0,
            },
        });
        (stage, condition)
    })
}

/// Every stage is Ready, and this process has observed that.
pub(super) fn is_ready_and_observed(world: &World, vm: &Vm) -> bool {
    world.is_ready(vm) && world.is_observed(vm)
}

/// `Ready`: the first stage that is not ready determines reason and message.
pub(super) fn ready_condition(
    meta: &Meta,
    ready: bool,
    known: &StageConditions,
    host: Option<HostFault<'_>>,
) -> Condition {
    let since = known
        .iter()
        .filter_map(|(_, condition)| Some(condition.as_ref()?.since))
        .max()
        .unwrap_or(meta.created_at);
    let (reason, message) = match (ready, meta.deleting) {
        (true, _) => (Reason::Converged, String::new()),
        (false, true) => (Reason::Terminating, String::new()),
        (false, false) => match host {
            Some(HostFault::Unenforced(host)) => {
                let found = host_fault_condition(host, meta.generation);
                (
                    found.reason,
                    format!("{}: {}", Stage::Firewall, found.message),
                )
            }
            Some(HostFault::ConflictingWriter(host)) => {
                (host.reason, format!("{HOST_NETWORK}: {}", host.message))
            }
            None => first_not_ready(meta, known),
        },
    };
    Condition {
        status: match reason {
            Reason::NotObserved => Status::Unknown,
            _ => status_from(ready),
        },
        reason,
        message,
        since,
        observed_generation: meta.generation,
    }
}

fn first_not_ready(meta: &Meta, stages: &StageConditions) -> (Reason, String) {
    let is_true = |condition: &Condition| condition.is_true_at(meta.generation);
    let not_ready = stages
        .iter()
        .find(|(_, condition)| !condition.as_ref().is_some_and(is_true));
    match not_ready {
        None => (Reason::Converged, String::new()),
        Some((stage, None)) => (Reason::Waiting, format!("{stage} has not started")),
        Some((stage, Some(condition))) => {
            let reason = match condition.status {
                Status::True => Reason::Converging,
                Status::False | Status::Unknown => condition.reason,
            };
            (reason, format!("{stage}: {}", condition.message))
        }
    }
}

pub(super) fn not_ready_message(world: &World, vm: &Vm) -> String {
    let condition = ready_condition(&vm.meta, false, &known(world, vm), world.host_fault(vm));
    // The message is sufficient, if there is one behind the name of the stage.
    match condition.message.trim_end().strip_suffix(':') {
        Some(stage) => format!("{stage}: {}", condition.reason),
        None if condition.message.is_empty() => condition.reason.to_string(),
        None => condition.message,
    }
}

/// Replaces True for an older generation by Unknown: it says nothing about the current generation.
pub(super) fn for_generation(condition: &Condition, generation: u64) -> Condition {
    let observed = condition.observed_generation;
    match condition.status == Status::True && observed != generation {
        true => Condition {
            status: Status::Unknown,
            reason: Reason::Waiting,
            message: format!(
                "generation {generation} has not been observed yet; generation {observed} was True"
            ),
            ..condition.clone()
        },
        false => condition.clone(),
    }
}

pub(super) fn condition_view(kind: String, condition: &Condition) -> ConditionView {
    ConditionView {
        kind,
        status: condition.status,
        reason: condition.reason,
        message: condition.message.clone(),
        since: condition.since,
        observed_generation: condition.observed_generation,
    }
}

pub(super) fn status_from(is_true: bool) -> Status {
    match is_true {
        true => Status::True,
        false => Status::False,
    }
}
