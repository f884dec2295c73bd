//! Computes what applying drafts would do: to the groups, to their VMs, and the steps for each VM, without executing them.
//! Out of scope: the plans themselves; changes of the host network, which are shared by all VMs (the host's chains, bridges
//! with their addresses, `ip_forward`).

mod groups;
mod steps;
mod warnings;

use std::collections::BTreeMap;

use self::groups::GroupChange;
use crate::api::manifest::Draft;
use crate::api::meta::Name;
use crate::api::view::{ApplyResult, DiffResult, GroupDiff, PlanCounts};
use crate::engine::Engine;
use crate::reconcile::group::ForeseenVm;
use crate::wire::Detail;

/// Maximum number of VMs with steps in one response.
const MAX_PREVIEWS: usize = 2048;

/// Maximum number of new VMs whose addresses are looked at for warnings.
const MAX_ASSIGNED: usize = 256;

/// Computes what applying the drafts would do.
pub async fn of(engine: &Engine, drafts: &[Draft], detail: Detail) -> DiffResult {
    let groups = groups::changes(engine, drafts).await;
    let limit = match detail {
        Detail::Summary => MAX_ASSIGNED,
        Detail::Steps => MAX_PREVIEWS,
    };
    let new = foresee(engine, &groups, limit).await;
    let warnings = warnings::of(engine, &groups, &new).await;
    let mut result = match detail {
        Detail::Summary => DiffResult::default(),
        Detail::Steps => steps::of(engine, &groups, &new).await,
    };
    let mut plan = PlanCounts::default();
    let changes = groups.iter().flat_map(|group| group.changes.values());
    changes.for_each(|vm| plan.count(vm.change));
    result.plan = plan;
    result.groups = groups
        .into_iter()
        .zip(warnings)
        .map(|(group, warnings)| diff(group, warnings))
        .collect();
    result
}

/// Warnings about what applying the drafts would do, for each draft: what cannot work on this host, and which disks are deleted.
pub async fn warnings(engine: &Engine, drafts: &[Draft]) -> Vec<Vec<String>> {
    let groups = groups::changes(engine, drafts).await;
    let new = foresee(engine, &groups, MAX_ASSIGNED).await;
    warnings::of(engine, &groups, &new).await
}

fn diff(group: GroupChange<'_>, warnings: Vec<String>) -> GroupDiff {
    let draft = group.draft;
    GroupDiff {
        result: ApplyResult {
            name: draft.name.clone(),
            applied: group.applied,
            warnings: [draft.warnings.clone(), warnings].concat(),
        },
        update: draft.spec.update,
        fields: group.fields,
        vms: group.changes.into_values().collect(),
    }
}

/// The VMs that would be created, with what they would be assigned.
async fn foresee(
    engine: &Engine,
    groups: &[GroupChange<'_>],
    limit: usize,
) -> BTreeMap<Name, ForeseenVm> {
    let creating = groups.iter().filter(|group| group.creates());
    let specs: Vec<_> = creating
        .map(|group| (group.draft.name.clone(), group.draft.spec.clone()))
        .collect();
    match specs.is_empty() {
        true => BTreeMap::new(),
        false => engine.foresee(&specs, limit).await,
    }
}
