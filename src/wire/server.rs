//! The server: maps HTTP requests to [`Backend`] calls, and results to JSON.
//! Out of scope: permission (see [`super::socket`]), the meaning of the results.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, patch, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::admission::{Admission, admit};
use super::agent;
use super::backend::{Backend, Deletion, Detail, Effect, LogOutput, LogStart, Refusal, StreamMode};
use super::compat;
use super::extract::Extract;
use super::limits::{BODY_LIMIT, MANIFEST_LIMIT, SOURCE_NAME_LIMIT, SOURCES_LIMIT};
use super::lines::{encoded_lines, lines};
use super::packet;
use super::problem::problem;
use super::secrets;
use super::shared::{ApiError, AppState, Shared, read};
use super::ui::{self, Page};
use super::watch;
use crate::api::event::ObjectRef;
use crate::api::meta::Name;
use crate::api::on_demand::NewVm;
use crate::api::view::{Applied, Kind, Scale, Source};
use crate::api::vm::PowerCommand;

/// The body of `apply`, `diff` and `names`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Sources {
    /// Manifests, in the given order.
    pub sources: Vec<Source>,
}

/// The routes of the API.
pub(super) fn router<B: Backend>(shared: Arc<Shared<B>>, admission: Arc<Admission>) -> Router {
    let page = match admission.page() {
        Page::On => ui::routes(admission.asks()),
        Page::Off => Router::new(),
    };
    Router::new()
        .route("/v1/version", get(version::<B>))
        .route("/v1/apply", post(apply::<B>))
        .route("/v1/diff", post(diff::<B>))
        .route("/v1/names", post(names::<B>))
        .route("/v1/objects/{kind}", get(objects::<B>))
        .route(
            "/v1/objects/{kind}/{name}",
            get(object::<B>).delete(delete::<B>),
        )
        .route("/v1/groups/{group}/scale", put(scale::<B>))
        .route("/v1/groups/{group}/vms", post(add_vm::<B>))
        .route("/v1/vms/{vm}", axum::routing::delete(remove_vm::<B>))
        .route("/v1/vms/{vm}/{verb}", post(power::<B>))
        .route("/v1/vms/{vm}/agent/{*path}", any(agent::agent::<B>))
        .route(
            "/v1/secrets",
            get(secrets::list::<B>).post(secrets::create::<B>),
        )
        .route(
            "/v1/secrets/{name}",
            patch(secrets::update::<B>).delete(secrets::delete::<B>),
        )
        .route("/v1/metrics/{vm}", get(metrics::<B>))
        .route("/v1/usage/{vm}", get(usage::<B>))
        .route("/v1/events", get(events::<B>))
        .route("/v1/watch", get(watch::watch::<B>))
        .route("/v1/logs/{vm}", get(logs::<B>))
        .route("/v1/console/{vm}", post(write_console::<B>))
        .route("/v1/gc", post(gc::<B>))
        .route("/v1/doctor", get(doctor::<B>))
        .route("/v1/explain/{vm}", get(explain::<B>))
        .route("/v1/route/{group}", get(route::<B>))
        .merge(compat::routes())
        .merge(page)
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(admission, admit))
        .layer(middleware::from_fn(compat::of_dialect))
        .with_state(shared)
}

async fn version<B: Backend>(State(state): AppState<B>) -> Response {
    Json(state.backend.version().await).into_response()
}

async fn apply<B: Backend>(
    State(state): AppState<B>,
    Extract(Query(query)): Extract<Query<DryRunQuery>>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Response, ApiError> {
    let results = state.backend.apply(bounded(body)?, query.effect()).await?;
    Ok(Json(results).into_response())
}

async fn diff<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Query(query)): Extract<Query<StepsQuery>>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Response, ApiError> {
    let result = app_state.backend.diff(bounded(body)?, query.detail());
    Ok(Json(result.await?).into_response())
}

async fn names<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Json(body)): Extract<Json<Sources>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.names(bounded(body)?).await?).into_response())
}

async fn objects<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(kind)): Extract<Path<String>>,
    Extract(Query(length)): Extract<Query<FollowQuery>>,
) -> Result<Response, ApiError> {
    get_or_watch(&app_state, &kind, None, length).await
}

