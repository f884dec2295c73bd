//! The output of a VM.
//! Out of scope: the log file.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use futures::StreamExt;
use serde::Deserialize;
use utoipa::IntoParams;

use super::super::backend::{Backend, LogStart, StreamMode};
use super::super::shared::AppState;
use super::errors::{Rejection, error, query, refused, vm_name};
use super::types::Logs;

/// The default number of lines.
const DEFAULT_LINES: i64 = 20;

/// The maximum size of the output, in bytes: it is one JSON value. `slicectl logs` has no limit.
const LIMIT: usize = 1 << 20;

/// Selects the lines of the console.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// The number of last lines; 0: all. The default is 20.
    lines: Option<i64>,
    /// Another name of `lines`, which takes precedence.
    tail: Option<i64>,
}

/// The last lines of the serial console, at most 1 MiB.
#[utoipa::path(get, path = "/vm/{vm}/logs", tag = "vms",
    params(LogsQuery),
    responses(Rejection,
        (status = 200, body = Logs),
        (status = 409, description = "The VM has no console: hypervisor is none"),
    ))]
pub(super) async fn logs<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
    uri: Uri,
) -> Result<Json<Logs>, Rejection> {
    let vm = vm_name(&vm)?;
    let query = query::<LogsQuery>(&uri)?;
    let lines = query.lines.or(query.tail).unwrap_or(DEFAULT_LINES);
    let start = match usize::try_from(lines) {
        Ok(0) | Err(_) => LogStart::Beginning,
        Ok(lines) => LogStart::LastLines(lines),
    };
    state.backend.node(vm.clone()).await.map_err(refused)?;
    let output = state
        .backend
        .logs(vm.clone(), start, StreamMode::Once)
        .await;
    let mut bytes = output.map_err(refused)?.bytes;
    let mut all = Vec::new();
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(|failed| {
            tracing::warn!(error = %failed, %vm, "cannot read a log");
            error(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("cannot read the log of vm/{vm}"),
            )
        })?;
        all.extend_from_slice(&chunk);
        // The last lines are kept; twice the limit, so that few bytes are moved.
        if all.len() > 2 * LIMIT {
            all.drain(..all.len() - LIMIT);
        }
    }
    let tail = &all[all.len().saturating_sub(LIMIT)..];
    let content = String::from_utf8_lossy(tail).into_owned();
    Ok(Json(Logs {
        hostname: vm.to_string(),
        lines: content.lines().count(),
        content,
    }))
}
