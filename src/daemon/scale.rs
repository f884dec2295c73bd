//! Changes the number of VMs of a group that `slicectl apply` has created.
//! Out of scope: creating and deleting the VMs.

use super::difference;
use super::drafts::store_draft;
use super::failure::Failure;
use super::group_events::{GroupEvent, requester};
use super::not_found::not_found;
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::manifest::{self, Draft, Location, Locations, Position};
use crate::api::meta::Name;
use crate::api::validate;
use crate::api::view::{Applied, ApplyResult, Kind, Scale};
use crate::engine::Engine;
use crate::store::{Txn, World};
use crate::wire::Refusal;

/// Changes the number of VMs. Only `count` of the stored spec is changed, in one transaction, so that a concurrent `apply` is not undone.
///
/// # Errors
/// The group does not exist, is defined in a file, was changed since the given generation, or cannot have that many VMs.
pub async fn scale(engine: &Engine, name: Name, request: Scale) -> Result<ApplyResult, Refusal> {
    let draft = engine.store.read(|world| checked(world, &name, &request))?;
    let warnings = difference::warnings(engine, std::slice::from_ref(&draft)).await;
    let requester = requester();
    let change = |txn: &mut Txn<'_>| {
        // Checked again within the transaction, which no other change can interleave with.
        let draft = checked(txn.world(), &name, &request).map_err(Failure::Refused)?;
        let event = GroupEvent::of(txn, &draft, &requester);
        let applied = store_draft(txn, &draft, &Origin::Apply, None)?;
        Ok::<_, Failure>((applied, event))
    };
    let (applied, event) = engine.store.write(change).await?;
    if applied != Applied::Unchanged {
        event.record(engine.store.events(), "");
    }
    Ok(ApplyResult {
        name,
        applied,
        warnings: warnings.into_iter().flatten().collect(),
    })
}

/// The group with the new number of VMs, if it may have it.
fn checked(world: &World, name: &Name, request: &Scale) -> Result<Draft, Refusal> {
    let found = world.group(name).filter(|group| !group.meta.deleting);
    let Some(group) = found else {
        return Err(not_found(world, Kind::HostGroup, name));
    };
    if let Origin::File(path) = &group.origin {
        return refuse(format!(
            "hostgroup/{name} is defined in {}: change its `count` there",
            path.display()
        ));
    }
    if matches!(group.origin, Origin::Fleet { .. }) {
        return refuse(format!(
            "hostgroup/{name} is of the fleet: scale it with `slicectl scale --fleet`"
        ));
    }
    let is_other = request.uid.is_some_and(|uid| uid != group.meta.uid);
    let is_newer = request
        .generation
        .is_some_and(|seen| seen != group.meta.generation);
    if is_other || is_newer {
        return refuse(format!(
            "hostgroup/{name} was changed by another command: generation {}; try again",
            group.meta.generation
        ));
    }
    let at = Location::new("slicectl scale", Position::START);
    let draft = Draft {
        name: name.clone(),
        spec: HostGroupSpec {
            count: request.count,
            ..group.spec.clone()
        },
        fleet: None,
        at: at.clone(),
        locations: Locations::nowhere(format!("hostgroup/{name}"), at),
        warnings: Vec::new(),
    };
    let problems = manifest::count_problems(name, &draft.spec);
    if !problems.is_empty() {
        let problems = problems.into_iter();
        let text = |why| format!("hostgroup/{name}: count: {why}");
        return Err(Refusal::Invalid(problems.map(text).collect()));
    }
    let groups: Vec<HostGroup> = world.groups().cloned().collect();
    match validate::check_apply(&groups, std::slice::from_ref(&draft)) {
        Ok(()) => Ok(draft),
        Err(problems) => {
            let problems = problems.iter();
            let text = |found: &manifest::Problem| format!("{}: {}", found.field, found.message);
            Err(Refusal::Conflict(problems.map(text).collect()))
        }
    }
}

fn refuse(why: String) -> Result<Draft, Refusal> {
    Err(Refusal::Conflict(vec![why]))
}
