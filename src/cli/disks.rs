//! Disks that are deleted with their VMs: warnings, and the question before a change that deletes them.
//! Out of scope: reading the answer (`confirm`).

use std::collections::BTreeSet;

use super::failure::{Failure, warn};
use super::{confirm, manifests};
use crate::api::meta::Name;
use crate::api::view::{self, Object, Source, VmView};
use crate::wire::{Client, Detail};

/// The VMs whose disks are deleted with them.
pub fn lost_disk(objects: &[Object]) -> impl Iterator<Item = &VmView> {
    let vms = objects.iter().filter_map(|object| match object {
        Object::Vm(vm) => Some(&**vm),
        Object::HostGroup(_) | Object::Lease(_) => None,
    });
    vms.filter(|vm| vm.status.disk.is_some() && !vm.spec.storage.persistent)
}

/// The VMs of a group whose disks are deleted with them.
pub fn lost_disks<'o>(objects: &'o [Object], group: &Name) -> impl Iterator<Item = &'o VmView> {
    lost_disk(objects).filter(move |vm| vm.metadata.group.as_ref() == Some(group))
}

/// The warning about disks that are deleted with these VMs; `None` without VMs.
pub fn disk_warning(object: &str, vms: &[&VmView]) -> Option<String> {
    let names: Vec<&Name> = vms.iter().map(|vm| &vm.metadata.name).collect();
    view::disk_warning(object, "deletes", &names)
}

/// Asks whether manifests are applied, if that deletes disks. Returns the warnings that were printed.
///
/// # Errors
/// The answer is no, or the daemon refuses the manifests.
pub async fn confirm_change(
    client: &Client,
    sources: &[Source],
) -> Result<BTreeSet<String>, Failure> {
    let result = manifests::difference(client, sources, Detail::Summary).await?;
    let vms = result.groups.iter().flat_map(|group| &group.vms);
    let lost = vms.filter(|vm| vm.deletes_disk).count();
    if lost == 0 {
        return Ok(BTreeSet::new());
    }
    let groups = result.groups.into_iter();
    let warnings = groups.flat_map(|group| group.result.warnings);
    let warnings: BTreeSet<String> = warnings.collect();
    warnings.iter().for_each(|text| warn(text));
    confirm::delete_disks(lost)?;
    Ok(warnings)
}
