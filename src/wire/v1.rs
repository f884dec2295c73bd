//! The handlers of `/v1`: map requests to [`Backend`] calls, and results to JSON.
//! Out of scope: the routes ([`super::server`]), the meaning of the results.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::backend::{Backend, LogOutput, LogStart, Refusal, StreamMode};
use super::extract::Extract;
use super::limits::{MANIFEST_LIMIT, SOURCE_NAME_LIMIT, SOURCES_LIMIT};
use super::lines::{encoded_lines, lines};
use super::packet;
use super::queries::{
    DryRunQuery, FollowQuery, ForceQuery, LinesQuery, ObjectQuery, PacketQuery, StepsQuery,
};
use super::shared::{ApiError, AppState, Shared, read};
use super::watch;
use crate::api::event::Event;
use crate::api::json_object;
use crate::api::meta::Name;
use crate::api::metrics::Metrics;
use crate::api::on_demand::NewVm;
use crate::api::usage::Usage;
use crate::api::view::{
    Applied, ApplyResult, Change, Check, DiffResult, Explanation, Kind, List, NewVmResult, Orphan,
    RouteInfo, Scale, ServerInfo, Source,
};
use crate::api::vm::PowerCommand;

/// The body of `apply`, `diff` and `names`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Sources {
    /// Manifests, in the given order.
    #[serde(deserialize_with = "json_object::list")]
    pub sources: Vec<Source>,
}

/// The daemon.
#[utoipa::path(get, path = "/v1/version", tag = "v1", responses((status = 200, body = ServerInfo)))]
pub(super) async fn version<B: Backend>(State(state): AppState<B>) -> Response {
    Json(state.backend.version().await).into_response()
}

/// Stores the groups of manifests, all or none.
#[utoipa::path(post, path = "/v1/apply", tag = "v1", params(DryRunQuery), request_body = Sources, responses(ApiError, (status = 200, body = Vec<ApplyResult>)))]
pub(super) async fn apply<B: Backend>(
    State(state): AppState<B>,
    Extract(Query(query)): Extract<Query<DryRunQuery>>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Response, ApiError> {
    let results = state.backend.apply(bounded(body)?, query.effect()).await?;
    Ok(Json(results).into_response())
}

/// What these manifests would change.
#[utoipa::path(post, path = "/v1/diff", tag = "v1", params(StepsQuery), request_body = Sources, responses(ApiError, (status = 200, body = DiffResult)))]
pub(super) async fn diff<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Query(query)): Extract<Query<StepsQuery>>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Response, ApiError> {
    let result = app_state.backend.diff(bounded(body)?, query.detail());
    Ok(Json(result.await?).into_response())
}

/// The groups of manifests.
#[utoipa::path(post, path = "/v1/names", tag = "v1", request_body = Sources, responses(ApiError, (status = 200, body = Vec<Name>)))]
pub(super) async fn names<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.names(bounded(body)?).await?).into_response())
}

/// The objects of a kind; with `follow`, their changes.
#[utoipa::path(get, path = "/v1/objects/{kind}", tag = "v1", params(FollowQuery), responses(ApiError, (status = 200, content((List = "application/json"), (Change = "application/x-ndjson")))))]
pub(super) async fn objects<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(kind)): Extract<Path<String>>,
    Extract(Query(length)): Extract<Query<FollowQuery>>,
) -> Result<Response, ApiError> {
    get_or_watch(&app_state, &kind, None, length).await
}

/// One object; with `follow`, its changes.
#[utoipa::path(get, path = "/v1/objects/{kind}/{name}", tag = "v1", params(FollowQuery), responses(ApiError, (status = 200, content((List = "application/json"), (Change = "application/x-ndjson")))))]
pub(super) async fn object<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path((kind, name))): Extract<Path<(String, String)>>,
    Extract(Query(length)): Extract<Query<FollowQuery>>,
) -> Result<Response, ApiError> {
    get_or_watch(&app_state, &kind, Some(&name), length).await
}

