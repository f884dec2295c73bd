//! Groups, and lists of VMs; the deletion of one.
//! Out of scope: creating them (`create`).

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use serde::Deserialize;
use utoipa::IntoParams;

use super::super::backend::Backend;
use super::super::shared::{AppState, Shared};
use super::errors::{Rejection, error, invalid, name, query, refused, vm_name};
use super::types::{Deleted, GroupEntry, NodeEntry, arch};
use super::wait;
use crate::api::meta::Name;
use crate::api::view::{Kind, Object};

/// Which VMs a list has.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only VMs with exactly this tag.
    tag: Option<String>,
    /// Only VMs with a tag that begins with this.
    tag_prefix: Option<String>,
}

impl Filter {
    fn checked(self) -> Result<Self, Rejection> {
        match (&self.tag, &self.tag_prefix) {
            (Some(_), Some(_)) => Err(invalid("found tag and tag_prefix, expected one of them")),
            _ => Ok(self),
        }
    }

    fn selects(&self, tags: &[String]) -> bool {
        let is_tag = |tag: &String| tags.contains(tag);
        let begins = |prefix: &String| tags.iter().any(|tag| tag.starts_with(prefix));
        self.tag.as_ref().is_none_or(is_tag) && self.tag_prefix.as_ref().is_none_or(begins)
    }
}

/// The groups. One that is added while the daemon runs is there at once.
#[utoipa::path(get, path = "/hostgroup", tag = "groups", responses(Rejection,
    (status = 200, body = Vec<GroupEntry>),
))]
pub(super) async fn groups<B: Backend>(
    State(state): AppState<B>,
) -> Result<Json<Vec<GroupEntry>>, Rejection> {
    let list = state.backend.get(Kind::HostGroup, None).await;
    let items = list.map_err(refused)?.items.into_iter();
    let groups = items.filter_map(|object| match object {
        Object::HostGroup(group) if !group.metadata.deleting => Some(group),
        _ => None,
    });
    let entries = groups.map(|group| GroupEntry {
        name: group.metadata.name.to_string(),
        count: group.spec.count,
        ram_bytes: group.spec.template.ram_bytes,
        cpus: group.spec.template.vcpu,
        gpu_count: 0,
        arch: arch(),
    });
    Ok(Json(entries.collect()))
}

/// The VMs of all groups.
#[utoipa::path(get, path = "/nodes", tag = "vms", params(Filter), responses(Rejection,
    (status = 200, body = Vec<NodeEntry>),
))]
pub(super) async fn all<B: Backend>(
    State(state): AppState<B>,
    uri: Uri,
) -> Result<Json<Vec<NodeEntry>>, Rejection> {
    list(&state, None, query::<Filter>(&uri)?.checked()?).await
}

/// The VMs of a group.
#[utoipa::path(get, path = "/hostgroup/{group}/nodes", tag = "vms",
    params(Filter),
    responses(Rejection,
        (status = 200, body = Vec<NodeEntry>),
    ))]
pub(super) async fn of_group<B: Backend>(
    State(state): AppState<B>,
    Path(group): Path<String>,
    uri: Uri,
) -> Result<Json<Vec<NodeEntry>>, Rejection> {
    let group = name("hostgroup", &group)?;
    list(&state, Some(group), query::<Filter>(&uri)?.checked()?).await
}

/// The same, for a client that escapes the `?` before its query.
pub(super) async fn in_path<B: Backend>(
    State(state): AppState<B>,
    Path((group, nodes)): Path<(String, String)>,
) -> Result<Json<Vec<NodeEntry>>, Rejection> {
    let uri = match nodes.strip_prefix("nodes?") {
        Some(query) => format!("/?{query}").parse::<Uri>(),
        None => {
            let text = crate::api::plain_text::line(&nodes, 80);
            let text = format!("path /hostgroup/{{group}}/{text} not found");
            return Err(error(StatusCode::NOT_FOUND, text));
        }
    };
    let uri = uri.map_err(|error| invalid(format!("invalid query: {error}")))?;
    let group = name("hostgroup", &group)?;
    list(&state, Some(group), query::<Filter>(&uri)?.checked()?).await
}

async fn list<B: Backend>(
    state: &Shared<B>,
    group: Option<Name>,
    filter: Filter,
) -> Result<Json<Vec<NodeEntry>>, Rejection> {
    let nodes = state.backend.nodes(group).await.map_err(refused)?;
    let uses = state.agents.uses();
    let entries = nodes
        .iter()
        .map(|node| NodeEntry::of(node, uses.last(&node.name, node.created_at)));
    Ok(Json(
        entries
            .filter(|entry| filter.selects(&entry.tags))
            .collect(),
    ))
}

/// Deletes a VM that a request created. It is answered when the VM is removed, or after two seconds.
#[utoipa::path(delete, path = "/hostgroup/{group}/nodes/{vm}", tag = "vms",
    responses(Rejection,
        (status = 200, body = Deleted),
        (status = 403, description = "The group keeps this VM"),
    ))]
pub(super) async fn remove<B: Backend>(
    State(state): AppState<B>,
    Path((group, vm)): Path<(String, String)>,
) -> Result<Json<Deleted>, Rejection> {
    let (group, vm) = (name("hostgroup", &group)?, vm_name(&vm)?);
    let node = state.backend.node(vm.clone()).await.map_err(refused)?.node;
    if node.group != group {
        let text = format!("vm/{vm} not found in hostgroup/{group}");
        return Err(error(StatusCode::NOT_FOUND, text));
    }
    if !node.on_demand {
        let text = format!(
            "vm/{vm} is protected: hostgroup/{group} keeps it (count), and would create it again"
        );
        return Err(error(StatusCode::FORBIDDEN, text));
    }
    state.backend.remove_vm(vm.clone()).await.map_err(refused)?;
    let removed = wait::is_removed(&*state.backend, &vm, wait::REMOVAL).await;
    let keeps_disk = node.persistent && node.has_disk;
    let message = match removed {
        true => format!("vm/{vm} is deleted"),
        false => format!("vm/{vm} is being deleted"),
    };
    Ok(Json(Deleted {
        message,
        disk_removed: removed && !keeps_disk,
    }))
}
