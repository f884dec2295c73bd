//! VMs made on demand: ordered from a group, and cancelled. Each in one transaction.
//! Out of scope: how they are changed and replaced with their group ([`super::plan`]); the host.
//!
//! # Why
//! What is wanted is the order, not the VM: the order stands in the group from the moment it is answered, so that a crash, a
//! replacement or a restart finds it, and it goes with the group. The VM itself is made in the same transaction, so that
//! whoever is told its name finds it, and is told at once when no address is left.

use std::collections::BTreeSet;

use super::choosing::{Stop, choose, choosing, claimed};
use super::claims::Claims;
use super::range::{HostUse, Seen};
use super::{Action, carry_out};
use crate::api::host_group::HostGroup;
use crate::api::link_name::{MAX_PORTS, tap_number};
use crate::api::meta::{Name, Timestamp};
use crate::api::network::{BridgeSpec, NetworkSpec};
use crate::api::on_demand::{Ask, OnDemand, Order};
use crate::api::validate::objection_to_requests;
use crate::store::{self, LeaseError, Store, Txn, World};

/// Characters of names that are made up: none that reads like another, no vowel that makes a word, and a letter to begin with.
const LETTERS: &[u8; 20] = b"bcdfghjkmnpqrstvwxyz";
const LETTERS_AND_DIGITS: &[u8; 28] = b"bcdfghjkmnpqrstvwxyz23456789";

/// What has become of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is new.
    Created,
    /// There is just such a VM of this name already.
    Unchanged,
}

/// Why there is no such VM.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// No group of this name, or none that lives.
    #[error("the group is not there")]
    NoGroup,
    /// The order makes no sense; one cause each.
    #[error("the order is invalid: {}", .0.join("; "))]
    Invalid(Vec<String>),
    /// Something is in its way.
    #[error("{0}")]
    Conflict(String),
    /// The group's addresses.
    #[error(transparent)]
    Group(#[from] super::Error),
    /// It could not be written.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<AddError> for Stop<AddError> {
    fn from(error: AddError) -> Self {
        Self::Failed(error)
    }
}

/// What has become of a VM that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It goes, or is already on its way.
    Going,
    /// It is one of so many that its group counts, and would come again.
    Counted(Name, u32),
    /// There is none.
    Absent,
}

/// Orders a VM from a group. Made up is a name that is not given.
///
/// # Errors
/// [`AddError`]; then nothing has changed.
pub async fn add(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    group: &Name,
    (name, ask): (Option<Name>, Ask),
    now: Timestamp,
) -> Result<(Name, Added), AddError> {
    choosing(store, claims, host_use, group, |txn, seen| {
        add_in(txn, claims, seen, group, (name.clone(), ask.clone()), now)
    })
    .await
}

/// The transaction of [`add`].
fn add_in(
    txn: &mut Txn<'_>,
    claims: &Claims,
    seen: &Seen,
    group: &Name,
    (name, ask): (Option<Name>, Ask),
    now: Timestamp,
) -> Result<(Name, Added), Stop<AddError>> {
    let mut living = living(txn.world(), group)?.clone();
    if let Some(name) = &name
        && let Some(done) = met_again(txn.world(), &living, name, &ask)?
    {
        return Ok((name.clone(), done));
    }
    choose(txn, seen, &living, living.size() + 1)?;
    let who = match &name {
        Some(name) => format!("vm/{name}"),
        None => "the VM".to_owned(),
    };
    let name = free_name(txn.world(), group, name)?;
    let order = Order { name, ask };
    let place = place(txn.world(), &living, &order, &who)?;
    living.orders.insert(place, order.clone());
    let create = Action::Create {
        index: place,
        spec: Box::new(order.ask.spec(&living.spec.template)),
        order: Some(Box::new(order.clone())),
    };
    txn.put_group(living)?;
    carry_out(txn, group, &create, now)?;
    has_address(txn, &order.name, now)?;
    claimed(txn.world(), claims, group)?;
    Ok((order.name, Added::Created))
}

/// Takes an order back, and its VM down.
///
/// # Errors
/// The store's.
pub fn remove(txn: &mut Txn<'_>, name: &Name) -> Result<Removed, store::Error> {
    let ordered = txn.world().order(name);
    let ordered = ordered.map(|(group, place, _)| (group.clone(), place));
    let vm = txn.world().vm_named(name).cloned();
    match (ordered, vm) {
        (None, None) => Ok(Removed::Absent),
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
                txn.remove_if_free(uid)?;
            }
            Ok(Removed::Going)
        }
    }
}