async fn get_or_watch<B: Backend>(
    state: &Shared<B>,
    kind: &str,
    name: Option<&str>,
    length: FollowQuery,
) -> Result<Response, ApiError> {
    let kind = read::<Kind>(kind)?;
    let name = name.map(read::<Name>).transpose()?;
    match length.span() {
        StreamMode::Once => Ok(Json(state.backend.get(kind, name).await?).into_response()),
        StreamMode::Follow => {
            let request = watch::request_of_objects(kind, name);
            Ok(encoded_lines(state, state.backend.watch(request).await?))
        }
    }
}

/// Deletes an object. It is removed when it has no more finalizers.
#[utoipa::path(delete, path = "/v1/objects/{kind}/{name}", tag = "v1", params(ForceQuery), responses(ApiError, (status = 204)))]
pub(super) async fn delete<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path((kind, name))): Extract<Path<(String, String)>>,
    Extract(Query(force)): Extract<Query<ForceQuery>>,
) -> Result<StatusCode, ApiError> {
    let deletion = force.deletion();
    app_state
        .backend
        .delete(read(&kind)?, read(&name)?, deletion)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets the number of VMs of a group.
#[utoipa::path(put, path = "/v1/groups/{group}/scale", tag = "v1", request_body = Scale, responses(ApiError, (status = 200, body = ApplyResult)))]
pub(super) async fn scale<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
    Extract(Json(request)): Extract<Json<Scale>>,
) -> Result<Response, ApiError> {
    let result = app_state.backend.scale(read(&group)?, request).await?;
    Ok(Json(result).into_response())
}

/// Creates a VM on demand.
#[utoipa::path(post, path = "/v1/groups/{group}/vms", tag = "v1", request_body = NewVm, responses(ApiError, (status = 200, body = NewVmResult, description = "It exists, with these values"), (status = 201, body = NewVmResult)))]
pub(super) async fn add_vm<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
    Extract(Json(request)): Extract<Json<NewVm>>,
) -> Result<Response, ApiError> {
    let result = app_state.backend.add_vm(read(&group)?, request).await?;
    let status = match result.applied {
        Applied::Created => StatusCode::CREATED,
        Applied::Configured | Applied::Unchanged | Applied::Deleted => StatusCode::OK,
    };
    Ok((status, Json(result)).into_response())
}

/// Deletes a VM on demand.
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "v1", responses(ApiError, (status = 204)))]
pub(super) async fn remove_vm<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<StatusCode, ApiError> {
    app_state.backend.remove_vm(read(&vm)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses, resumes, restarts, stops or starts a VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/{verb}", tag = "v1", responses(ApiError, (status = 200, body = Applied)))]
pub(super) async fn power<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path((vm, verb))): Extract<Path<(String, String)>>,
) -> Result<Response, ApiError> {
    let verb = read::<PowerCommand>(&verb)?;
    Ok(Json(app_state.backend.power(read(&vm)?, verb).await?).into_response())
}

/// Counters of a VMM.
#[utoipa::path(get, path = "/v1/metrics/{vm}", tag = "v1", responses(ApiError, (status = 200, body = Metrics)))]
pub(super) async fn metrics<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.metrics(read(&vm)?).await?).into_response())
}

/// What a VMM has used on the host.
#[utoipa::path(get, path = "/v1/usage/{vm}", tag = "v1", responses(ApiError, (status = 200, body = Usage)))]
pub(super) async fn usage<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.usage(read(&vm)?).await?).into_response())
}

/// Events, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "v1", params(ObjectQuery, FollowQuery), responses(ApiError, (status = 200, body = Event, content_type = "application/x-ndjson")))]
pub(super) async fn events<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Query(filter)): Extract<Query<ObjectQuery>>,
    Extract(Query(length)): Extract<Query<FollowQuery>>,
) -> Result<Response, ApiError> {
    let events = app_state
        .backend
        .events(filter.object, length.span())
        .await?;
    Ok(lines(&app_state, events))
}

