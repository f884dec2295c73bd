//! Adds VMs on demand to a group, and removes them, each in one transaction.
//! Out of scope: changing and replacing them together with their group ([`mod@super::plan`]); the host.
//!
//! # Why
//! The desired state is an entry of the group, not the VM: the entry is stored before the request is acknowledged, so that it survives a
//! crash, a replacement or a restart, and is deleted with the group. The VM itself is created in the same transaction, so that it exists
//! when the response has its name, and the request is refused if no address is free.

use std::collections::BTreeSet;

use super::add_error::AddError;
use super::choosing::{Rollback, choose, choosing, claimed};
use super::claims::Claims;
use super::friendly_name;
use super::generated_name::random_tail;
use super::range::{HostUse, Observation};
use super::{Action, carry_out};
use crate::api::host_group::{HostGroup, Origin};
use crate::api::link_name::{MAX_PORTS, tap_number};
use crate::api::meta::{Name, Timestamp};
use crate::api::network::{BridgeSpec, NetworkSpec};
use crate::api::on_demand::{OnDemand, OnDemandEntry, VmOverrides};
use crate::api::validate::request_conflict;
use crate::store::{self, LeaseError, Store, Txn, World};

/// The result of a request for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The VM was created.
    Created,
    /// A VM with this name and the same settings exists.
    Unchanged,
}

/// The result of a request to remove a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is being deleted.
    Going,
    /// It is one of the VMs that `count` of its group requires, and would be created again; with the group and its `count`.
    Counted(Name, u32),
    /// It is of the fleet, which decides where it runs.
    OfFleet(Name),
    /// There is no such VM.
    Absent,
}

/// Whether two VMs may have the same friendly name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// The tag `name` is one like others.
    Any,
    /// The tag `name` is unique.
    Unique,
}

/// Adds a VM to a group. A name is generated if none is given.
///
/// # Errors
/// [`AddError`]; then nothing has changed.
pub async fn add(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    group: &Name,
    desired: (Option<Name>, VmOverrides),
    now: Timestamp,
) -> Result<(Name, Added), AddError> {
    add_with(
        store,
        claims,
        host_use,
        (group, NameRule::Any),
        desired,
        now,
    )
    .await
}

/// The same, with a rule for its friendly name. It is checked in the transaction that adds the VM.
///
/// # Errors
/// [`AddError`]; then nothing has changed.
pub async fn add_with(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    (group, rule): (&Name, NameRule),
    (name, overrides): (Option<Name>, VmOverrides),
    now: Timestamp,
) -> Result<(Name, Added), AddError> {
    let label = overrides.tag_set().name().map(ToString::to_string);
    let label = label.filter(|_| rule == NameRule::Unique);
    choosing(store, claims, host_use, group, |txn, observation| {
        if let Some(label) = &label {
            friendly_name::check(txn.world(), label, None)?;
        }
        add_in(
            txn,
            claims,
            observation,
            group,
            (name.clone(), overrides.clone()),
            now,
        )
    })
    .await
}

/// The transaction of [`add`].
fn add_in(
    txn: &mut Txn<'_>,
    claims: &Claims,
    observation: &Observation,
    group: &Name,
    (name, overrides): (Option<Name>, VmOverrides),
    now: Timestamp,
) -> Result<(Name, Added), Rollback<AddError>> {
    let mut living = living(txn.world(), group)?.clone();
    if matches!(living.origin, Origin::Fleet { .. }) {
        let why = format!(
            "hostgroup/{group} is of the fleet, which decides which VMs it has: `slicectl scale --fleet`"
        );
        return Err(AddError::Conflict(why).into());
    }
    if let Some(name) = &name
        && let Some(done) = repeated_request(txn.world(), &living, name, &overrides)?
    {
        return Ok((name.clone(), done));
    }
    choose(txn, observation, &living, living.size() + 1)?;
    let who = match &name {
        Some(name) => format!("vm/{name}"),
        None => "the VM".to_owned(),
    };
    let name = free_name(txn.world(), group, name)?;
    let order = OnDemandEntry {
        name,
        overrides,
        fleet: None,
    };
    let vm_index = assign_index(txn.world(), &living, &order, &who)?;
    living.orders.insert(vm_index, order.clone());
    let create = Action::Create {
        index: vm_index,
        spec: Box::new(order.overrides.spec(&living.spec.template)),
        order: Some(Box::new(order.clone())),
    };
    txn.put_group(living)?;
    carry_out(txn, group, &create, now)?;
    has_address(txn, &order.name, now)?;
    claimed(txn.world(), claims, group)?;
    Ok((order.name, Added::Created))
}

