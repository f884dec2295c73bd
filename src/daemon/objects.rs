//! Builds objects as the API returns them: the status computed from the store, plus data that only the daemon has.
//! Out of scope: computing the status ([`crate::status`]), watching objects (`changes`).

use super::intake_loop::IntakeLoop;
use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::api::view::{Kind, Object};
use crate::api::vm::Vm;
use crate::engine::Engine;
use crate::reconcile::{limits, storage};
use crate::status::{self, GroupFaults, StatusBuilder};
use crate::store::World;

/// The object of this name.
pub(super) fn one(
    status_builder: &StatusBuilder,
    engine: &Engine,
    intake: &IntakeLoop,
    world: &World,
    kind: Kind,
    name: &Name,
) -> Option<Object> {
    match kind {
        Kind::HostGroup => {
            let found = world.group(name)?;
            Some(group(status_builder, engine, intake, world, found))
        }
        Kind::Vm => {
            let found = world.vm_named(name)?;
            Some(vm(status_builder, engine, world, found))
        }
        Kind::Lease => {
            let found = world.lease(name)?;
            Some(Object::Lease(status_builder.lease(found)))
        }
    }
}

/// All objects of a kind, or the one of that name.
pub(super) fn objects(
    status_builder: &StatusBuilder,
    engine: &Engine,
    intake: &IntakeLoop,
    world: &World,
    kind: Kind,
    name: Option<&Name>,
) -> Vec<Object> {
    if let Some(name) = name {
        let found = one(status_builder, engine, intake, world, kind, name);
        return found.into_iter().collect();
    }
    match kind {
        Kind::HostGroup => world
            .groups()
            .map(|found| group(status_builder, engine, intake, world, found))
            .collect(),
        Kind::Vm => world
            .vms()
            .map(|found| vm(status_builder, engine, world, found))
            .collect(),
        Kind::Lease => world
            .leases()
            .map(|lease| Object::Lease(status_builder.lease(lease)))
            .collect(),
    }
}

/// Approximate maximum size of one response, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// As [`objects`], limited to the size of a response; also returns the number of objects that were left out.
pub(super) fn bounded(
    status_builder: &StatusBuilder,
    engine: &Engine,
    intake: &IntakeLoop,
    world: &World,
    kind: Kind,
    name: Option<&Name>,
) -> (Vec<Object>, usize) {
    let all = match (kind, name) {
        (Kind::Vm, None) => world.vms().count(),
        _ => {
            return (
                objects(status_builder, engine, intake, world, kind, name),
                0,
            );
        }
    };
    let mut remaining = MAX_RESPONSE_BYTES;
    let fits = |found: &&Vm| {
        let size = approximate_size(found);
        let fits = size <= remaining;
        remaining = remaining.saturating_sub(size);
        fits
    };
    let shown = world.vms().take_while(fits);
    let shown: Vec<Object> = shown
        .map(|found| vm(status_builder, engine, world, found))
        .collect();
    let more = all - shown.len();
    (shown, more)
}

/// Approximate size of a VM as JSON, in bytes. Its lists occur in its spec and in its status.
fn approximate_size(vm: &Vm) -> usize {
    const BASE: usize = 3 << 10;
    const PER_ENTRY: usize = 2 * 24;
    let policy = vm.spec.network.policy();
    let entries = policy.map_or(0, |policy| policy.allow.len() + policy.drop.len());
    BASE + entries * PER_ENTRY
}

fn group(
    status_builder: &StatusBuilder,
    engine: &Engine,
    intake: &IntakeLoop,
    world: &World,
    group: &HostGroup,
) -> Object {
    let trouble = GroupFaults {
        manifest_problems: intake.problems_of(group),
        blocked_reason: engine.blocked_reason(&group.meta.name),
    };
    let mut view = status_builder.group(world, group, &trouble);
    let max = group.spec.template.network.max_connections();
    let warning = max.and_then(|most| {
        limits::table_warning(group.spec.count, most, crate::host::conntrack::max())
    });
    view.status.warnings.extend(warning);
    let read_only = engine.store.read_only();
    let condition = read_only.map(|why| status::not_writable_condition(&group.meta, &why));
    view.status.conditions.extend(condition);
    Object::HostGroup(Box::new(view))
}

fn vm(status_builder: &StatusBuilder, engine: &Engine, world: &World, vm: &Vm) -> Object {
    let mut view = status_builder.vm(world, vm);
    let disks = engine.processes.disk_dir();
    view.status.disk = storage::existing_disk(&vm.spec.storage, disks, &vm.meta.name);
    let reason = engine.replacement_blocked_reason(vm);
    let warning = reason.map(|why| format!("not replaced although its group has changed: {why}"));
    view.status.warnings.extend(warning);
    let agent = engine.agents.condition(vm);
    view.status
        .conditions
        .extend(agent.as_ref().map(status::agent_condition));
    let read_only = engine.store.read_only();
    let condition = read_only.map(|why| status::not_writable_condition(&vm.meta, &why));
    view.status.conditions.extend(condition);
    Object::Vm(Box::new(view))
}