/// The output of a VM.
#[utoipa::path(get, path = "/v1/logs/{vm}", tag = "v1", params(LinesQuery, FollowQuery), responses(ApiError, (status = 200, body = String, content_type = "application/octet-stream", headers(("x-log-offset" = u64, description = "The offset at which it begins")))))]
pub(super) async fn logs<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
    Extract(Query(end)): Extract<Query<LinesQuery>>,
    Extract(Query(length)): Extract<Query<FollowQuery>>,
) -> Result<Response, ApiError> {
    let start = match (end.offset, end.lines) {
        (Some(offset), _) => LogStart::Offset(offset),
        (None, Some(lines)) => LogStart::LastLines(lines),
        (None, None) => LogStart::Beginning,
    };
    let output = app_state.backend.logs(read(&vm)?, start, length.span());
    let LogOutput { offset, bytes } = output.await?;
    let bytes = bytes.take_until(app_state.stop.clone().cancelled_owned());
    let content_type = [(header::CONTENT_TYPE, "application/octet-stream")];
    let offset = [(LOG_OFFSET, offset.to_string())];
    Ok((content_type, offset, Body::from_stream(bytes)).into_response())
}

/// Writes to the serial port of a VM. An empty body checks whether that is possible.
#[utoipa::path(post, path = "/v1/console/{vm}", tag = "v1", request_body(content = String, content_type = "application/octet-stream"), responses(ApiError, (status = 204)))]
pub(super) async fn write_console<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
    keys: Bytes,
) -> Result<StatusCode, ApiError> {
    app_state.backend.write_console(read(&vm)?, keys).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes what belongs to no VM.
#[utoipa::path(post, path = "/v1/gc", tag = "v1", params(DryRunQuery), responses(ApiError, (status = 200, body = Vec<Orphan>)))]
pub(super) async fn gc<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Query(rehearsal)): Extract<Query<DryRunQuery>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.gc(rehearsal.effect()).await?).into_response())
}

/// Checks of the host.
#[utoipa::path(get, path = "/v1/doctor", tag = "v1", responses(ApiError, (status = 200, body = Vec<Check>)))]
pub(super) async fn doctor<B: Backend>(State(state): AppState<B>) -> Result<Response, ApiError> {
    Ok(Json(state.backend.doctor().await?).into_response())
}

/// Whether a packet of a VM passes, and by which rule.
#[utoipa::path(get, path = "/v1/explain/{vm}", tag = "v1", params(PacketQuery), responses(ApiError, (status = 200, body = Explanation)))]
pub(super) async fn explain<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
    Extract(Query(query)): Extract<Query<PacketQuery>>,
) -> Result<Response, ApiError> {
    let packet = packet::parse(&query.packet).map_err(|reason| Refusal::Invalid(vec![reason]))?;
    Ok(Json(app_state.backend.explain(read(&vm)?, packet).await?).into_response())
}

/// What a route to a bridge group needs.
#[utoipa::path(get, path = "/v1/route/{group}", tag = "v1", responses(ApiError, (status = 200, body = RouteInfo)))]
pub(super) async fn route<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.route(read(&group)?).await?).into_response())
}

pub(super) fn bounded(body: Sources) -> Result<Vec<Source>, Refusal> {
    let found = body.sources.len();
    if found > SOURCES_LIMIT {
        let reason =
            format!("found {found} manifests in one request, expected at most {SOURCES_LIMIT}");
        return Err(Refusal::Invalid(vec![reason]));
    }
    for Source { name, text } in &body.sources {
        if name.len() > SOURCE_NAME_LIMIT {
            let found = name.len();
            let why = format!(
                "the name of a manifest has {found} bytes, expected at most {SOURCE_NAME_LIMIT}"
            );
            return Err(Refusal::Invalid(vec![why]));
        }
        if text.len() > MANIFEST_LIMIT {
            let found = text.len();
            let why = format!(
                "{name}: the manifest has {found} bytes, expected at most {MANIFEST_LIMIT}"
            );
            return Err(Refusal::Invalid(vec![why]));
        }
    }
    Ok(body.sources)
}

/// The header with the offset in the log at which a response begins.
pub const LOG_OFFSET: &str = "x-log-offset";
