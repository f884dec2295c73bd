//! Changes that only restrict: these can be stored in the reserve while the database cannot be written.
//! Out of scope: the reserve.

use crate::api::host_group::{HostGroup, HostGroupSpec};
use crate::api::meta::Meta;
use crate::api::policy::Entry;
use crate::api::vm::{Vm, VmSpec};

/// Whether a change of a group only restricts what its VMs may send.
pub(super) fn only_restricts(before: &HostGroup, after: &HostGroup) -> bool {
    let same = HostGroup {
        meta: Meta {
            generation: after.meta.generation,
            ..before.meta.clone()
        },
        spec: HostGroupSpec {
            template: with_network_of(&before.spec.template, &after.spec.template),
            ..before.spec.clone()
        },
        ..before.clone()
    };
    let (old, new) = (&before.spec.template, &after.spec.template);
    old != new && same == *after && new.network.is_at_most_as_permissive_as(&old.network)
}

/// As [`only_restricts`], for a VM and its copy of the group's settings.
pub(super) fn vm_only_restricts(before: &Vm, after: &Vm) -> bool {
    let same = Vm {
        meta: Meta {
            generation: after.meta.generation,
            ..before.meta.clone()
        },
        spec: with_network_of(&before.spec, &after.spec),
        on_demand: after.on_demand.clone(),
        ..before.clone()
    };
    before.spec.network != after.spec.network
        && same == *after
        && before.on_demand.is_some() == after.on_demand.is_some()
        && after
            .spec
            .network
            .is_at_most_as_permissive_as(&before.spec.network)
}

/// `spec` with the network of `after`.
fn with_network_of(spec: &VmSpec, after: &VmSpec) -> VmSpec {
    VmSpec {
        network: after.network.clone(),
        ..spec.clone()
    }
}

/// The host openings that the VMs made on demand of a group request.
pub(super) fn on_demand_openings(group: &HostGroup) -> impl Iterator<Item = Entry> + '_ {
    let orders = group.orders.values();
    orders.flat_map(|order| order.overrides.host_access_entries())
}
