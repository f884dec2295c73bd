//! The local copies of groups of the fleet.
//! Out of scope: storing them.

use super::{Input, Plan, Step};
use crate::api::host_group::{HostGroupSpec, UpdatePolicy};
use crate::api::meta::Name;
use crate::fleet::object::Group;

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
        spec: Box::new(HostGroupSpec {
            count: 0,
            update: UpdatePolicy::OnDelete,
            ..group.spec.clone()
        }),
    });
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
