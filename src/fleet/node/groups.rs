//! The local copies of groups of the fleet.
//! Out of scope: storing them.

use ipnetwork::Ipv4Network;

use super::{Input, Plan, Step};
use crate::api::host_group::{HostGroupSpec, UpdatePolicy};
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::fleet::object::{Group, NodeSubnet};

/// Copies the group, if the local copy is older.
///
/// # Why
/// The copy has no count, since the scheduler decides which VMs exist, and no rolling update, since the scheduler decides when each VM is
/// updated, on all nodes.
pub(super) fn put(input: &Input<'_>, group: &Group, plan: &mut Plan) {
    let local = input
        .local_groups
        .iter()
        .find(|local| local.name == group.meta.name);
    let is_copied = local.is_some_and(|local| {
        local.uid == group.meta.uid && local.generation >= group.meta.generation
    });
    if is_copied || is_put(plan, &group.meta.name) {
        return;
    }
    plan.steps.push(Step::PutGroup {
        name: group.meta.name.clone(),
        uid: group.meta.uid,
        generation: group.meta.generation,
        spec: Box::new(copy(input, group)),
    });
}

/// The group as it is stored on this node.
pub(super) fn copy(input: &Input<'_>, group: &Group) -> HostGroupSpec {
    let mut spec = HostGroupSpec {
        count: 0,
        update: UpdatePolicy::OnDelete,
        ..group.spec.clone()
    };
    if let Some(subnet) = subnet(input, group)
        && let NetworkSpec::Bridge(bridge) = &mut spec.template.network
    {
        let gateway = Ipv4Network::new(subnet.gateway, subnet.subnet.prefix());
        bridge.gateway = gateway.ok();
    }
    spec
}

/// The subnet of a group in bridge mode on this node.
pub(super) fn subnet<'i>(input: &Input<'i>, group: &Group) -> Option<&'i NodeSubnet> {
    group.placement.subnets?;
    if !matches!(group.spec.template.network, NetworkSpec::Bridge(_)) {
        return None;
    }
    input.objects.subnets.get(&group.meta.name)
}

/// Whether the group has a subnet for each node, and this node has none yet.
pub(super) fn lacks_subnet(input: &Input<'_>, group: &Group) -> bool {
    let is_bridge = matches!(group.spec.template.network, NetworkSpec::Bridge(_));
    is_bridge && group.placement.subnets.is_some() && subnet(input, group).is_none()
}

/// Removes local copies of groups that have no VMs here, neither in the local store nor in the fleet.
pub(super) fn remove(input: &Input<'_>, plan: &mut Plan) {
    if input.objects.vms.values().any(Result::is_err) {
        return;
    }
    for group in input.local_groups {
        let name = &group.name;
        let has_local = input.local.values().any(|local| local.group == *name);
        let has_bound = input.objects.vms.values().flatten().any(|vm| {
            let binding = vm.binding.as_ref();
            vm.group == *name && binding.is_some_and(|binding| binding.node == *input.node)
        });
        if !has_local && !has_bound && !is_put(plan, name) {
            plan.steps.push(Step::RemoveGroup { name: name.clone() });
        }
    }
}

fn is_put(plan: &Plan, group: &Name) -> bool {
    let mut steps = plan.steps.iter();
    steps.any(|step| matches!(step, Step::PutGroup { name, .. } if name == group))
}
