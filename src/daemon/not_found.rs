//! The refusal of a request for an object that does not exist, with the most similar name of an object that does.
//! Out of scope: kinds, which are checked before a request is sent.

use crate::api::meta::Name;
use crate::api::view::Kind;
use crate::store::World;
use crate::wire::Refusal;

/// The refusal for an object that does not exist.
pub(super) fn not_found(world: &World, kind: Kind, name: &Name) -> Refusal {
    let existing = world.groups().filter(|group| !group.meta.deleting);
    let suggestion = match kind {
        Kind::HostGroup => nearest(name, existing.map(|group| &group.meta.name)),
        Kind::Vm => nearest(name, world.vms().map(|vm| &vm.meta.name)),
        Kind::Lease => nearest(name, world.leases().map(|lease| &lease.name)),
    };
    let reference = format!("{kind}/{name}");
    match suggestion {
        None => Refusal::NotFound(reference),
        Some(near) => Refusal::NotFoundWithSuggestion(reference, format!("{kind}/{near}")),
    }
}

/// The most similar name, if at most a third of its characters differ.
fn nearest<'n>(found: &Name, names: impl Iterator<Item = &'n Name>) -> Option<Name> {
    let distance = |name: &Name| strsim::damerau_levenshtein(found.as_str(), name.as_str());
    names
        .map(|name| (distance(name), name))
        .filter(|(distance, name)| *distance <= name.as_str().len().div_ceil(3))
        .min()
        .map(|(_, name)| name.clone())
}
