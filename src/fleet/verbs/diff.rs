//! What applying groups would change.
//! Out of scope: applying them; which node a VM gets.

use std::collections::BTreeSet;

use super::super::kv::Client;
use super::super::object::{Group, Vm};
use super::apply::check;
use super::{Error, Snapshot};
use crate::api::changes::{self, placement_changes};
use crate::api::host_group::{HostGroup, UpdatePolicy};
use crate::api::manifest::Draft;
use crate::api::view::{Applied, ApplyResult, DiffResult, GroupDiff, PlanCounts, VmChange, VmDiff};

/// What applying these groups would change.
///
/// # Errors
/// Those of [`super::apply()`].
pub async fn diff(client: &Client, drafts: &[Draft]) -> Result<DiffResult, Error> {
    let snapshot = Snapshot::read(client).await?;
    check(&snapshot, drafts)?;
    let groups: Vec<GroupDiff> = drafts
        .iter()
        .map(|draft| of_group(&snapshot, draft))
        .collect();
    let mut plan = PlanCounts::default();
    for vm in groups.iter().flat_map(|group| &group.vms) {
        plan.count(vm.change);
    }
    Ok(DiffResult {
        groups,
        plan,
        ..DiffResult::default()
    })
}

fn of_group(snapshot: &Snapshot, draft: &Draft) -> GroupDiff {
    let before = snapshot.groups.get(&draft.name).map(|stored| &stored.value);
    let fleet = draft.fleet.as_deref().cloned().unwrap_or_default();
    let mut fields = Vec::new();
    if let Some(before) = before {
        fields = changes::changes(&before.spec, &draft.spec);
        fields.extend(placement_changes(
            (&before.placement, before.replacement.as_ref()),
            (&fleet.placement, fleet.replacement.as_ref()),
        ));
    }
    GroupDiff {
        result: ApplyResult {
            name: draft.name.clone(),
            applied: match (before, fields.is_empty()) {
                (None, _) => Applied::Created,
                (Some(_), true) => Applied::Unchanged,
                (Some(_), false) => Applied::Configured,
            },
            warnings: draft.warnings.clone(),
        },
        update: draft.spec.update,
        fields,
        vms: vms(snapshot, before, draft),
    }
}

/// The VMs that change, by index.
fn vms(snapshot: &Snapshot, before: Option<&Group>, draft: &Draft) -> Vec<VmDiff> {
    let members = before.map(|group| snapshot.vms_of(group));
    let mut members: Vec<&Vm> = members
        .into_iter()
        .flatten()
        .filter(|vm| !vm.meta.deleting)
        .collect();
    members.sort_by_key(|vm| vm.index);
    let changed = before.map_or(VmChange::Add, |group| {
        match group.spec.template.can_change_live_to(&draft.spec.template) {
            true => VmChange::Update,
            false => VmChange::Replace,
        }
    });
    let is_same = before.is_some_and(|group| group.spec.template == draft.spec.template);
    let existing: BTreeSet<u32> = members.iter().map(|vm| vm.index).collect();
    let mut found: Vec<(u32, VmDiff)> = Vec::new();
    for vm in members {
        let change = match vm.index > draft.spec.count {
            true => VmChange::Delete,
            false if is_same || draft.spec.update == UpdatePolicy::OnDelete => continue,
            false => changed,
        };
        found.push((vm.index, VmDiff::new(&vm.meta.name, change)));
    }
    for index in (1..=draft.spec.count).filter(|index| !existing.contains(index)) {
        if let Some(name) = HostGroup::vm_name(&draft.name, index) {
            found.push((index, VmDiff::new(&name, VmChange::Add)));
        }
    }
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, vm)| vm).collect()
}
