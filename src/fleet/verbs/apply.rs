//! Creates, changes, scales and deletes groups of the fleet.
//! Out of scope: their VMs, which the scheduler creates and deletes.

use super::super::keys::Key;
use super::super::kv::Client;
use super::super::object::Group;
use super::change::{Change, MAX_GROUPS, change};
use super::{Error, Snapshot};
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin};
use crate::api::manifest::{self, Draft, Location, Locations, Position, Problem};
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::placement::{FleetPart, addresses_in};
use crate::api::validate;
use crate::api::view::{Applied, ApplyResult, Scale};

/// Stores groups, all or none. A change of the spec, the placement or the replacement increments the generation; a group that is as
/// specified is not written. With `is_dry_run` nothing is written.
///
/// # Errors
/// [`Error::Conflict`] if a group is being deleted, cannot be read, or conflicts with another one.
pub async fn apply(
    client: &Client,
    drafts: &[Draft],
    now: Timestamp,
    is_dry_run: bool,
) -> Result<Vec<ApplyResult>, Error> {
    if let Some(draft) = drafts.get(MAX_GROUPS) {
        let found = drafts.len();
        let message = format!("found {found} groups, expected at most {MAX_GROUPS} in one request");
        return Err(Error::Invalid(vec![
            draft.problem("name", message).to_string(),
        ]));
    }
    change(client, |current| {
        check(current, drafts)?;
        let (mut changes, mut results) = (Vec::new(), Vec::new());
        for draft in drafts {
            let (applied, group) = desired(current, draft, now);
            results.push(ApplyResult {
                name: draft.name.clone(),
                applied,
                warnings: [draft.warnings.clone(), unchecked(current)].concat(),
            });
            changes.push(Change {
                name: draft.name.clone(),
                write: group.filter(|_| !is_dry_run),
            });
        }
        Ok((changes, results))
    })
    .await
}

/// Changes the number of VMs of a group, and nothing else.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] if the group has another uid or generation than the request.
pub async fn scale(client: &Client, name: &Name, request: &Scale) -> Result<ApplyResult, Error> {
    change(client, |current| {
        let group = existing(current, name)?;
        let is_other = request.uid.is_some_and(|uid| uid != group.meta.uid);
        let seen = request.generation;
        if is_other || seen.is_some_and(|seen| seen != group.meta.generation) {
            let generation = group.meta.generation;
            return Err(Error::conflict(format!(
                "hostgroup/{name} was changed by another command: generation {generation}; try again"
            )));
        }
        let draft = scaled(group, request.count);
        let problems = manifest::fleet_count_problems(name, &draft.spec, &group.placement).into_iter();
        let problems: Vec<String> = problems
            .map(|why| format!("hostgroup/{name}: count: {why}"))
            .collect();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        check(current, std::slice::from_ref(&draft))?;
        let (applied, write) = desired(current, &draft, group.meta.created_at);
        let result = ApplyResult {
            name: name.clone(),
            applied,
            warnings: unchecked(current),
        };
        let name = name.clone();
        Ok((vec![Change { name, write }], result))
    })
    .await
}

/// Requests the deletion of a group; with a uid, only of that group. The scheduler removes it when all its VMs are deleted.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] if another group has this name by now.
pub async fn delete_group(client: &Client, name: &Name, uid: Option<Uid>) -> Result<(), Error> {
    change(client, |current| {
        let key = Key::Group(name.clone());
        readable(current, &key, name)?;
        let stored = current.groups.get(name);
        let stored = stored.ok_or_else(|| Error::NotFound(format!("hostgroup/{name}")))?;
        let group = &stored.value;
        if uid.is_some_and(|uid| uid != group.meta.uid) {
            return Err(Error::conflict(format!(
                "hostgroup/{name} was deleted and created again by another command: it has the uid {}; nothing was deleted",
                group.meta.uid
            )));
        }
        let write = (!group.meta.deleting).then(|| Group {
            meta: Meta {
                deleting: true,
                ..group.meta.clone()
            },
            ..group.clone()
        });
        let name = name.clone();
        Ok((vec![Change { name, write }], ()))
    })
    .await
}

