//! The VMs, groups and refusals of the fleet in the local store, as the plan of the node needs them.
//! Out of scope: changing them ([`super::execute`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::api::condition::{Condition, Reason, Status};
use crate::api::fleet::{FleetVm, LocalRefusal};
use crate::api::host_group::{HostGroup, Origin};
use crate::api::meta::{Name, Uid};
use crate::api::stage::STAGES;
use crate::api::vm::Vm;
use crate::fleet::node::{LocalGroup, LocalVm, Run};
use crate::store::World;

/// The longest message of a VM that is reported, in characters.
const MAX_MESSAGE: usize = 300;

/// What the local store has of the fleet.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) vms: BTreeMap<Uid, LocalVm>,
    pub(super) groups: Vec<LocalGroup>,
    pub(super) refusals: BTreeMap<Uid, LocalRefusal>,
    /// Names of groups and VMs that are not of the fleet.
    pub(super) other_groups: BTreeSet<Name>,
    pub(super) other_vms: BTreeSet<Name>,
}

impl Local {
    /// Reads the store.
    pub(super) fn of(world: &World) -> Self {
        let mut local = Self {
            refusals: world.fleet_refusals().clone(),
            ..Self::default()
        };
        for group in world.groups() {
            let name = &group.meta.name;
            match group.origin {
                Origin::Fleet { uid, generation } if !group.meta.deleting => {
                    local.groups.push(LocalGroup {
                        name: name.clone(),
                        uid,
                        generation,
                    });
                }
                Origin::Fleet { .. } => {}
                Origin::File(_) | Origin::Apply => {
                    local.other_groups.insert(name.clone());
                }
            }
            local.add_entries(world, group);
        }
        for vm in world.vms() {
            local.add_vm(vm);
        }
        local
    }

    /// The VMs that are to exist.
    fn add_entries(&mut self, world: &World, group: &HostGroup) {
        let vms = world.vms_of(&group.meta.name);
        let vms: HashMap<Uid, &Vm> = vms
            .filter(|vm| !vm.meta.deleting)
            .filter_map(|vm| Some((vm.fleet()?.uid, vm)))
            .collect();
        for (index, entry) in &group.orders {
            let Some(fleet) = &entry.fleet else {
                continue;
            };
            let vm = vms.get(&fleet.uid).copied();
            self.vms.insert(
                fleet.uid,
                LocalVm {
                    run: run(world, fleet, vm),
                    address: vm.and_then(|vm| address(world, vm)),
                    message: vm.and_then(|vm| message(world, vm)),
                    ..facts(fleet, entry.name.clone(), group.meta.name.clone(), *index)
                },
            );
        }
    }

    /// A VM without an entry is being deleted.
    fn add_vm(&mut self, vm: &Vm) {
        let name = &vm.meta.name;
        let Some(fleet) = vm.fleet() else {
            self.other_vms.insert(name.clone());
            return;
        };
        self.vms.entry(fleet.uid).or_insert_with(|| LocalVm {
            run: Run::Deleting,
            ..facts(fleet, name.clone(), vm.group.clone(), vm.index)
        });
    }
}

/// All groups that are not being deleted. Those of the fleet have no entries here: the network of the group is that of its VMs.
pub(super) fn host_groups(world: &World) -> Vec<HostGroup> {
    let existing = world.groups().filter(|group| !group.meta.deleting);
    let copy = |group: &HostGroup| HostGroup {
        orders: match group.origin {
            Origin::Fleet { .. } => BTreeMap::new(),
            Origin::File(_) | Origin::Apply => group.orders.clone(),
        },
        meta: group.meta.clone(),
        origin: group.origin.clone(),
        spec: group.spec.clone(),
        adopted: group.adopted,
        seen_in: None,
    };
    existing.map(copy).collect()
}

/// A VM of the fleet that was bound to another name than this one, and that name.
pub(super) fn other_node(world: &World, node: &Name) -> Option<(Name, Name)> {
    let entries = world.groups().flat_map(|group| group.orders.values());
    let entries = entries.filter_map(|entry| Some((&entry.name, entry.fleet.as_deref()?)));
    let vms = world
        .vms()
        .filter_map(|vm| Some((&vm.meta.name, vm.fleet()?)));
    let mut others = entries.chain(vms).filter(|(_, fleet)| fleet.node != *node);
    others
        .next()
        .map(|(vm, fleet)| (vm.clone(), fleet.node.clone()))
}

fn facts(fleet: &FleetVm, name: Name, group: Name, index: u32) -> LocalVm {
    LocalVm {
        uid: fleet.uid,
        name,
        group,
        group_uid: fleet.group_uid,
        index,
        epoch: fleet.epoch,
        group_generation: fleet.group_generation,
        stop: fleet.stop,
        run: Run::NotReady,
        address: None,
        message: None,
    }
}

fn run(world: &World, fleet: &FleetVm, vm: Option<&Vm>) -> Run {
    match vm {
        _ if fleet.stopped => Run::Stopped,
        Some(vm) if world.is_ready(vm) => Run::Ready,
        Some(_) | None => Run::NotReady,
    }
}

fn address(world: &World, vm: &Vm) -> Option<std::net::Ipv4Addr> {
    Some(world.lease(&vm.meta.name)?.address.ip())
}

/// The first problem of its stages. What is in progress is none: each message is a write to etcd.
fn message(world: &World, vm: &Vm) -> Option<String> {
    let problem = STAGES.iter().find_map(|stage| {
        let condition = &world.status(vm.meta.uid, *stage)?.condition;
        is_problem(condition).then(|| format!("{stage}: {}", condition.message))
    })?;
    Some(problem.chars().take(MAX_MESSAGE).collect())
}

fn is_problem(condition: &Condition) -> bool {
    let is_progress = matches!(
        condition.reason,
        Reason::Converged
            | Reason::Waiting
            | Reason::Converging
            | Reason::NotObserved
            | Reason::Stopping
            | Reason::Terminating
    );
    condition.status != Status::True && !is_progress && !condition.message.is_empty()
}
