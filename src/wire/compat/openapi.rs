//! The OpenAPI document of this API.
//! Out of scope: the handlers, whose attributes it is made of.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::OpenApi;

use super::super::secrets;
use super::{create, describe, guest, health, info, logs, metrics, nodes, power, stats, tags};

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "sliced",
        description = "MicroVMs of one host: create, use and delete them. Errors are JSON objects with one sentence."
    ),
    paths(
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
    )
)]
struct Document;

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let text = serde_json::to_vec(&Document::openapi());
    let text = text.inspect_err(|error| tracing::error!(%error, "cannot encode the document"));
    Bytes::from(text.unwrap_or_default())
});

/// The text of the document.
pub fn text() -> Bytes {
    DOCUMENT.clone()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "daemon", responses((status = 200, body = Object)))]
pub(super) async fn document() -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (content_type, text()).into_response()
}
