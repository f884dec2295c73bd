//! The part of the OpenAPI document that is about this API.
//! Out of scope: the handlers, which have the attributes that it is made of; the whole document ([`mod@super::super::openapi`]).

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;

use super::super::secrets;
use super::{create, describe, guest, health, info, logs, metrics, nodes, power, stats, tags};

/// The paths.
#[derive(OpenApi)]
#[openapi(paths(
    info::healthz,
    info::info,
    info::shutdown,
    metrics::metrics,
    nodes::groups,
    nodes::all,
    nodes::of_group,
    nodes::remove,
    create::create,
    describe::describe,
    tags::get,
    tags::change,
    logs::logs,
    health::health,
    stats::all,
    stats::one,
    power::pause,
    power::resume,
    power::shutdown,
    power::relaunch,
    power::suspend,
    power::restore,
    guest::exec,
    guest::list,
    guest::info,
    guest::reap,
    guest::logs,
    guest::kill,
    guest::wait_exit,
    guest::copy_from,
    guest::copy_to,
    guest::stat,
    guest::readdir,
    guest::mkdir,
    guest::remove,
    guest::watch,
    guest::shell,
    guest::connect,
    secrets::list,
    secrets::create,
    secrets::update,
    secrets::delete,
    document,
))]
pub(in super::super) struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "daemon", responses((status = 200, body = Object)))]
pub(super) async fn document() -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (content_type, super::super::openapi::text()).into_response()
}
