//! Deletion of an object by its name: refused, requested, or forced.
//! Out of scope: groups without a manifest (`intake_loop`); the removal itself.

use std::collections::BTreeSet;

use super::drafts::delete_group;
use super::failure::Failure;
use super::fleet::Slot;
use super::intake_loop::IntakeLoop;
use crate::api::host_group::{HostGroup, Origin};
use crate::api::meta::{Name, Uid};
use crate::api::on_demand::OnDemandEntry;
use crate::api::view::Kind;
use crate::reconcile::group::{self, Removed};
use crate::store::{self, Txn, World};
use crate::wire::{Deletion, Refusal};

/// Requests the deletion of an object in one transaction, so that a response implies that the request, and that it is forced, are stored.
/// Returns `false` if there is no such object.
///
/// # Errors
/// A refusal, or an error of the store.
pub(super) fn delete(
    txn: &mut Txn<'_>,
    (intake, fleet): (&IntakeLoop, &Slot),
    (kind, name): (Kind, &Name),
    how: Deletion,
) -> Result<bool, Failure> {
    match kind {
        Kind::HostGroup => delete_host_group(txn, (intake, fleet), name, how),
        Kind::Vm => Ok(delete_vm(txn, name, how)?),
        Kind::Lease => {
            let message = format!("{kind}/{name} is deleted with its VM: delete vm/{name}");
            Err(Failure::Refused(Refusal::Conflict(vec![message])))
        }
    }
}

fn delete_host_group(
    txn: &mut Txn<'_>,
    (intake, fleet): (&IntakeLoop, &Slot),
    name: &Name,
    how: Deletion,
) -> Result<bool, Failure> {
    if let Some(group) = txn.world().group(name)
        && let Origin::File(path) = &group.origin
        // After the file was removed, a deletion that is under way can be forced.
        && !group.meta.deleting
        // If the file does not exist, the group cannot be removed by editing it.
        && !group.adopted
        && !intake.has_no_file(group)
    {
        let message = format!(
            "hostgroup/{name} is defined in {}: remove it there",
            path.display()
        );
        return Err(Failure::Refused(Refusal::Conflict(vec![message])));
    }
    if let Some(group) = txn.world().group(name)
        && matches!(group.origin, Origin::Fleet { .. })
        && !group.meta.deleting
        && let Some(why) = fleet.keeps(&of_fleet(txn.world(), group))
    {
        let message = format!("hostgroup/{name} is of the fleet: {why}");
        return Err(Failure::Refused(Refusal::Conflict(vec![message])));
    }
    let exists = delete_group(txn, name)?;
    if exists && how == Deletion::Forced {
        force_group(txn, name)?;
    }
    Ok(exists)
}

/// The VMs of the fleet that a group has here, by their uids in the fleet.
fn of_fleet(world: &World, group: &HostGroup) -> BTreeSet<Uid> {
    let entries = group.orders.values();
    let entries = entries.filter_map(|entry| Some(entry.fleet.as_ref()?.uid));
    let vms = world.vms_of(&group.meta.name);
    entries
        .chain(vms.filter_map(|vm| Some(vm.fleet()?.uid)))
        .collect()
}

/// Forces the deletion of the group's VMs, some of which may already be deleting, in the same transaction; and of the group, for VMs that
/// are adopted later.
fn force_group(txn: &mut Txn<'_>, name: &Name) -> Result<(), store::Error> {
    if let Some(mut group) = txn.world().group(name).cloned() {
        group.meta.forced = true;
        txn.put_group(group)?;
    }
    let vms: Vec<Uid> = txn.world().vms_of(name).map(|vm| vm.meta.uid).collect();
    vms.into_iter()
        .try_for_each(|uid| delete_instance(txn, uid, Deletion::Forced))
}

fn delete_vm(txn: &mut Txn<'_>, name: &Name, how: Deletion) -> Result<bool, store::Error> {
    let uid = txn.world().vm_named(name).map(|vm| vm.meta.uid);
    // The entry of a VM of the fleet stays: the VM is replaced, as one that `count` requires.
    let is_added = |(_, _, entry): (_, _, &OnDemandEntry)| entry.fleet.is_none();
    let exists = match txn.world().order(name).is_some_and(is_added) {
        true => group::remove(txn, name)? == Removed::Going,
        false => uid.is_some(),
    };
    if let Some(uid) = uid {
        delete_instance(txn, uid, how)?;
    }
    Ok(exists)
}

/// A VM that has acquired no stage is removed at once.
fn delete_instance(txn: &mut Txn<'_>, uid: Uid, how: Deletion) -> Result<(), store::Error> {
    let Some(mut vm) = txn.world().vm(uid).cloned() else {
        return Ok(());
    };
    vm.meta.deleting = true;
    vm.meta.forced |= how == Deletion::Forced;
    txn.put_vm(vm)?;
    txn.remove_if_released(uid)
}