/// Removes the entry of a VM on demand, and deletes the VM.
///
/// # Errors
/// Those of the store.
pub fn remove(txn: &mut Txn<'_>, name: &Name) -> Result<Removed, store::Error> {
    let ordered = txn.world().order(name);
    let ordered = ordered.map(|(group, vm_index, _)| (group.clone(), vm_index));
    let vm = txn.world().vm_named(name).cloned();
    match (ordered, vm) {
        (None, None) => Ok(Removed::Absent),
        (_, Some(vm)) if vm.fleet().is_some() && !vm.meta.deleting => {
            Ok(Removed::OfFleet(vm.group))
        }
        (None, Some(vm)) if vm.on_demand.is_none() => {
            let group = txn.world().group(&vm.group);
            let count = group.filter(|group| !group.meta.deleting);
            let count = count.map_or(0, |group| group.spec.count);
            Ok(match vm.index <= count {
                true => Removed::Counted(vm.group, count),
                false => Removed::Going,
            })
        }
        (ordered, vm) => {
            if let Some((mut group, place)) = ordered {
                group.orders.remove(&place);
                txn.put_group(group)?;
            }
            if let Some(mut vm) = vm.filter(|vm| !vm.meta.deleting) {
                let uid = vm.meta.uid;
                vm.meta.deleting = true;
                txn.put_vm(vm)?;
                txn.remove_if_released(uid)?;
            }
            Ok(Removed::Going)
        }
    }
}

/// What a VM on demand stores in addition to its spec.
pub(super) fn of(world: &World, group: &Name, entry: &OnDemandEntry) -> Option<Box<OnDemand>> {
    let template = world.group(group)?.spec.template.clone();
    Some(Box::new(OnDemand {
        overrides: entry.overrides.clone(),
        template,
        fleet: entry.fleet.clone(),
    }))
}

fn living<'w>(world: &'w World, group: &Name) -> Result<&'w HostGroup, AddError> {
    let found = world.group(group).filter(|group| !group.meta.deleting);
    found.ok_or(AddError::NoGroup)
}

/// Handles a request for an existing entry: the same request again is not an error.
fn repeated_request(
    world: &World,
    group: &HostGroup,
    name: &Name,
    overrides: &VmOverrides,
) -> Result<Option<Added>, AddError> {
    let Some((owner, _, order)) = world.order(name) else {
        return Ok(None);
    };
    if owner.meta.name != group.meta.name {
        let owner = &owner.meta.name;
        let why = format!("vm/{name} already exists: it belongs to hostgroup/{owner}");
        return Err(AddError::Conflict(why));
    }
    match order.overrides == *overrides {
        true => Ok(Some(Added::Unchanged)),
        false => Err(AddError::Conflict(format!(
            "vm/{name} already exists with other settings: delete it first (`slicectl vm delete {name}`), or use another name"
        ))),
    }
}

fn free_name(world: &World, group: &Name, requested: Option<Name>) -> Result<Name, AddError> {
    let Some(name) = requested else {
        return made_up(world, group);
    };
    if HostGroup::is_counted_name(&name) {
        let why = format!(
            "invalid name \"{name}\": it ends in a number, which is reserved for the VMs that `count` of a group creates; use another name"
        );
        return Err(AddError::Invalid(vec![why]));
    }
    match world.vm_named(&name) {
        None => Ok(name),
        Some(_) => Err(AddError::Conflict(format!(
            "vm/{name} is still being removed: wait for it (`slicectl wait vm/{name} --for deleted`), or use another name"
        ))),
    }
}

