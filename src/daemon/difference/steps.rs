//! Computes the steps for each VM that changes.
//! Out of scope: which VMs change (`groups`).

use std::collections::BTreeMap;

use super::MAX_PREVIEWS;
use super::groups::GroupChange;
use crate::api::event::ObjectRef;
use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::api::view::DiffResult;
use crate::api::vm::{Vm, VmSpec};
use crate::engine::{Engine, Preview};
use crate::reconcile::group::{self, ForeseenVm};

/// The steps of all groups: `actions`, `stuck` and `more` of the result.
pub(super) async fn of(
    engine: &Engine,
    groups: &[GroupChange<'_>],
    new: &BTreeMap<Name, ForeseenVm>,
) -> DiffResult {
    let mut previews = BTreeMap::new();
    let mut result = DiffResult::default();
    for group in groups {
        let remaining = MAX_PREVIEWS.saturating_sub(previews.len());
        let (found, more) = of_group(engine, group, new, remaining).await;
        // A later preview of a VM replaces an earlier one: a VM that is changed and then removed is only removed.
        previews.extend(found);
        result.more += more;
    }
    for (object, Preview { steps, blocked }) in previews {
        if !steps.is_empty() {
            result.actions.insert(object.clone(), steps);
        }
        result.stuck.extend(blocked.map(|reason| (object, reason)));
    }
    result
}

async fn of_group(
    engine: &Engine,
    group: &GroupChange<'_>,
    new: &BTreeMap<Name, ForeseenVm>,
    limit: usize,
) -> (Vec<(String, Preview)>, usize) {
    let mut found = Vec::new();
    let mut more = 0;
    for (name, why) in &group.not_replaced {
        if found.len() >= limit {
            more += 1;
            continue;
        }
        let goes_on = Preview {
            steps: vec![format!("keep it unchanged: {why}")],
            blocked: None,
        };
        found.push((ObjectRef::vm(name).to_string(), goes_on));
    }
    let update = group.desired.update;
    if group.update_before.is_some_and(|before| before != update) {
        // The record of each VM contains the update policy.
        for vm in group.vms.iter().filter(|vm| !vm.meta.deleting) {
            if found.len() >= limit {
                more += 1;
                continue;
            }
            let steps = live_update(engine, vm, vm.spec.clone()).await;
            found.push((ObjectRef::vm(&vm.meta.name).to_string(), steps));
        }
    }
    for action in &group.plan {
        if found.len() >= limit {
            more += match action {
                group::Action::Create { .. }
                | group::Action::Update { .. }
                | group::Action::Delete { .. } => 1,
                group::Action::Release { .. } | group::Action::RemoveGroup => 0,
            };
            continue;
        }
        found.extend(of_action(engine, group, new, action).await);
    }
    (found, more)
}

async fn of_action(
    engine: &Engine,
    group: &GroupChange<'_>,
    new: &BTreeMap<Name, ForeseenVm>,
    action: &group::Action,
) -> Option<(String, Preview)> {
    let (name, preview) = match action {
        group::Action::Create { index, order, .. } => {
            let indexed_name = || HostGroup::vm_name(&group.draft.name, *index);
            let ordered = order.as_ref().map(|order| order.name.clone());
            let new = new.get(&ordered.or_else(indexed_name)?)?;
            (&new.vm.meta.name, engine.preview_creation(new).await)
        }
        group::Action::Update { uid, spec } => {
            let vm = group.vm(*uid)?;
            let spec = (**spec).clone();
            (&vm.meta.name, live_update(engine, vm, spec).await)
        }
        group::Action::Delete { uid } => {
            let vm = group.vm(*uid)?;
            (&vm.meta.name, removal(engine, vm, &group.desired).await)
        }
        group::Action::Release { .. } | group::Action::RemoveGroup => return None,
    };
    Some((ObjectRef::vm(name).to_string(), preview))
}

/// Previews a live update of a VM to `spec`.
async fn live_update(engine: &Engine, vm: &Vm, spec: VmSpec) -> Preview {
    let mut changed = vm.clone();
    changed.spec = spec;
    changed.meta.generation += 1;
    engine.preview_change(&changed).await
}

async fn removal(engine: &Engine, vm: &Vm, group: &group::Desired) -> Preview {
    let mut preview = engine.preview_removal(vm).await;
    if group.requires(vm.index) {
        let recreate = "create it again: this change cannot be applied live".to_owned();
        preview.steps.push(recreate);
    }
    preview
}
