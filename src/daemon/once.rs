//! What `--once` reports when not everything converged: each object with its conditions that are not True.
//! Out of scope: whether everything converged (`wakes`).

use std::collections::BTreeSet;

use super::intake_loop::IntakeLoop;
use super::objects::objects;
use crate::api::condition::{Condition, Reason, Status};
use crate::api::plain_text;
use crate::api::view::{ConditionView, Kind, Object};
use crate::engine::Engine;
use crate::status::StatusBuilder;
use crate::store::World;

/// The condition of a whole object.
const READY: &str = "Ready";

/// The maximum number of lines.
const MAX_LINES: usize = 100;

/// One line for each cause, such as `vm/sandbox-1: Vmm is False (Invalid): …`; never empty.
pub(super) fn report(engine: &Engine, intake: &IntakeLoop) -> Vec<String> {
    let builder = StatusBuilder {
        instance: engine.instance.clone(),
        run_dir: engine.run_dir.clone(),
    };
    let mut lines = intake.problems();
    lines.extend(engine.store.read(|world| {
        let of = |kind| objects(&builder, engine, intake, world, kind, None);
        let mut lines = host_network(world);
        let vms = of(Kind::Vm);
        let (mut of_vms, mut faulty) = (Vec::new(), BTreeSet::new());
        for vm in vms.iter().filter(|vm| !is_as_requested(world, vm)) {
            of_vms.extend(of_vm(vm));
            faulty.extend(vm.metadata().group.clone());
        }
        for group in &of(Kind::HostGroup) {
            let is_explained = faulty.contains(&group.metadata().name);
            lines.extend(of_group(group, is_explained));
        }
        lines.extend(of_vms);
        lines
    }));
    if let Some(more) = lines.len().checked_sub(MAX_LINES).filter(|more| *more > 0) {
        lines.truncate(MAX_LINES);
        lines.push(format!("{more} more"));
    }
    if lines.is_empty() {
        lines.push("the reconciliation has not ended yet".to_owned());
    }
    let one_line = |line: &String| plain_text::message(line).into_owned();
    lines.iter().map(one_line).collect()
}

fn host_network(world: &World) -> Vec<String> {
    let Some(status) = world.host_network_status() else {
        return Vec::new();
    };
    let writer = status.conflicting_writer.as_ref();
    let writer = writer.map(|writer| &writer.condition);
    let unenforced = status.unenforced.as_ref();
    let found = [Some(&status.condition), unenforced, writer];
    let conditions = found.into_iter().flatten();
    let not_true = conditions.filter(|condition| condition.status != Status::True);
    let line = |condition: &Condition| {
        let (status, reason) = (condition.status, condition.reason);
        format!("host: {status:?} ({reason}): {}", condition.message)
    };
    let mut lines: Vec<String> = not_true.map(line).collect();
    lines.dedup();
    lines
}

/// Whether a VM is Ready, or paused or stopped as requested.
fn is_as_requested(world: &World, object: &Object) -> bool {
    let vm = object.metadata().uid.and_then(|uid| world.vm(uid));
    vm.is_some_and(|vm| world.is_settled(vm) && world.is_observed(vm))
}

/// The stages of a VM that are not as requested; if there are none, why it is not Ready.
fn of_vm(object: &Object) -> Vec<String> {
    let Object::Vm(vm) = object else {
        return Vec::new();
    };
    let conditions = &vm.status.conditions;
    let is_stage = |found: &ConditionView| found.kind != READY;
    // The stages after one that failed only wait for it.
    let is_cause = |found: &ConditionView| {
        is_stage(found) && !matches!(found.reason, Reason::Waiting | Reason::NotObserved)
    };
    let causes = not_true(object, conditions, is_cause);
    let stages = not_true(object, conditions, is_stage);
    let ready = not_true(object, conditions, |found| !is_stage(found));
    let mut lists = [causes, stages, ready].into_iter();
    lists.find(|list| !list.is_empty()).unwrap_or_default()
}

/// What concerns the group itself. `is_explained`: one of its VMs is reported, so that it is not Ready.
fn of_group(object: &Object, is_explained: bool) -> Vec<String> {
    let Object::HostGroup(group) = object else {
        return Vec::new();
    };
    let conditions = &group.status.conditions;
    not_true(object, conditions, |found| {
        found.kind != READY || !is_explained
    })
}

fn not_true(
    object: &Object,
    conditions: &[ConditionView],
    is_shown: impl Fn(&ConditionView) -> bool,
) -> Vec<String> {
    let (kind, name) = (object.kind(), &object.metadata().name);
    let found = conditions.iter();
    let found = found.filter(|found| found.status != Status::True && is_shown(found));
    let line = |found: &ConditionView| {
        let (status, reason) = (found.status, found.reason);
        let message = match found.message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        format!(
            "{kind}/{name}: {} is {status:?} ({reason}){message}",
            found.kind
        )
    };
    found.map(line).collect()
}
