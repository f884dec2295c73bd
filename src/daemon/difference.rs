//! Computes the actions that applying drafts would take for their VMs, without executing them.
//! Out of scope: the plans themselves; changes of the host network, which are shared by all VMs (the host's chains, bridges
//! with their addresses, `ip_forward`).

use std::collections::BTreeMap;

use crate::api::event::ObjectRef;
use crate::api::host_group::{HostGroup, UpdatePolicy};
use crate::api::manifest::Draft;
use crate::api::meta::Name;
use crate::api::vm::{Vm, VmSpec};
use crate::engine::{Engine, Preview};
use crate::reconcile::group::{self, ForeseenVm, Preflight};

/// Maximum number of VMs in one response.
const MAX_PREVIEWS: usize = 2048;

/// The actions that would be taken.
#[derive(Default)]
pub struct Difference {
    /// By object.
    pub previews: BTreeMap<String, Preview>,
    /// Number of further VMs that would be created, changed or removed; they were not evaluated.
    pub more: usize,
}

/// Computes the actions for all drafts.
pub async fn of(engine: &Engine, drafts: &[Draft]) -> Difference {
    let mut found = Difference::default();
    let mut groups = Vec::new();
    for draft in drafts {
        groups.push((draft, preview_group(engine, draft).await));
    }
    let creates = |preview: &GroupPreview| {
        let mut plan = preview.plan.iter();
        plan.any(|action| matches!(action, group::Action::Create { .. }))
    };
    let creating = groups.iter().filter(|(_, preview)| creates(preview));
    let specs: Vec<_> = creating
        .map(|(draft, _)| (draft.name.clone(), draft.spec.clone()))
        .collect();
    let new = engine.foresee(&specs, MAX_PREVIEWS).await;
    for (draft, preview) in groups {
        let remaining = MAX_PREVIEWS.saturating_sub(found.previews.len());
        let (previews, more) = of_group(engine, draft, preview, &new, remaining).await;
        // A later preview of a VM replaces an earlier one: a VM that is changed and then removed is only removed.
        found.previews.extend(previews);
        found.more += more;
    }
    found
}

async fn of_group(
    engine: &Engine,
    draft: &Draft,
    preview: GroupPreview,
    new: &BTreeMap<Name, ForeseenVm>,
    limit: usize,
) -> (Vec<(String, Preview)>, usize) {
    let GroupPreview {
        desired,
        plan,
        vms,
        update_before,
        not_replaced,
    } = preview;
    let mut found = Vec::new();
    let mut more = 0;
    for (name, why) in not_replaced {
        if found.len() >= limit {
            more += 1;
            continue;
        }
        let goes_on = Preview {
            steps: vec![format!("keep it unchanged: {why}")],
            blocked: None,
        };
        found.push((ObjectRef::vm(&name).to_string(), goes_on));
    }
    if update_before.is_some_and(|before| before != desired.update) {
        // The record of each VM contains the update policy.
        for vm in vms.iter().filter(|vm| !vm.meta.deleting) {
            if found.len() >= limit {
                more += 1;
                continue;
            }
            let steps = update(engine, vm, vm.spec.clone()).await;
            found.push((ObjectRef::vm(&vm.meta.name).to_string(), steps));
        }
    }
    for action in plan {
        if found.len() >= limit {
            more += match action {
                group::Action::Create { .. }
                | group::Action::Update { .. }
                | group::Action::Delete { .. } => 1,
                group::Action::Release { .. } | group::Action::RemoveGroup => 0,
            };
            continue;
        }
        match action {
            group::Action::Create { index, order, .. } => {
                let indexed_name = || HostGroup::vm_name(&draft.name, index);
                let name = order.map(|order| order.name).or_else(indexed_name);
                if let Some(new) = name.and_then(|name| new.get(&name)) {
                    let steps = engine.preview_creation(new).await;
                    found.push((ObjectRef::vm(&new.vm.meta.name).to_string(), steps));
                }
            }
            group::Action::Update { uid, spec } => {
                if let Some(vm) = vms.iter().find(|vm| vm.meta.uid == uid) {
                    let steps = update(engine, vm, *spec).await;
                    found.push((ObjectRef::vm(&vm.meta.name).to_string(), steps));
                }
            }
            group::Action::Delete { uid } => {
                if let Some(vm) = vms.iter().find(|vm| vm.meta.uid == uid) {
                    let steps = removal(engine, vm, &desired).await;
                    found.push((ObjectRef::vm(&vm.meta.name).to_string(), steps));
                }
            }
            group::Action::Release { .. } | group::Action::RemoveGroup => {}
        }
    }
    (found, more)
}

/// The next plan of a group.
struct GroupPreview {
    desired: group::Desired,
    plan: Vec<group::Action>,
    vms: Vec<Vm>,
    update_before: Option<UpdatePolicy>,
    /// VMs that would not be replaced, each with the reason.
    not_replaced: BTreeMap<Name, String>,
}

async fn preview_group(engine: &Engine, draft: &Draft) -> GroupPreview {
    let mut preflight = Preflight::default();
    loop {
        let (preview, check) = engine.store.read(|world| {
            let name = &draft.name;
            let desired = group::becoming(world, name, &draft.spec);
            let observed = group::observed(world, name, &desired, &preflight);
            let plan = group::plan(&desired, &observed);
            let question = preflight.next_check(world, &desired, &plan);
            let foreseen = GroupPreview {
                not_replaced: group::blocked_vms(world, name, &desired, &preflight),
                vms: world.vms_of(name).cloned().collect(),
                update_before: world.group(name).map(|group| group.spec.update),
                desired,
                plan,
            };
            (foreseen, question)
        });
        let Some(question) = check else {
            return preview;
        };
        let found = engine.preflight_check(&question.vm, &question.spec).await;
        preflight.note(question, found);
    }
}

/// Previews a live update of a VM to `spec`.
async fn update(engine: &Engine, vm: &Vm, spec: VmSpec) -> Preview {
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
