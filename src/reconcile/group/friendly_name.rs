//! The friendly name of a VM, its tag `name`: unique among the VMs of the REST API, and no name of a VM.
//! Out of scope: the syntax of tags.

use super::add_error::AddError;
use super::generated_name::is_generated;
use crate::api::meta::Name;
use crate::store::World;

/// Checks that a VM may have this friendly name. `own` is its name, if it exists.
pub(super) fn check(world: &World, label: &str, own: Option<&Name>) -> Result<(), AddError> {
    if let Some(group) = world.groups().map(|group| &group.meta.name).find(|group| {
        let tail = label
            .strip_prefix(group.as_str())
            .and_then(|tail| tail.strip_prefix('-'));
        tail.is_some_and(is_generated)
    }) {
        return Err(AddError::Invalid(vec![format!(
            "invalid tag name={label}: VMs of hostgroup/{group} have such names"
        )]));
    }
    let is_taken = |found: &Name| Some(found) != own;
    if let Ok(name) = Name::new(label)
        && (world.vm_named(&name).is_some() || world.order(&name).is_some())
    {
        return Err(AddError::Conflict(format!(
            "the name {label} is taken: it is that of vm/{name}"
        )));
    }
    let orders = world.groups().flat_map(|group| group.orders.values());
    let mut others = orders.filter(|order| is_taken(&order.name));
    let other = others.find(|order| {
        let name = order.overrides.tag_set();
        name.name().is_some_and(|name| name.to_string() == label)
    });
    match other {
        Some(other) => Err(AddError::Conflict(format!(
            "the name {label} is taken: vm/{} has the tag name={label}",
            other.name
        ))),
        None => Ok(()),
    }
}
