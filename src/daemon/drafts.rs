//! Writes drafts of groups to the store, and requests the deletion of groups.
//! Out of scope: the source of the drafts.

use std::collections::BTreeMap;

use crate::api::host_group::{DirectoryId, HostGroup, Origin};
use crate::api::manifest::Draft;
use crate::api::meta::{Meta, Name};
use crate::api::view::Applied;
use crate::api::vm::Vm;
use crate::clock;
use crate::store::{self, Txn};

/// Writes a group as a draft specifies it.
///
/// # Errors
/// An error of the store.
pub fn store_draft(
    txn: &mut Txn<'_>,
    draft: &Draft,
    origin: &Origin,
    seen_in: Option<&DirectoryId>,
) -> Result<Applied, store::Error> {
    let existing = txn.world().group(&draft.name).cloned();
    let (group, applied) = match existing.filter(|group| !group.meta.deleting) {
        None => {
            let group = HostGroup {
                meta: Meta::new(draft.name.clone(), clock::now()),
                origin: origin.clone(),
                spec: draft.spec.clone(),
                orders: BTreeMap::new(),
                adopted: false,
                seen_in: seen_in.cloned(),
            };
            (group, Applied::Created)
        }
        Some(group) if group.spec == draft.spec && group.origin == *origin && !group.adopted => {
            return Ok(Applied::Unchanged);
        }
        Some(mut group) => {
            if group.spec != draft.spec {
                group.meta.generation += 1;
            }
            if group.spec.update != draft.spec.update || group.origin != *origin {
                bump_vm_generations(txn, &draft.name)?;
            }
            group.spec = draft.spec.clone();
            group.origin = origin.clone();
            group.adopted = false;
            group.seen_in = seen_in.cloned();
            (group, Applied::Configured)
        }
    };
    txn.put_group(group)?;
    Ok(applied)
}

/// The record of each VM contains data of its group. With a new generation, rewriting it counts as a change of the spec, not as drift.
fn bump_vm_generations(txn: &mut Txn<'_>, group: &Name) -> Result<(), store::Error> {
    let vms: Vec<Vm> = txn.world().vms_of(group).cloned().collect();
    for mut vm in vms {
        vm.meta.generation += 1;
        txn.put_vm(vm)?;
    }
    Ok(())
}

/// Requests the deletion of a group. Returns `false` if it does not exist.
///
/// # Errors
/// An error of the store.
pub fn delete_group(txn: &mut Txn<'_>, name: &Name) -> Result<bool, store::Error> {
    match txn.world().group(name).cloned() {
        None => Ok(false),
        Some(mut group) => {
            group.meta.deleting = true;
            // A group of this name that is created before the last VM is removed starts without orders.
            group.orders.clear();
            txn.put_group(group)?;
            Ok(true)
        }
    }
}
