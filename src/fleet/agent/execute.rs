//! Executes the steps of a plan that change the local store, all in one transaction.
//! Out of scope: status keys ([`super::statuses`]); what the VMs do then, which the engine decides as on one host.

use std::collections::BTreeMap;

use crate::api::fleet::{FleetVm, LocalRefusal, StopTimes};
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::on_demand::{OnDemandEntry, VmOverrides};
use crate::api::vm::Vm;
use crate::engine::update_checkpoint;
use crate::fleet::node::{LocalVm, RemoveCause, Step};
use crate::reconcile::power::VmmCheckpoint;
use crate::store::{self, Txn, World};

/// Executes the steps of a plan of this node in their order.
///
/// # Errors
/// Those of the store; then nothing of the transaction is done.
pub(super) fn execute(
    txn: &mut Txn<'_>,
    node: &Name,
    steps: &[Step],
    now: Timestamp,
) -> Result<(), store::Error> {
    // The entries of a group are one value: those of hundreds of VMs are added and removed at once. These steps follow each other.
    let mut removed: Removed<'_> = BTreeMap::new();
    let mut added: BTreeMap<&Name, Vec<&LocalVm>> = BTreeMap::new();
    for step in steps {
        match step {
            Step::RemoveVm { uid, cause } => {
                removed.insert(*uid, cause);
            }
            Step::AddVm { vm } => added.entry(&vm.group).or_default().push(vm),
            _ => {}
        }
    }
    let (mut is_removed, mut is_added) = (removed.is_empty(), added.is_empty());
    for step in steps {
        match step {
            Step::RemoveVm { .. } if is_removed => {}
            Step::RemoveVm { .. } => {
                is_removed = true;
                remove(txn, &removed)?;
            }
            Step::AddVm { .. } if is_added => {}
            Step::AddVm { .. } => {
                is_added = true;
                add(txn, node, &added)?;
            }
            other => one(txn, other, now)?,
        }
    }
    Ok(())
}

/// The VMs that are removed, with the reasons.
type Removed<'p> = BTreeMap<Uid, &'p RemoveCause>;

fn one(txn: &mut Txn<'_>, step: &Step, now: Timestamp) -> Result<(), store::Error> {
    match step {
        Step::StopVm { uid, .. } => stop(txn, *uid),
        Step::StartVm { uid } => start(txn, *uid),
        Step::RemoveVm { .. } | Step::AddVm { .. } => Ok(()),
        Step::UpdateVm {
            uid,
            epoch,
            group_generation,
            stop,
        } => update(txn, *uid, (*epoch, *group_generation, *stop)),
        Step::PutGroup {
            name,
            uid,
            generation,
            spec,
        } => {
            let origin = Origin::Fleet {
                uid: *uid,
                generation: *generation,
            };
            put_group(txn, name, origin, spec, now)
        }
        Step::RemoveGroup { name } => remove_group(txn, name),
        Step::RefuseVm { uid, epoch, reason } => {
            let refusal = LocalRefusal {
                epoch: *epoch,
                reason: reason.clone(),
            };
            txn.put_fleet_refusal(*uid, Some(refusal))
        }
        Step::ForgetRefusal { uid } => txn.put_fleet_refusal(*uid, None),
        Step::PutStatus { .. } | Step::DeleteStatus { .. } => Ok(()),
    }
}

/// The group with the entry of this VM, and its index.
fn entry_of(world: &World, uid: Uid) -> Option<(&HostGroup, u32)> {
    world.groups().find_map(|group| {
        let mut orders = group.orders.iter();
        let is_it =
            |entry: &OnDemandEntry| entry.fleet.as_ref().is_some_and(|fleet| fleet.uid == uid);
        let (index, _) = orders.find(|(_, entry)| is_it(entry))?;
        Some((group, *index))
    })
}

/// The local VM of this object that is not being deleted.
fn vm_of(world: &World, uid: Uid) -> Option<&Vm> {
    let mut vms = world.vms();
    vms.find(|vm| !vm.meta.deleting && vm.fleet().is_some_and(|fleet| fleet.uid == uid))
}

/// Changes the facts of a VM, in its entry and in the VM.
fn edit_facts(
    txn: &mut Txn<'_>,
    uid: Uid,
    change: impl Fn(&mut FleetVm),
) -> Result<(), store::Error> {
    if let Some((group, index)) = entry_of(txn.world(), uid) {
        let mut group = group.clone();
        if let Some(fleet) = group
            .orders
            .get_mut(&index)
            .and_then(|entry| entry.fleet.as_mut())
        {
            change(fleet);
        }
        txn.put_group(group)?;
    }
    let Some(mut vm) = vm_of(txn.world(), uid).cloned() else {
        return Ok(());
    };
    if let Some(fleet) = vm.on_demand.as_mut().and_then(|it| it.fleet.as_mut()) {
        change(fleet);
    }
    // The record of the VM contains the facts: with a new generation, rewriting it is a change of the spec, not drift.
    vm.meta.generation += 1;
    txn.put_vm(vm)
}

/// What a user has requested last (`power`) is kept: it applies when the VM is started again.
fn stop(txn: &mut Txn<'_>, uid: Uid) -> Result<(), store::Error> {
    edit_facts(txn, uid, |fleet| fleet.stopped = true)
}

