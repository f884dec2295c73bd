//! What applying drafts would do for their VMs on the host: the plans, printed and not carried out.
//! Not here: the plans themselves; what the ground does meanwhile, which is made for all VMs together (the host's chains, bridges
//! with their addresses, `ip_forward`).

use std::collections::BTreeMap;

use crate::api::host_group::HostGroup;
use crate::api::manifest::Draft;
use crate::api::network::NetworkSpec;
use crate::api::vm::{Vm, VmSpec};
use crate::reconcile::engine::{Engine, Preview};
use crate::reconcile::group;

/// What would be done, by object. A VM that is to be made has no uid yet, so of it only that is said.
pub async fn of(engine: &Engine, drafts: &[Draft]) -> BTreeMap<String, Preview> {
    let mut previews = BTreeMap::new();
    for draft in drafts {
        // What is said of a VM last holds: one that is changed and then removed at once is only removed.
        previews.extend(of_group(engine, draft).await);
    }
    previews
}

async fn of_group(engine: &Engine, draft: &Draft) -> Vec<(String, Preview)> {
    let (desired, observed, vms, update_before) = engine.store.read(|world| {
        let desired = group::becoming(world, &draft.name, &draft.spec);
        let vms: Vec<Vm> = world.vms_of(&draft.name).cloned().collect();
        let before = world.group(&draft.name).map(|group| group.spec.update);
        let observed = group::observed(world, &draft.name, &desired);
        (desired, observed, vms, before)
    });
    let mut found = Vec::new();
    if update_before.is_some_and(|before| before != desired.update) {
        // Their records tell of it.
        for vm in vms.iter().filter(|vm| !vm.meta.deleting) {
            let steps = update(engine, vm, vm.spec.clone()).await;
            found.push((format!("vm/{}", vm.meta.name), steps));
        }
    }
    for action in group::plan(&desired, &observed) {
        match action {
            group::Action::Create { index, spec, order } => {
                let counted = || HostGroup::vm_name(&draft.name, index);
                if let Some(name) = order.map(|order| order.name).or_else(counted) {
                    let preview = Preview {
                        steps: creation(&spec),
                        stuck: None,
                    };
                    found.push((format!("vm/{name}"), preview));
                }
            }
            group::Action::Update { uid, spec } => {
                if let Some(vm) = vms.iter().find(|vm| vm.meta.uid == uid) {
                    let steps = update(engine, vm, *spec).await;
                    found.push((format!("vm/{}", vm.meta.name), steps));
                }
            }
            group::Action::Delete { uid } => {
                if let Some(vm) = vms.iter().find(|vm| vm.meta.uid == uid) {
                    let steps = removal(engine, vm, &desired).await;
                    found.push((format!("vm/{}", vm.meta.name), steps));
                }
            }
            group::Action::Release { .. } | group::Action::RemoveGroup => {}
        }
    }
    found
}

fn creation(spec: &VmSpec) -> Vec<String> {
    let mut steps: Vec<String> = match &spec.network {
        NetworkSpec::Isolated(_) => vec![
            "lease a /30".to_owned(),
            "create the namespace, TAP, veth, addresses and routes".to_owned(),
            "commit the rules, read them back, open the gate".to_owned(),
        ],
        NetworkSpec::Bridge(bridge) => vec![
            "lease an address".to_owned(),
            format!("create the TAP as a port of bridge {}", bridge.bridge),
            "set its filter, read it back, bring it up".to_owned(),
        ],
        NetworkSpec::Cni(cni) => vec![
            "create the namespace".to_owned(),
            format!("ADD it to CNI network {}", cni.network_name),
            "create the TAP and redirect between it and the plugins' interface".to_owned(),
        ],
    };
    if spec.hypervisor != crate::api::vm::Hypervisor::None {
        steps.push("start the VMM".to_owned());
    }
    steps
}

/// What a VM becomes, and what is done for it while it goes on.
async fn update(engine: &Engine, vm: &Vm, spec: VmSpec) -> Preview {
    let mut changed = vm.clone();
    changed.spec = spec;
    changed.meta.generation += 1;
    engine.preview_change(&changed).await
}

async fn removal(engine: &Engine, vm: &Vm, group: &group::Desired) -> Preview {
    let mut preview = engine.preview_removal(vm).await;
    if group.wants(vm.index) {
        let anew = "create it anew: this change cannot be made live".to_owned();
        preview.steps.push(anew);
    }
    preview
}
