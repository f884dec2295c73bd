//! Adds and removes VMs on demand.
//! Out of scope: validation of the request ([`crate::reconcile::group`]), HTTP.

use super::group_events::requester;
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Name;
use crate::api::on_demand::NewVm;
use crate::api::view::{Applied, NewVmResult};
use crate::clock;
use crate::engine::Engine;
use crate::reconcile::group::{self, AddError, Added, HostUse, Removed};
use crate::store;
use crate::wire::Refusal;

/// Adds a VM to a group on demand.
pub async fn add(engine: &Engine, group: Name, request: NewVm) -> Result<NewVmResult, Refusal> {
    let host_use = HostUse {
        netlink: &engine.host.netlink,
        instance: &engine.instance,
    };
    let (store, now) = (&engine.store, clock::now());
    let added = group::add(
        store,
        &engine.claims,
        &host_use,
        &group,
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
        Removed::Absent => {
            let suggestion = engine
                .store
                .read(|world| nearest(&name, world.vms().map(|vm| &vm.meta.name)));
            Err(not_found("vm", &name, suggestion))
        }
    }
}

fn refusal(engine: &Engine, group: &Name, error: AddError) -> Refusal {
    match error {
        AddError::NoGroup => {
            let suggestion = engine.store.read(|world| {
                let existing = world.groups().filter(|group| !group.meta.deleting);
                nearest(group, existing.map(|group| &group.meta.name))
            });
            not_found("hostgroup", group, suggestion)
        }
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

pub(super) fn not_found(kind: &str, name: &Name, suggestion: Option<Name>) -> Refusal {
    let reference = format!("{kind}/{name}");
    match suggestion {
        None => Refusal::NotFound(reference),
        Some(near) => Refusal::NotFoundWithSuggestion(reference, format!("{kind}/{near}")),
    }
}

/// The most similar name, if at most a third of its characters differ.
pub(super) fn nearest<'n>(found: &Name, names: impl Iterator<Item = &'n Name>) -> Option<Name> {
    names
        .map(|name| {
            (
                strsim::damerau_levenshtein(found.as_str(), name.as_str()),
                name,
            )
        })
        .filter(|(distance, name)| *distance <= name.as_str().len().div_ceil(3))
        .min()
        .map(|(_, name)| name.clone())
}

fn note(engine: &Engine, name: &Name, reason: EventReason, message: &str) {
    let (now, object) = (clock::now(), ObjectRef::vm(name));
    let events = engine.store.events();
    events.note(now, EventType::Normal, &object, reason, message);
}
