//! Computes which VMs of a group would be created, changed, replaced and deleted if a draft were applied.
//! Out of scope: the steps for each VM (`steps`); warnings (`warnings`).

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt};

use super::MAX_PREVIEWS;
use crate::api::changes::{self, Effect, FieldChange};
use crate::api::host_group::{HostGroup, UpdatePolicy};
use crate::api::manifest::Draft;
use crate::api::meta::{Name, Uid};
use crate::api::view::{Applied, VmChange, VmDiff};
use crate::api::vm::Vm;
use crate::engine::Engine;
use crate::reconcile::group::{self, Preflight, PreflightCheck};
use crate::reconcile::storage;
use crate::store::World;

/// Number of preflight checks that run at the same time.
const CONCURRENCY: usize = 8;

/// What a draft would change.
pub struct GroupChange<'d> {
    /// The draft.
    pub draft: &'d Draft,
    /// The effect on the group.
    pub applied: Applied,
    /// The fields that differ; empty for a new group.
    pub fields: Vec<FieldChange>,
    /// The VMs that change, by index.
    pub changes: BTreeMap<u32, VmDiff>,
    /// VMs that would not be replaced, each with the reason.
    pub not_replaced: BTreeMap<Name, String>,
    pub(super) desired: group::Desired,
    /// All actions of the update, including every replacement.
    pub(super) plan: Vec<group::Action>,
    pub(super) vms: Vec<Vm>,
    pub(super) update_before: Option<UpdatePolicy>,
}

impl GroupChange<'_> {
    /// Whether a VM would be created.
    pub fn creates(&self) -> bool {
        let mut changes = self.changes.values();
        changes.any(|vm| vm.change == VmChange::Add)
    }

    /// An existing VM of the group.
    pub(super) fn vm(&self, uid: Uid) -> Option<&Vm> {
        self.vms.iter().find(|vm| vm.meta.uid == uid)
    }
}

/// The changes of all drafts, in order.
pub async fn changes<'d>(engine: &Engine, drafts: &'d [Draft]) -> Vec<GroupChange<'d>> {
    let mut groups = Vec::new();
    for draft in drafts {
        groups.push(of_group(engine, draft).await);
    }
    groups
}

async fn of_group<'d>(engine: &Engine, draft: &'d Draft) -> GroupChange<'d> {
    let mut preflight = Preflight::default();
    let mut change = loop {
        let (change, checks) = engine.store.read(|world| compute(world, draft, &preflight));
        if checks.is_empty() {
            break change;
        }
        let run = |check: PreflightCheck| async move {
            let found = engine.preflight_check(&check.vm, &check.spec).await;
            (check, found)
        };
        let results: Vec<_> = stream::iter(checks)
            .map(run)
            .buffered(CONCURRENCY)
            .collect()
            .await;
        for (check, found) in results {
            preflight.note(check, found);
        }
    };
    let disks = engine.processes.disk_dir();
    let GroupChange { changes, vms, .. } = &mut change;
    for vm in vms.iter() {
        if let Some(found) = changes.get_mut(&vm.index) {
            let is_deleted = matches!(found.change, VmChange::Replace | VmChange::Delete);
            let storage = &vm.spec.storage;
            found.deletes_disk = is_deleted
                && !storage.persistent
                && storage::existing_disk(storage, disks, &vm.meta.name).is_some();
        }
    }
    change
}

