//! When a VM of a node without contact may be started on another node, and the validation of the settings for it.
//! Out of scope: stopping the copy on that node (the agent of the node); choosing the other node.
//!
//! # Why no credit for the TTL
//! A lease can vanish early: it is revoked, or etcd is restored from a snapshot. So the key of a node can be absent at the moment of a
//! renewal that the node takes for confirmed, and the node counts from there. An extension of a lease by an election only delays.

use std::time::Duration;

use super::index::Index;
use super::view::{Contact, Stored};
use crate::api::meta::Name;
use crate::api::network::{Addresses, NetworkSpec};
use crate::api::vm::VmSpec;
use crate::fleet::object::{Group, Vm};

pub use crate::api::placement::{InvalidReplacement, MARGIN};

/// Why a VM with this spec is bound to its node; `None`: another node can start it from nothing.
pub(super) fn local_data(spec: &VmSpec) -> Option<&'static str> {
    match &spec.storage {
        storage if storage.persistent => Some("it has a persistent disk"),
        storage if storage.has_writable_disk() => Some("it writes to a disk of the node"),
        _ => None,
    }
}

fn has_fixed_address(network: &NetworkSpec) -> bool {
    match network {
        NetworkSpec::Isolated(_) => false,
        NetworkSpec::Bridge(bridge) => matches!(bridge.addresses, Addresses::Listed(_)),
        NetworkSpec::Cni(cni) => !cni.cni.ips.is_empty(),
    }
}

/// Whether a copy on a node without contact may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Not by this scheduler: its node has contact, or must confirm or be fenced.
    Never,
    /// After this time.
    In(Duration),
    /// Now.
    Now,
}

/// Whether the VM was bound with the present settings of the group.
fn is_bound_by(vm: &Vm, group: &Group) -> bool {
    let binding = vm.binding.as_ref();
    binding.is_some_and(|binding| binding.group_generation == group.meta.generation)
}

/// Whether the copy of the VM on this node, of this epoch, may be replaced.
///
/// The copy has ended when the node has done what it has confirmed: `stops_within` of its status. A node that has not reported this epoch
/// starts the copy only with the generation of the group that the binding names, so the settings of that generation apply; `is_moving`
/// excludes this, because the object no longer has the generation of the previous copy.
pub(super) fn due(
    index: &Index<'_>,
    group: &Stored<Group>,
    vm: &Vm,
    (node, epoch, is_moving): (&Name, u64, bool),
) -> Due {
    let spec = &group.value.spec.template;
    let grace = spec.lifecycle.graceful_shutdown.get();
    let Some(Contact::Lost { elapsed }) = index.node(node).map(|entry| entry.view.contact) else {
        return Due::Never;
    };
    let Some(settings) = group.value.replacement.filter(|it| it.check(grace).is_ok()) else {
        return Due::Never;
    };
    if local_data(spec).is_some() || has_fixed_address(&spec.network) {
        return Due::Never;
    }
    let reported = index.status(vm.meta.uid, node);
    let confirmed = match reported.filter(|status| status.value.epoch == epoch) {
        Some(status) => status.value.stops_within.map(|time| time + MARGIN),
        None if is_moving || !is_bound_by(vm, &group.value) => None,
        None => Some(settings.replace_after),
    };
    let Some(required) = confirmed.map(|time| time.max(settings.replace_after)) else {
        return Due::Never;
    };
    match required.checked_sub(elapsed) {
        Some(rest) if !rest.is_zero() => Due::In(rest),
        _ => Due::Now,
    }
}
