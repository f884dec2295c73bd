//! The friendly name of a VM, its tag `name`: unique among the VMs of the REST API, and no name of a VM.
//! Out of scope: the syntax of tags.

use super::on_demand::{AddError, LETTERS, LETTERS_AND_DIGITS};
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

/// Whether this is the last part of a name that is generated, or that `count` gives.
fn is_generated(tail: &str) -> bool {
    let bytes = tail.as_bytes();
    let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let is_random = bytes.len() == 5
        && LETTERS.contains(&bytes[0])
        && bytes[1..]
            .iter()
            .all(|byte| LETTERS_AND_DIGITS.contains(byte));
    is_number || is_random
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_names_that_are_given_are_told_from_others() {
        for (tail, expected) in [
            ("1", true),
            ("4096", true),
            ("bcdf2", true),
            ("", false),
            ("web", false),
            ("apple", false),
            ("2bcdf", false),
            ("1a", false),
        ] {
            assert_eq!(is_generated(tail), expected, "{tail}");
        }
    }
}
