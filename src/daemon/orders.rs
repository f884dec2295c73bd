//! Adds and removes VMs on demand.
//! Out of scope: validation of the request ([`crate::reconcile::group`]), HTTP.

use super::group_events::requester;
use super::not_found::not_found;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api::on_demand::NewVm;
use crate::api::view::{Applied, Kind, NewVmResult};
use crate::clock;
use crate::engine::Engine;
use crate::reconcile::group::{self, AddError, Added, HostUse, NameRule, Removed};
use crate::store;
use crate::wire::Refusal;

/// Adds a VM to a group on demand.
pub async fn add(engine: &Engine, group: Name, request: NewVm) -> Result<NewVmResult, Refusal> {
    let host_use = HostUse {
        netlink: &engine.host.netlink,
        instance: &engine.instance,
    };
    let (store, now) = (&engine.store, clock::now());
    let rule = match request.unique_name {
        true => NameRule::Unique,
        false => NameRule::Any,
    };
    let added = group::add_with(
        store,
        &engine.claims,
        &host_use,
        (&group, rule),
        request.split(),
        now,
    )
    .await;
    let (name, added) = added.map_err(|error| refusal(engine, &group, error))?;
    let applied = match added {
        Added::Created => Applied::Created,
        Added::Unchanged => Applied::Unchanged,
    };
    if added == Added::Created {
        let message = format!("created on demand in hostgroup/{group} {}", requester());
        note(engine, &name, EventReason::Added, &message);
    }
    let warnings = store.read(|world| {
        let vm = world.vm_named(&name);
        vm.map(|vm| vm.spec.network.warnings()).unwrap_or_default()
    });
    Ok(NewVmResult {
        name,
        applied,
        warnings,
    })
}

/// Removes a VM that was added on demand.
pub async fn remove(engine: &Engine, name: Name) -> Result<(), Refusal> {
    let removed = engine.store.write(|txn| group::remove(txn, &name));
    let removed = removed
        .await
        .map_err(|error: store::Error| Refusal::Failed(error.to_string()))?;
    match removed {
        Removed::Going => {
            let message = format!("deletion requested {}", requester());
            note(engine, &name, EventReason::Deleting, &message);
            Ok(())
        }
        Removed::Counted(group, count) => Err(Refusal::Conflict(vec![format!(
            "vm/{name} is one of the {count} VMs that hostgroup/{group} keeps (`count`) and would be created again: lower `count`, which removes the highest index first; `slicectl delete vm/{name}` replaces it"
        )])),
        Removed::OfFleet(group) => Err(Refusal::Conflict(vec![format!(
            "vm/{name} is of hostgroup/{group} of the fleet and would be created again: `slicectl scale --fleet` removes the highest index first; `slicectl delete vm/{name}` replaces it"
        )])),
        Removed::Absent => Err(engine.store.read(|world| not_found(world, Kind::Vm, &name))),
    }
}

pub(super) fn refusal(engine: &Engine, group: &Name, error: AddError) -> Refusal {
    match error {
        AddError::NoGroup => engine
            .store
            .read(|world| not_found(world, Kind::HostGroup, group)),
        AddError::Invalid(causes) => Refusal::Invalid(causes),
        AddError::Conflict(cause) => Refusal::Conflict(vec![cause]),
        AddError::Group(group::Error::Range(error)) => {
            Refusal::Conflict(vec![format!("hostgroup/{group}: {error}")])
        }
        AddError::Group(group::Error::Observe(error)) => Refusal::Failed(error.to_string()),
        AddError::Group(group::Error::Loop(error)) => Refusal::Failed(error.to_string()),
        AddError::Group(group::Error::Store(error)) | AddError::Store(error) => {
            Refusal::Failed(error.to_string())
        }
    }
}

fn note(engine: &Engine, name: &Name, reason: EventReason, message: &str) {
    let (now, object) = (clock::now(), ObjectRef::vm(name));
    let events = engine.store.events();
    events.note(now, EventType::Normal, &object, reason, message);
}
