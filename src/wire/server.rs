//! The server: the routes of all requests, and what is answered without one.
//! Out of scope: permission (see [`super::socket`]), the handlers.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::{any, get, patch, post, put};

use super::admission::{Admission, admit};
use super::agent;
use super::backend::Backend;
use super::compat;
use super::fleet;
use super::limits::BODY_LIMIT;
use super::peer;
use super::problem::problem;
use super::secrets;
use super::shared::Shared;
use super::ui::{self, Page};
use super::v1;
use super::watch;

/// The routes of the API.
pub(super) fn router<B: Backend>(shared: Arc<Shared<B>>, admission: Arc<Admission>) -> Router {
    let page = match admission.page() {
        Page::On => ui::routes(admission.asks()),
        Page::Off => Router::new(),
    };
    Router::new()
        .route("/v1/version", get(v1::version::<B>))
        .route("/v1/apply", post(v1::apply::<B>))
        .route("/v1/diff", post(v1::diff::<B>))
        .route("/v1/names", post(v1::names::<B>))
        .route("/v1/objects/{kind}", get(v1::objects::<B>))
        .route(
            "/v1/objects/{kind}/{name}",
            get(v1::object::<B>).delete(v1::delete::<B>),
        )
        .route("/v1/groups/{group}/scale", put(v1::scale::<B>))
        .route("/v1/groups/{group}/vms", post(v1::add_vm::<B>))
        .route("/v1/vms/{vm}", axum::routing::delete(v1::remove_vm::<B>))
        .route("/v1/vms/{vm}/{verb}", post(v1::power::<B>))
        .route("/v1/vms/{vm}/agent/{*path}", any(agent::agent::<B>))
        .route(
            "/v1/secrets",
            get(secrets::list::<B>).post(secrets::create::<B>),
        )
        .route(
            "/v1/secrets/{name}",
            patch(secrets::update::<B>).delete(secrets::delete::<B>),
        )
        .route("/v1/metrics/{vm}", get(v1::metrics::<B>))
        .route("/v1/usage/{vm}", get(v1::usage::<B>))
        .route("/v1/events", get(v1::events::<B>))
        .route("/v1/fleet/events", get(peer::events::events::<B>))
        .route("/v1/watch", get(watch::watch::<B>))
        .route("/v1/logs/{vm}", get(v1::logs::<B>))
        .route("/v1/console/{vm}", post(v1::write_console::<B>))
        .route("/v1/gc", post(v1::gc::<B>))
        .route("/v1/doctor", get(v1::doctor::<B>))
        .route("/v1/explain/{vm}", get(v1::explain::<B>))
        .route("/v1/route/{group}", get(v1::route::<B>))
        .route("/v1/fleet/status", get(fleet::status::<B>))
        .route("/v1/fleet/accept", post(fleet::accept::<B>))
        .route("/v1/fleet/apply", post(fleet::apply::<B>))
        .route("/v1/fleet/diff", post(fleet::diff::<B>))
        .route("/v1/fleet/groups", get(fleet::groups::<B>))
        .route(
            "/v1/fleet/groups/{group}",
            get(fleet::group::<B>).delete(fleet::delete_group::<B>),
        )
        .route("/v1/fleet/groups/{group}/scale", put(fleet::scale::<B>))
        .route("/v1/fleet/vms", get(fleet::vms::<B>))
        .route("/v1/fleet/vms/{name}", get(fleet::vm::<B>))
        .route("/v1/fleet/nodes", get(fleet::nodes::<B>))
        .route(
            "/v1/fleet/nodes/{node}",
            get(fleet::node::<B>).post(fleet::node_action::<B>),
        )
        .route("/v1/fleet/nodes/{node}/vms", get(fleet::node_vms::<B>))
        .route("/v1/fleet/subnets", get(fleet::subnets::<B>))
        .merge(compat::routes())
        .merge(page)
        .fallback(nowhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(admission, admit))
        .layer(middleware::from_fn(compat::of_dialect))
        .with_state(shared)
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
