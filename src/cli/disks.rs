//! Disks that are deleted with their VMs: warnings before that.
//! Out of scope: the question (`confirm`).

use crate::api::meta::Name;
use crate::api::view::{Object, VmView, first_names};

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
    match names.as_slice() {
        [] => None,
        [one] => Some(format!(
            "{object}: deletes 1 VM and its disk, which is not persistent: {one}"
        )),
        all => Some(format!(
            "{object}: deletes {} VMs and their disks, which are not persistent: {}",
            all.len(),
            first_names(all)
        )),
    }
}
