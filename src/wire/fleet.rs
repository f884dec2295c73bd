//! The handlers of `/v1/fleet`: map requests to [`FleetBackend`](super::FleetBackend) calls, and results to JSON.
//! Out of scope: the routes ([`super::server`]), the meaning of the results.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::backend::Backend;
use super::extract::Extract;
use super::queries::{DryRunQuery, UidQuery};
use super::shared::{ApiError, AppState, read};
use super::v1::{Sources, bounded};
use crate::api::view::{
    Applied, ApplyResult, DiffResult, FleetAccept, FleetGroup, FleetList, FleetNode, FleetStatus,
    FleetSubnet, FleetVm, NodeAction, NodeVm, Scale,
};

/// The connection of the daemon to its fleet.
#[utoipa::path(get, path = "/v1/fleet/status", tag = "v1", responses(ApiError, (status = 200, body = FleetStatus)))]
pub(super) async fn status<B: Backend>(
    State(state): AppState<B>,
) -> Result<Json<FleetStatus>, ApiError> {
    Ok(Json(state.backend.fleet_status().await?))
}

/// Accepts another etcd cluster, or one that was restored, as that of the fleet.
#[utoipa::path(post, path = "/v1/fleet/accept", tag = "v1", request_body = FleetAccept, responses(ApiError, (status = 200, body = FleetAccept)))]
pub(super) async fn accept<B: Backend>(
    State(state): AppState<B>,
    Extract(Json(request)): Extract<Json<FleetAccept>>,
) -> Result<Json<FleetAccept>, ApiError> {
    Ok(Json(state.backend.fleet_accept(request).await?))
}

/// Stores the groups of manifests in the fleet, all or none.
#[utoipa::path(post, path = "/v1/fleet/apply", tag = "v1", params(DryRunQuery), request_body = Sources, responses(ApiError, (status = 200, body = Vec<ApplyResult>)))]
pub(super) async fn apply<B: Backend>(
    State(state): AppState<B>,
    Extract(Query(query)): Extract<Query<DryRunQuery>>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Json<Vec<ApplyResult>>, ApiError> {
    let results = state.backend.fleet_apply(bounded(body)?, query.effect());
    Ok(Json(results.await?))
}

/// What these manifests would change in the fleet.
#[utoipa::path(post, path = "/v1/fleet/diff", tag = "v1", request_body = Sources, responses(ApiError, (status = 200, body = DiffResult)))]
pub(super) async fn diff<B: Backend>(
    State(state): AppState<B>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Json<DiffResult>, ApiError> {
    Ok(Json(state.backend.fleet_diff(bounded(body)?).await?))
}

/// The groups of the fleet.
#[utoipa::path(get, path = "/v1/fleet/groups", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetGroup>)))]
pub(super) async fn groups<B: Backend>(
    State(state): AppState<B>,
) -> Result<Json<FleetList<FleetGroup>>, ApiError> {
    Ok(Json(state.backend.fleet_groups(None).await?))
}

/// One group of the fleet.
#[utoipa::path(get, path = "/v1/fleet/groups/{group}", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetGroup>)))]
pub(super) async fn group<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
) -> Result<Json<FleetList<FleetGroup>>, ApiError> {
    let found = state.backend.fleet_groups(Some(read(&group)?));
    Ok(Json(found.await?))
}

/// Deletes a group of the fleet. It is removed when all its VMs are deleted.
#[utoipa::path(delete, path = "/v1/fleet/groups/{group}", tag = "v1", params(UidQuery), responses(ApiError, (status = 204)))]
pub(super) async fn delete_group<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
    Extract(Query(query)): Extract<Query<UidQuery>>,
) -> Result<StatusCode, ApiError> {
    let uid = query.uid.as_deref().map(read).transpose()?;
    state.backend.fleet_delete(read(&group)?, uid).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets the number of VMs of a group of the fleet.
#[utoipa::path(put, path = "/v1/fleet/groups/{group}/scale", tag = "v1", request_body = Scale, responses(ApiError, (status = 200, body = ApplyResult)))]
pub(super) async fn scale<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
    Extract(Json(request)): Extract<Json<Scale>>,
) -> Result<Json<ApplyResult>, ApiError> {
    let result = state.backend.fleet_scale(read(&group)?, request);
    Ok(Json(result.await?))
}

/// The VMs of the fleet.
#[utoipa::path(get, path = "/v1/fleet/vms", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetVm>)))]
pub(super) async fn vms<B: Backend>(
    State(state): AppState<B>,
) -> Result<Json<FleetList<FleetVm>>, ApiError> {
    Ok(Json(state.backend.fleet_vms(None).await?))
}

/// One VM of the fleet.
#[utoipa::path(get, path = "/v1/fleet/vms/{name}", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetVm>)))]
pub(super) async fn vm<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<Json<FleetList<FleetVm>>, ApiError> {
    Ok(Json(state.backend.fleet_vms(Some(read(&vm)?)).await?))
}

/// The nodes of the fleet.
#[utoipa::path(get, path = "/v1/fleet/nodes", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetNode>)))]
pub(super) async fn nodes<B: Backend>(
    State(state): AppState<B>,
) -> Result<Json<FleetList<FleetNode>>, ApiError> {
    Ok(Json(state.backend.fleet_nodes(None).await?))
}

/// One node of the fleet.
#[utoipa::path(get, path = "/v1/fleet/nodes/{node}", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetNode>)))]
pub(super) async fn node<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(node)): Extract<Path<String>>,
) -> Result<Json<FleetList<FleetNode>>, ApiError> {
    let found = state.backend.fleet_nodes(Some(read(&node)?));
    Ok(Json(found.await?))
}

/// Cordons, uncordons or drains a node, or states that it is gone.
#[utoipa::path(post, path = "/v1/fleet/nodes/{node}", tag = "v1", request_body = NodeAction, responses(ApiError, (status = 200, body = Applied)))]
pub(super) async fn node_action<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(node)): Extract<Path<String>>,
    Extract(Json(action)): Extract<Json<NodeAction>>,
) -> Result<Json<Applied>, ApiError> {
    let done = state.backend.fleet_node_action(read(&node)?, action);
    Ok(Json(done.await?))
}

/// The VMs of a node, with the reasons why they stay when it is drained.
#[utoipa::path(get, path = "/v1/fleet/nodes/{node}/vms", tag = "v1", responses(ApiError, (status = 200, body = Vec<NodeVm>)))]
pub(super) async fn node_vms<B: Backend>(
    State(state): AppState<B>,
    Extract(Path(node)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    let vms = state.backend.fleet_node_vms(read(&node)?).await?;
    Ok(Json(vms).into_response())
}

/// The subnets of groups in bridge mode on nodes.
#[utoipa::path(get, path = "/v1/fleet/subnets", tag = "v1", responses(ApiError, (status = 200, body = FleetList<FleetSubnet>)))]
pub(super) async fn subnets<B: Backend>(
    State(state): AppState<B>,
) -> Result<Json<FleetList<FleetSubnet>>, ApiError> {
    Ok(Json(state.backend.fleet_subnets().await?))
}
