//! What applying drafts would do on the host: the plans, printed and not carried out.
//! Not here: the plans themselves.

use std::collections::BTreeMap;

use crate::api::host_group::HostGroup;
use crate::api::manifest::Draft;
use crate::api::network::NetworkSpec;
use crate::api::vm::{Vm, VmSpec};
use crate::owner;
use crate::reconcile::engine::Engine;
use crate::reconcile::{Error, diff, firewall, group, net};

/// Object to actions, in the order they would be taken. A VM that is to be made has no uid yet, so of it only that is said.
///
/// # Errors
/// The host could not be looked at.
pub async fn of(engine: &Engine, drafts: &[Draft]) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let mut actions = BTreeMap::new();
    for draft in drafts {
        for (object, steps) in of_group(engine, draft).await? {
            if !steps.is_empty() {
                actions.insert(object, steps);
            }
        }
    }
    Ok(actions)
}

async fn of_group(engine: &Engine, draft: &Draft) -> Result<Vec<(String, Vec<String>)>, Error> {
    let desired = group::Desired {
        count: draft.spec.count,
        update: draft.spec.update,
        template: Some(draft.spec.template.clone()),
    };
    let (observed, vms) = engine.store.read(|world| {
        let vms: Vec<Vm> = world.vms_of(&draft.name).cloned().collect();
        (group::observed(world, &draft.name), vms)
    });
    let mut found = Vec::new();
    for action in group::plan(&desired, &observed) {
        match action {
            group::Action::Create { index, spec } => {
                if let Some(name) = HostGroup::vm_name(&draft.name, index) {
                    found.push((format!("vm/{name}"), creation(&spec)));
                }
            }
            group::Action::Update { uid, spec } => {
                if let Some(vm) = vms.iter().find(|vm| vm.meta.uid == uid) {
                    found.push((
                        format!("vm/{}", vm.meta.name),
                        update(engine, vm, *spec).await?,
                    ));
                }
            }
            group::Action::Delete { uid } => {
                if let Some(vm) = vms.iter().find(|vm| vm.meta.uid == uid) {
                    let steps = removal(engine, vm, &desired).await?;
                    found.push((format!("vm/{}", vm.meta.name), steps));
                }
            }
            group::Action::Release { .. } | group::Action::RemoveGroup => {}
        }
    }
    Ok(found)
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

async fn update(engine: &Engine, vm: &Vm, spec: VmSpec) -> Result<Vec<String>, Error> {
    let Some(lease) = engine
        .store
        .read(|world| world.lease(&vm.meta.name).cloned())
    else {
        return Ok(vec!["commit the rules".to_owned()]);
    };
    let Some(block) = lease.address.block() else {
        return Ok(vec!["change the port and its filter".to_owned()]);
    };
    let mut changed = vm.clone();
    changed.spec = spec;
    let names = owner::vm_names(&engine.instance, vm.meta.uid);
    let desired = firewall::Desired {
        netns: engine.run_dir.netns(&names),
        lock: engine.run_dir.vm_dir(vm.meta.uid).join(net::LOCK),
        rules: Some(engine.rules(&changed, block, None)),
    };
    diff(&engine.firewall(), &desired).await
}

async fn removal(engine: &Engine, vm: &Vm, group: &group::Desired) -> Result<Vec<String>, Error> {
    let label = engine.instance.vm_label(&vm.meta.name, vm.meta.uid);
    let nothing = engine.processes.nothing(&label);
    let mut steps = diff(&engine.processes.rung, &nothing).await?;
    let desired = net::Desired {
        label,
        run_dir: engine.run_dir.0.clone(),
        slot: None,
    };
    steps.extend(diff(&engine.net(), &desired).await?);
    if vm.index <= group.count {
        steps.push("create it anew: this change cannot be made live".to_owned());
    }
    Ok(steps)
}
