//! Requests to the agents of guests: commands, files, shells, connections.
//! Out of scope: forwarding them ([`super::super::agent`]), which `/v1` shares.

use std::collections::BTreeMap;

use axum::extract::{ConnectInfo, Path, Request, State};
use axum::response::Response;

use super::super::admission::Client;
use super::super::agent;
use super::super::backend::Backend;
use super::super::shared::AppState;
use super::errors::vm_name;

/// The number of segments before the path at the agent: `/vm/{vm}/`.
const PREFIX: usize = 3;

/// The handler.
pub(super) async fn forward<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
    Path(parameters): Path<BTreeMap<String, String>>,
    request: Request,
) -> Result<Response, Response> {
    let vm = parameters.get("vm").map(String::as_str).unwrap_or_default();
    let vm = vm_name(vm)?;
    // A VM that is being deleted does not exist for clients of this API.
    let known = state.backend.node(vm.clone()).await;
    known.map_err(super::errors::refused)?;
    agent::forward(&state, &caller, (vm, PREFIX), request).await
}