/// The change of a group, and the preflight checks that its replacements need first.
fn compute<'d>(
    world: &World,
    draft: &'d Draft,
    preflight: &Preflight,
) -> (GroupChange<'d>, Vec<PreflightCheck>) {
    let name = &draft.name;
    let desired = group::becoming(world, name, &draft.spec);
    let observed = group::observed(world, name, &desired, preflight);
    let outdated = group::outdated(&desired, &observed);
    let checked = outdated.iter().copied().take(MAX_PREVIEWS);
    let checks = preflight.missing_checks(world, &desired, checked);
    let not_replaced = group::blocked_vms(world, name, &desired, preflight);
    let vms: Vec<Vm> = world.vms_of(name).cloned().collect();
    // The plan contains only the next replacement.
    let is_replaced = |uid: &Uid| outdated.contains(uid);
    let mut plan = group::plan(&desired, &observed);
    plan.retain(|action| !matches!(action, group::Action::Delete { uid } if is_replaced(uid)));
    let named = |uid: &Uid| vms.iter().find(|vm| vm.meta.uid == *uid);
    let replaced = outdated
        .iter()
        .filter(|uid| named(uid).is_some_and(|vm| !not_replaced.contains_key(&vm.meta.name)));
    plan.extend(replaced.map(|uid| group::Action::Delete { uid: *uid }));
    let existing = world.group(name);
    let living = existing.filter(|group| !group.meta.deleting);
    let is_misplaced = observed.members.values().any(|member| member.misplaced);
    let update_before = existing.map(|group| group.spec.update);
    let mut vm_changes = vm_changes(draft, &desired, &plan, &vms, update_before);
    for vm in vms
        .iter()
        .filter(|vm| not_replaced.contains_key(&vm.meta.name))
    {
        let kept = || VmDiff::new(&vm.meta.name, VmChange::NotReplaced);
        vm_changes.entry(vm.index).or_insert_with(kept);
    }
    let change = GroupChange {
        draft,
        applied: match living {
            None => Applied::Created,
            Some(group) if group.spec == draft.spec => Applied::Unchanged,
            Some(_) => Applied::Configured,
        },
        fields: living
            .map(|group| fields(group, draft, is_misplaced))
            .unwrap_or_default(),
        changes: vm_changes,
        not_replaced,
        desired,
        plan,
        vms,
        update_before,
    };
    (change, checks)
}

/// The fields by which a group allows addresses.
const ADDRESSES: [&str; 3] = ["addresses", "range", "cni.ips"];

/// The fields that differ. Whether the addresses can change live depends on the addresses that the VMs have.
fn fields(group: &HostGroup, draft: &Draft, is_misplaced: bool) -> Vec<FieldChange> {
    let mut fields = changes::changes(&group.spec, &draft.spec);
    let addresses = |field: &&mut FieldChange| ADDRESSES.contains(&field.field.as_str());
    for field in fields.iter_mut().filter(addresses) {
        if is_misplaced {
            field.effect = Effect::Replaces;
        }
    }
    fields
}

/// The VMs that change, by index. A VM that is changed and then deleted is only deleted.
fn vm_changes(
    draft: &Draft,
    desired: &group::Desired,
    plan: &[group::Action],
    vms: &[Vm],
    update_before: Option<UpdatePolicy>,
) -> BTreeMap<u32, VmDiff> {
    let mut found = BTreeMap::new();
    let mut add = |index: u32, name: &Name, change| {
        found.insert(index, VmDiff::new(name, change));
    };
    if update_before.is_some_and(|before| before != desired.update) {
        // The record of each VM contains the update policy.
        let living = vms.iter().filter(|vm| !vm.meta.deleting);
        living.for_each(|vm| add(vm.index, &vm.meta.name, VmChange::Update));
    }
    let vm = |uid: &Uid| vms.iter().find(|vm| vm.meta.uid == *uid);
    for action in plan {
        match action {
            group::Action::Create { index, order, .. } => {
                let ordered = order.as_ref().map(|order| order.name.clone());
                let name = ordered.or_else(|| HostGroup::vm_name(&draft.name, *index));
                if let Some(name) = name {
                    add(*index, &name, VmChange::Add);
                }
            }
            group::Action::Update { uid, .. } => {
                if let Some(vm) = vm(uid) {
                    add(vm.index, &vm.meta.name, VmChange::Update);
                }
            }
            group::Action::Delete { uid } => {
                if let Some(vm) = vm(uid) {
                    let change = match desired.requires(vm.index) {
                        true => VmChange::Replace,
                        false => VmChange::Delete,
                    };
                    add(vm.index, &vm.meta.name, change);
                }
            }
            group::Action::Release { .. } | group::Action::RemoveGroup => {}
        }
    }
    found
}