/// What a VM of this group, made for this ask, knows of both.
pub(super) fn of(world: &World, group: &Name, ask: Ask) -> Option<Box<OnDemand>> {
    let template = world.group(group)?.spec.template.clone();
    Some(Box::new(OnDemand { ask, template }))
}

fn living<'w>(world: &'w World, group: &Name) -> Result<&'w HostGroup, AddError> {
    let found = world.group(group).filter(|group| !group.meta.deleting);
    found.ok_or(AddError::NoGroup)
}

/// An order that stands already: the same again is no error.
fn met_again(
    world: &World,
    group: &HostGroup,
    name: &Name,
    ask: &Ask,
) -> Result<Option<Added>, AddError> {
    let Some((owner, _, order)) = world.order(name) else {
        return Ok(None);
    };
    if owner.meta.name != group.meta.name {
        let owner = &owner.meta.name;
        let why = format!("vm/{name} is there already: it belongs to hostgroup/{owner}");
        return Err(AddError::Conflict(why));
    }
    match order.ask == *ask {
        true => Ok(Some(Added::Unchanged)),
        false => Err(AddError::Conflict(format!(
            "vm/{name} is there already, made for another order: delete it first (`slicectl vm delete {name}`), or take another name"
        ))),
    }
}

fn free_name(world: &World, group: &Name, asked: Option<Name>) -> Result<Name, AddError> {
    let Some(name) = asked else {
        return made_up(world, group);
    };
    if HostGroup::is_counted_name(&name) {
        let why = format!(
            "\"{name}\" ends in a number, as the VMs that a group counts do: take another name"
        );
        return Err(AddError::Invalid(vec![why]));
    }
    match world.vm_named(&name) {
        None => Ok(name),
        Some(_) => Err(AddError::Conflict(format!(
            "vm/{name} is still being removed: wait for it (`slicectl wait vm/{name} --for deleted`), or take another name"
        ))),
    }
}

fn made_up(world: &World, group: &Name) -> Result<Name, AddError> {
    loop {
        let bytes = uuid::Uuid::new_v4().into_bytes();
        let first = LETTERS[usize::from(bytes[0]) % LETTERS.len()];
        // Bytes 6 and 8 of a random uuid are not all random.
        let more = bytes[1..5].iter();
        let more =
            more.map(|byte| LETTERS_AND_DIGITS[usize::from(*byte) % LETTERS_AND_DIGITS.len()]);
        let tail: String = std::iter::once(first).chain(more).map(char::from).collect();
        let name = Name::new(format!("{group}-{tail}")).map_err(|error| {
            let why = format!("no name can be made up, {error}: give it one");
            AddError::Invalid(vec![why])
        })?;
        if world.vm_named(&name).is_none() && world.order(&name).is_none() {
            return Ok(name);
        }
    }
}

/// Where in its group it will stand, if it can; `who` is what a refusal calls it, that has no name yet perhaps.
fn place(world: &World, group: &HostGroup, order: &Order, who: &str) -> Result<u32, AddError> {
    let standing: BTreeSet<u32> = world.vms_of(&group.meta.name).map(|vm| vm.index).collect();
    let place = group.free_place(|place| standing.contains(&place));
    let place = place.ok_or_else(|| AddError::Conflict("the group is full".to_owned()))?;
    let template = &group.spec.template;
    let mut causes: Vec<String> = order
        .objections(place, template)
        .into_iter()
        .map(|(_, why)| format!("{who} {why}"))
        .collect();
    if template.storage.has_writable_disk() && group.size() > 0 {
        let why = "the group has a disk that VMs write to, which one VM at most may have";
        causes.push(format!("{who} is one too many: {why}"));
    }
    if !causes.is_empty() {
        return Err(AddError::Invalid(causes));
    }
    let refused = objection_to_requests(world.groups(), &template.network, &order.ask.cni);
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
                "its TAP would be called \"{tap}\", as a bridge or TAP of hostgroup/{name}: another `tap_prefix` helps"
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

/// A range that is used up is told at once. What the group has not chosen yet, or plugins will say, is waited for.
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
            | LeaseError::ListUsedUp { .. }),
        ) => Err(AddError::Conflict(format!(
            "hostgroup/{}: {error}",
            vm.group
        ))),
    }
}