/// The group, as the draft specifies it, and whether it differs; `None` if it does not.
fn desired(current: &Snapshot, draft: &Draft, now: Timestamp) -> (Applied, Option<Group>) {
    let FleetPart {
        placement,
        replacement,
    } = draft.fleet.as_deref().cloned().unwrap_or_default();
    let Some(stored) = current.groups.get(&draft.name) else {
        let meta = Meta::new(draft.name.clone(), now);
        let group = Group {
            template_generation: meta.generation,
            meta,
            spec: draft.spec.clone(),
            placement,
            replacement,
        };
        return (Applied::Created, Some(group));
    };
    let before = &stored.value;
    let mut group = Group {
        meta: before.meta.clone(),
        template_generation: before.template_generation,
        spec: draft.spec.clone(),
        placement,
        replacement,
    };
    if group == *before {
        return (Applied::Unchanged, None);
    }
    group.meta.generation += 1;
    if group.spec.template != before.spec.template {
        group.template_generation = group.meta.generation;
    }
    (Applied::Configured, Some(group))
}

/// Checks that all groups of the request can be stored.
pub(super) fn check(current: &Snapshot, drafts: &[Draft]) -> Result<(), Error> {
    let mut problems: Vec<Problem> = Vec::new();
    for draft in drafts {
        let name = &draft.name;
        if let Some(value) = current.unreadable_at(&Key::Group(name.clone())) {
            let message = format!(
                "the stored hostgroup/{name} cannot be read: {}",
                value.error
            );
            problems.push(draft.problem("name", message));
        }
        if let Some(message) = too_many(draft) {
            problems.push(draft.problem("count", message));
        }
        let stored = current.groups.get(name);
        if stored.is_some_and(|stored| stored.value.meta.deleting) {
            let message =
                format!("hostgroup/{name} is being deleted; apply it again when it is removed");
            problems.push(draft.problem("name", message));
        }
    }
    let stored = current.groups.values().map(|stored| &stored.value);
    let stored: Vec<HostGroup> = stored
        .filter(|group| !group.meta.deleting)
        .map(as_on_a_host)
        .collect();
    problems.extend(validate::fleet_conflicts(&stored, drafts));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Conflict(
            manifest::shown(problems)
                .iter()
                .map(ToString::to_string)
                .collect(),
        )),
    }
}

/// More VMs than the subnets of all nodes have addresses for, however many nodes there are. Whether there are enough nodes is no error: the
/// VMs that do not fit are pending.
fn too_many(draft: &Draft) -> Option<String> {
    let subnets = draft.fleet.as_deref()?.placement.subnets?;
    let count = u64::from(draft.spec.count);
    (count > subnets.addresses()).then(|| {
        format!(
            "{count} VMs do not fit: placement.subnets has {} subnets with addresses for {} VMs each",
            subnets.count(),
            addresses_in(subnets.prefix_len)
        )
    })
}

fn as_on_a_host(group: &Group) -> HostGroup {
    HostGroup {
        meta: group.meta.clone(),
        origin: Origin::Apply,
        spec: group.spec.clone(),
        orders: Default::default(),
        adopted: false,
        seen_in: None,
    }
}

/// A warning for each group that was not compared with those of the request.
fn unchecked(current: &Snapshot) -> Vec<String> {
    let values = current.unreadable.iter();
    values
        .map(|value| {
            format!(
                "{} cannot be read, and conflicts with it are not detected: {}",
                value.key, value.error
            )
        })
        .collect()
}

fn existing<'a>(current: &'a Snapshot, name: &Name) -> Result<&'a Group, Error> {
    readable(current, &Key::Group(name.clone()), name)?;
    let group = current.groups.get(name).map(|stored| &stored.value);
    let group = group.filter(|group| !group.meta.deleting);
    group.ok_or_else(|| Error::NotFound(format!("hostgroup/{name}")))
}

fn readable(current: &Snapshot, key: &Key, name: &Name) -> Result<(), Error> {
    match current.unreadable_at(key) {
        None => Ok(()),
        Some(value) => Err(Error::conflict(format!(
            "the stored hostgroup/{name} cannot be read: {}",
            value.error
        ))),
    }
}

/// The group with another number of VMs.
fn scaled(group: &Group, count: u32) -> Draft {
    let at = Location::new("slicectl scale", Position::START);
    let name = &group.meta.name;
    Draft {
        name: name.clone(),
        spec: HostGroupSpec {
            count,
            ..group.spec.clone()
        },
        fleet: Some(Box::new(FleetPart {
            placement: group.placement.clone(),
            replacement: group.replacement,
        })),
        at: at.clone(),
        locations: Locations::nowhere(format!("hostgroup/{name}"), at),
        warnings: Vec::new(),
    }
}