async fn object<B: Backend>(
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

async fn delete<B: Backend>(
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

async fn scale<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
    Extract(Json(request)): Extract<Json<Scale>>,
) -> Result<Response, ApiError> {
    let result = app_state.backend.scale(read(&group)?, request).await?;
    Ok(Json(result).into_response())
}

async fn add_vm<B: Backend>(
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

async fn remove_vm<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<StatusCode, ApiError> {
    app_state.backend.remove_vm(read(&vm)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn power<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path((vm, verb))): Extract<Path<(String, String)>>,
) -> Result<Response, ApiError> {
    let verb = read::<PowerCommand>(&verb)?;
    Ok(Json(app_state.backend.power(read(&vm)?, verb).await?).into_response())
}

async fn metrics<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.metrics(read(&vm)?).await?).into_response())
}

async fn usage<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.usage(read(&vm)?).await?).into_response())
}

async fn events<B: Backend>(
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

async fn logs<B: Backend>(
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

async fn write_console<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
    keys: Bytes,
) -> Result<StatusCode, ApiError> {
    app_state.backend.write_console(read(&vm)?, keys).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn gc<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Query(rehearsal)): Extract<Query<DryRunQuery>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.gc(rehearsal.effect()).await?).into_response())
}

async fn doctor<B: Backend>(State(state): AppState<B>) -> Result<Response, ApiError> {
    Ok(Json(state.backend.doctor().await?).into_response())
}

async fn explain<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(vm)): Extract<Path<String>>,
    Extract(Query(query)): Extract<Query<PacketQuery>>,
) -> Result<Response, ApiError> {
    let packet = packet::parse(&query.packet).map_err(|reason| Refusal::Invalid(vec![reason]))?;
    Ok(Json(app_state.backend.explain(read(&vm)?, packet).await?).into_response())
}

async fn route<B: Backend>(
    State(app_state): AppState<B>,
    Extract(Path(group)): Extract<Path<String>>,
) -> Result<Response, ApiError> {
    Ok(Json(app_state.backend.route(read(&group)?).await?).into_response())
}

async fn nowhere(request: Request) -> Response {
    let path = request.uri().path();
    let error = format!("path {path} not found");
    problem(StatusCode::NOT_FOUND, error, Vec::new())
}

async fn wrong_method(request: Request) -> Response {
    let (path, method) = (request.uri().path(), request.method());
    let error = format!("{path} does not support method {method}");
    problem(StatusCode::METHOD_NOT_ALLOWED, error, Vec::new())
}

#[derive(Debug, Deserialize)]
struct DryRunQuery {
    #[serde(default)]
    dry_run: bool,
}

impl DryRunQuery {
    fn effect(&self) -> Effect {
        match self.dry_run {
            true => Effect::DryRun,
            false => Effect::Commit,
        }
    }
}

#[derive(Debug, Deserialize)]
struct StepsQuery {
    #[serde(default = "with_steps")]
    steps: bool,
}

fn with_steps() -> bool {
    true
}

impl StepsQuery {
    fn detail(&self) -> Detail {
        match self.steps {
            true => Detail::Steps,
            false => Detail::Summary,
        }
    }
}

#[derive(Debug, Deserialize)]
struct ForceQuery {
    #[serde(default)]
    force: bool,
}

impl ForceQuery {
    fn deletion(&self) -> Deletion {
        match self.force {
            true => Deletion::Forced,
            false => Deletion::Graceful,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct FollowQuery {
    #[serde(default)]
    follow: bool,
}

impl FollowQuery {
    fn span(self) -> StreamMode {
        match self.follow {
            true => StreamMode::Follow,
            false => StreamMode::Once,
        }
    }
}

#[derive(Debug, Deserialize)]
struct LinesQuery {
    #[serde(default)]
    lines: Option<usize>,
    #[serde(default)]
    offset: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct ObjectQuery {
    #[serde(default)]
    object: Option<ObjectRef>,
}

#[derive(Debug, Deserialize)]
struct PacketQuery {
    packet: String,
}

fn bounded(body: Sources) -> Result<Vec<Source>, Refusal> {
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
