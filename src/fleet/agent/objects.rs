//! The part of the objects of the fleet that the plan of this node is computed from.
//! Out of scope: reading them from etcd.

use std::collections::BTreeSet;

use crate::api::meta::{Name, Uid};
use crate::fleet::mirror::Mirror;
use crate::fleet::node::Objects;
use crate::fleet::object::Vm;

/// The VMs that name this node or are on it, their groups, and the status keys of this node.
pub(super) fn of(mirror: &Mirror, node: &Name, known: impl Fn(&Uid) -> bool) -> Objects {
    let statuses = mirror.statuses.get(node);
    let statuses = statuses.into_iter().flatten();
    let mut objects = Objects {
        statuses: statuses
            .map(|(uid, stored)| (*uid, stored.value.clone()))
            .collect(),
        ..Objects::default()
    };
    let mut groups = BTreeSet::new();
    for (uid, stored) in &mirror.vms {
        let concerns = match &stored.value {
            Ok(vm) => names(vm, node) || known(uid) || objects.statuses.contains_key(uid),
            // It may concern this node.
            Err(_) => true,
        };
        if !concerns {
            continue;
        }
        if let Ok(vm) = &stored.value {
            groups.insert(&vm.group);
        }
        objects.vms.insert(*uid, stored.value.clone());
    }
    for name in groups {
        if let Some(stored) = mirror.groups.get(name) {
            objects.groups.insert(name.clone(), stored.value.clone());
        }
        let subnet = mirror.ranges.get(name).and_then(|nodes| nodes.get(node));
        if let Some(Ok(subnet)) = subnet.map(|stored| &stored.value) {
            objects.subnets.insert(name.clone(), *subnet);
        }
    }
    objects
}

/// Whether the object says that this node has or may have a copy.
fn names(vm: &Vm, node: &Name) -> bool {
    vm.copies().any(|copy| copy.node == node)
}

/// The same for one VM.
pub(super) fn of_one(mirror: &Mirror, node: &Name, uid: Uid) -> Objects {
    let mut objects = Objects::default();
    if let Some(stored) = mirror.vms.get(&uid) {
        if let Ok(vm) = &stored.value
            && let Some(group) = mirror.groups.get(&vm.group)
        {
            objects.groups.insert(vm.group.clone(), group.value.clone());
        }
        objects.vms.insert(uid, stored.value.clone());
    }
    let status = mirror.statuses.get(node).and_then(|of| of.get(&uid));
    if let Some(stored) = status {
        objects.statuses.insert(uid, stored.value.clone());
    }
    objects
}

/// Whether a VM is bound to this node that it does not have yet.
pub(super) fn has_new(objects: &Objects, node: &Name, has: impl Fn(&Uid) -> bool) -> bool {
    let vms = objects.vms.values().flatten();
    let mut bound = vms.filter(|vm| vm.binding.as_ref().is_some_and(|it| it.node == *node));
    bound.any(|vm| !has(&vm.meta.uid))
}