fn start(txn: &mut Txn<'_>, uid: Uid) -> Result<(), store::Error> {
    edit_facts(txn, uid, |fleet| fleet.stopped = false)?;
    let local = vm_of(txn.world(), uid).map(|vm| vm.meta.uid);
    match local {
        Some(local) => update_checkpoint(txn, local, VmmCheckpoint::answer),
        None => Ok(()),
    }
}

fn add(
    txn: &mut Txn<'_>,
    node: &Name,
    added: &BTreeMap<&Name, Vec<&LocalVm>>,
) -> Result<(), store::Error> {
    for (group, vms) in added {
        let Some(mut group) = txn.world().group(group).filter(is_of_fleet).cloned() else {
            continue;
        };
        let entries = vms.iter().map(|local| (local.index, entry(local, node)));
        group.orders.extend(entries);
        txn.put_group(group)?;
    }
    Ok(())
}

/// The groups of users are not changed: one may have been created since the plan was made, which then refuses the VMs.
fn is_of_fleet(group: &&HostGroup) -> bool {
    matches!(group.origin, Origin::Fleet { .. })
}

fn entry(local: &LocalVm, node: &Name) -> OnDemandEntry {
    let fleet = FleetVm {
        uid: local.uid,
        node: node.clone(),
        group_uid: local.group_uid,
        epoch: local.epoch,
        group_generation: local.group_generation,
        stop: local.stop,
        stopped: false,
    };
    OnDemandEntry {
        name: local.name.clone(),
        overrides: VmOverrides::default(),
        fleet: Some(Box::new(fleet)),
    }
}

/// Stores the facts. If the scheduler updates the VM, and it cannot get the template of its group while it runs, it is deleted; its group
/// creates it again. Otherwise it keeps its template: the local copy of the group may be newer, since another VM was updated.
fn update(
    txn: &mut Txn<'_>,
    uid: Uid,
    (epoch, group_generation, stop): (u64, u64, Option<StopTimes>),
) -> Result<(), store::Error> {
    let stored = entry_of(txn.world(), uid).and_then(|(group, index)| {
        let entry = group.orders.get(&index)?;
        entry.fleet.as_ref().map(|fleet| fleet.group_generation)
    });
    edit_facts(txn, uid, |fleet| {
        fleet.epoch = epoch;
        fleet.group_generation = group_generation;
        fleet.stop = stop;
    })?;
    if stored.is_none_or(|stored| stored >= group_generation) {
        return Ok(());
    }
    let is_outdated = |vm: &&Vm| {
        let group = txn.world().group(&vm.group);
        let desired = group.map(|group| &group.spec.template);
        desired.is_some_and(|desired| !vm.spec.can_change_live_to(desired))
    };
    let outdated = vm_of(txn.world(), uid).filter(is_outdated).cloned();
    match outdated {
        Some(vm) => delete(txn, vm, false),
        None => Ok(()),
    }
}

fn remove(txn: &mut Txn<'_>, removed: &Removed<'_>) -> Result<(), store::Error> {
    let is_removed =
        |fleet: Option<&FleetVm>| fleet.is_some_and(|it| removed.contains_key(&it.uid));
    let groups: Vec<HostGroup> = txn.world().groups().cloned().collect();
    for mut group in groups {
        let before = group.orders.len();
        group
            .orders
            .retain(|_, entry| !is_removed(entry.fleet.as_deref()));
        if group.orders.len() < before {
            txn.put_group(group)?;
        }
    }
    let vms = txn.world().vms().filter(|vm| is_removed(vm.fleet()));
    let vms: Vec<Vm> = vms.cloned().collect();
    for mut vm in vms {
        let cause = vm.fleet().and_then(|fleet| removed.get(&fleet.uid));
        let (forced, delete_disk) = match cause {
            Some(RemoveCause::Deleting { forced }) => (*forced, false),
            Some(RemoveCause::Superseded { delete_disk, .. }) => (false, *delete_disk),
            None => (false, false),
        };
        // The disk of a VM that is not persistent is deleted with it.
        vm.spec.storage.persistent &= !delete_disk;
        delete(txn, vm, forced)?;
    }
    Ok(())
}

fn delete(txn: &mut Txn<'_>, mut vm: Vm, forced: bool) -> Result<(), store::Error> {
    let uid = vm.meta.uid;
    vm.meta.deleting = true;
    vm.meta.forced |= forced;
    txn.put_vm(vm)?;
    txn.remove_if_released(uid)
}

fn put_group(
    txn: &mut Txn<'_>,
    name: &Name,
    origin: Origin,
    spec: &HostGroupSpec,
    now: Timestamp,
) -> Result<(), store::Error> {
    let existing = txn.world().group(name).cloned();
    let group = match existing.filter(|group| !group.meta.deleting) {
        Some(group) if !is_of_fleet(&&group) => return Ok(()),
        Some(mut group) => {
            if group.spec != *spec {
                group.meta.generation += 1;
            }
            group.spec = spec.clone();
            group.origin = origin;
            group
        }
        None => HostGroup {
            meta: Meta::new(name.clone(), now),
            origin,
            spec: spec.clone(),
            orders: BTreeMap::new(),
            adopted: false,
            seen_in: None,
        },
    };
    txn.put_group(group)
}

fn remove_group(txn: &mut Txn<'_>, name: &Name) -> Result<(), store::Error> {
    let Some(mut group) = txn.world().group(name).filter(is_of_fleet).cloned() else {
        return Ok(());
    };
    group.meta.deleting = true;
    group.orders.clear();
    txn.put_group(group)
}
