//! What applying drafts would do for their VMs on the host: the plans, printed and not carried out.
//! Out of scope: the plans themselves; changes of the host network, which are made for all VMs together (the host's chains, bridges
//! with their addresses, `ip_forward`).

use std::collections::BTreeMap;

use crate::api::host_group::{HostGroup, UpdatePolicy};
use crate::api::manifest::Draft;
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::api::vm::{Vm, VmSpec};
use crate::reconcile::engine::{Engine, Preview};
use crate::reconcile::group::{self, Fitness};

/// VMs of which an answer tells what would be done.
const MOST: usize = 2048;

/// What would be done.
#[derive(Default)]
pub struct Found {
    /// By object. A VM that is to be made has no uid yet, so of it only that is said.
    pub previews: BTreeMap<String, Preview>,
    /// How many more VMs would be made, changed or removed. They have not been looked at.
    pub more: usize,
}

/// Of all drafts together.
pub async fn of(engine: &Engine, drafts: &[Draft]) -> Found {
    let mut found = Found::default();
    for draft in drafts {
        let room = MOST.saturating_sub(found.previews.len());
        let (previews, more) = of_group(engine, draft, room).await;
        // What is said of a VM last holds: one that is changed and then removed at once is only removed.
        found.previews.extend(previews);
        found.more += more;
    }
    found
}

async fn of_group(engine: &Engine, draft: &Draft, room: usize) -> (Vec<(String, Preview)>, usize) {
    let Foreseen {
        desired,
        plan,
        vms,
        update_before,
        held,
    } = foresee(engine, draft).await;
    let mut found = Vec::new();
    let mut more = 0;
    for (name, why) in held {
        if found.len() >= room {
            more += 1;
            continue;
        }
        let goes_on = Preview {
            steps: vec![format!("let it go on as it is: {why}")],
            stuck: None,
        };
        found.push((format!("vm/{name}"), goes_on));
    }
    if update_before.is_some_and(|before| before != desired.update) {
        // Their records tell of it.
        for vm in vms.iter().filter(|vm| !vm.meta.deleting) {
            if found.len() >= room {
                more += 1;
                continue;
            }
            let steps = update(engine, vm, vm.spec.clone()).await;
            found.push((format!("vm/{}", vm.meta.name), steps));
        }
    }
    for action in plan {
        if found.len() >= room {
            more += match action {
                group::Action::Create { .. }
                | group::Action::Update { .. }
                | group::Action::Delete { .. } => 1,
                group::Action::Release { .. } | group::Action::RemoveGroup => 0,
            };
            continue;
        }
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
    (found, more)
}

/// What a group would do next.
struct Foreseen {
    desired: group::Desired,
    plan: Vec<group::Action>,
    vms: Vec<Vm>,
    update_before: Option<UpdatePolicy>,
    /// VMs that would not be replaced, and why.
    held: BTreeMap<Name, String>,
}

async fn foresee(engine: &Engine, draft: &Draft) -> Foreseen {
    let mut fitness = Fitness::default();
    loop {
        let (foreseen, question) = engine.store.read(|world| {
            let name = &draft.name;
            let desired = group::becoming(world, name, &draft.spec);
            let observed = group::observed(world, name, &desired, &fitness);
            let plan = group::plan(&desired, &observed);
            let question = fitness.asks(world, &desired, &plan);
            let foreseen = Foreseen {
                held: group::held(world, name, &desired, &fitness),
                vms: world.vms_of(name).cloned().collect(),
                update_before: world.group(name).map(|group| group.spec.update),
                desired,
                plan,
            };
            (foreseen, question)
        });
        let Some(question) = question else {
            return foreseen;
        };
        let found = engine.fits(&question.vm, &question.wanted).await;
        fitness.note(question, found);
    }
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
