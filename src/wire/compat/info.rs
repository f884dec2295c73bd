//! The daemon: whether it answers, its version, its end.
//! Out of scope: metrics.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::super::backend::Backend;
use super::super::shared::AppState;
use super::errors::{Rejection, refused};
use super::types::{Info, arch};

/// Whether the daemon answers.
#[utoipa::path(get, path = "/healthz", tag = "daemon", security(()), responses(
    (status = 200, description = "The daemon answers", body = String, content_type = "text/plain"),
))]
pub(super) async fn healthz() -> &'static str {
    "OK"
}

/// The version and the host's architecture.
#[utoipa::path(get, path = "/info", tag = "daemon", responses((status = 200, body = Info)))]
pub(super) async fn info() -> Json<Info> {
    Json(Info {
        version: env!("CARGO_PKG_VERSION"),
        git_commit: option_env!("SLICE_GIT_COMMIT").unwrap_or("unknown"),
        platform: "linux",
        arch: arch(),
    })
}

/// Ends the daemon. VMs keep running.
#[utoipa::path(post, path = "/daemon/shutdown", tag = "daemon", responses(Rejection,
    (status = 202, description = "The daemon ends"),
))]
pub(super) async fn shutdown<B: Backend>(
    State(state): AppState<B>,
) -> Result<StatusCode, Rejection> {
    state.backend.shutdown().await.map_err(refused)?;
    Ok(StatusCode::ACCEPTED)
}
