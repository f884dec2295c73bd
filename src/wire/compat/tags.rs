//! The tags of a VM.
//! Out of scope: their rules ([`crate::api::tag`], [`crate::reconcile::group`]).

use axum::Json;
use axum::extract::{Path, State};
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::super::backend::Backend;
use super::super::shared::AppState;
use super::errors::{Rejection, invalid, json, refused, vm_name};
use super::types::Tags;
use crate::api::node::TagChange;
use crate::api::tag::MAX_TAGS;

/// A change of tags: `add` and `remove`, or `replace`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(super) struct TagsBody {
    /// Tags that the VM gets.
    add: Option<Vec<String>>,
    /// Tags that it loses.
    remove: Option<Vec<String>>,
    /// All its tags but its name; `[]` removes them.
    replace: Option<Vec<String>>,
    /// Its name, the tag `name=`; empty: it has none.
    name: Option<String>,
}

/// The tags of a VM.
#[utoipa::path(get, path = "/vm/{vm}/tags", tag = "vms",
    responses(Rejection, (status = 200, body = Tags)))]
pub(super) async fn get<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
) -> Result<Json<Tags>, Rejection> {
    let vm = vm_name(&vm)?;
    let node = state.backend.node(vm.clone()).await.map_err(refused)?.node;
    Ok(Json(Tags {
        hostname: vm.to_string(),
        tags: node.tags.texts(),
    }))
}

/// Changes the tags of a VM that a request created, all at once.
#[utoipa::path(patch, path = "/vm/{vm}/tags", tag = "vms",
    request_body(content = Option<TagsBody>),
    responses(Rejection,
        (status = 200, body = Tags),
        (status = 409, description = "The name is taken, or the group keeps this VM"),
    ))]
pub(super) async fn change<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
    body: Bytes,
) -> Result<Json<Tags>, Rejection> {
    let vm = vm_name(&vm)?;
    let body = json::<TagsBody>(&body)?;
    let (add, remove) = (
        body.add.unwrap_or_default(),
        body.remove.unwrap_or_default(),
    );
    if body.replace.is_some() && !(add.is_empty() && remove.is_empty()) {
        return Err(invalid(
            "found replace with add or remove, expected one of them",
        ));
    }
    let count = add.len().max(remove.len());
    let count = count.max(body.replace.as_ref().map_or(0, Vec::len));
    if count > MAX_TAGS {
        return Err(invalid(format!(
            "found {count} tags, expected at most {MAX_TAGS}"
        )));
    }
    let change = TagChange {
        add,
        remove,
        replace: body.replace,
        name: body.name,
    };
    let tags = state.backend.set_tags(vm.clone(), change).await;
    Ok(Json(Tags {
        hostname: vm.to_string(),
        tags: tags.map_err(refused)?.texts(),
    }))
}