fn made_up(world: &World, group: &Name) -> Result<Name, AddError> {
    loop {
        let tail = random_tail();
        let name = Name::new(format!("{group}-{tail}")).map_err(|error| {
            let why = format!("cannot generate a name ({error}): specify one");
            AddError::Invalid(vec![why])
        })?;
        if world.vm_named(&name).is_none() && world.order(&name).is_none() {
            return Ok(name);
        }
    }
}

/// Returns the index of the new VM in its group. `who` is its name in error messages.
fn assign_index(
    world: &World,
    group: &HostGroup,
    order: &OnDemandEntry,
    who: &str,
) -> Result<u32, AddError> {
    let used_indexes: BTreeSet<u32> = world.vms_of(&group.meta.name).map(|vm| vm.index).collect();
    let vm_index = group.free_index(|place| used_indexes.contains(&place));
    let place = vm_index.ok_or_else(|| AddError::Conflict("the group is full".to_owned()))?;
    let template = &group.spec.template;
    let mut causes: Vec<String> = order
        .objections(place, template)
        .into_iter()
        .map(|(_, why)| format!("{who} {why}"))
        .collect();
    if template.storage.has_writable_disk() && group.size() > 0 {
        let why = "the group has a writable disk, which at most one VM may have";
        causes.push(format!("{who} exceeds the limit of the group: {why}"));
    }
    if !causes.is_empty() {
        return Err(AddError::Invalid(causes));
    }
    let refused = request_conflict(world.groups(), &template.network, &order.overrides.cni);
    if let Some(why) = refused {
        return Err(AddError::Conflict(format!("{who} cannot be added: {why}")));
    }
    if let NetworkSpec::Bridge(bridge) = &template.network {
        check_bridge(world, bridge, &bridge.tap(place)).map_err(AddError::Conflict)?;
    }
    Ok(place)
}

fn check_bridge(world: &World, bridge: &BridgeSpec, tap: &str) -> Result<(), String> {
    let mut ports = 0;
    for group in world.groups() {
        let NetworkSpec::Bridge(other) = &group.spec.template.network else {
            continue;
        };
        if other.bridge == bridge.bridge {
            ports += group.size();
        }
        let name = &group.meta.name;
        if other.bridge == tap || tap_number(&other.tap_prefix, tap).is_some() {
            return Err(format!(
                "its TAP would have the name \"{tap}\", which a bridge or TAP of hostgroup/{name} has: use another `tap_prefix`"
            ));
        }
    }
    match ports < MAX_PORTS as usize {
        true => Ok(()),
        false => Err(format!(
            "bridge \"{}\" has {ports} ports, and a bridge has at most {MAX_PORTS}",
            bridge.bridge
        )),
    }
}

/// Refuses the request if the range has no free address. An address that the group has not chosen yet, or that plugins will assign, is
/// waited for.
fn has_address(txn: &mut Txn<'_>, name: &Name, now: Timestamp) -> Result<(), AddError> {
    let Some(vm) = txn.world().vm_named(name).cloned() else {
        return Ok(());
    };
    match txn.lease(&vm, now) {
        Ok(_) | Err(LeaseError::NoPool) => Ok(()),
        Err(LeaseError::Store(error)) => Err(error.into()),
        Err(
            error @ (LeaseError::NoBlock(_)
            | LeaseError::NoAddress(_)
            | LeaseError::Taken(..)
            | LeaseError::NotListed(_)
            | LeaseError::ListExhausted { .. }),
        ) => Err(AddError::Conflict(format!(
            "hostgroup/{}: {error}",
            vm.group
        ))),
    }
}
