//! The state of the agent of a VM.
//! Out of scope: asking it ([`super::super::agent`]).

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;

use super::super::admission::Client;
use super::super::agent;
use super::super::backend::Backend;
use super::super::shared::AppState;
use super::errors::{Rejection, error, invalid, refused, vm_name};
use super::types::{AgentHealth, address};
use crate::api::plain_text;
use crate::guest::endpoint::Endpoint;
use crate::guest::protocol::Health;

/// The maximum length of the version of an agent, in bytes.
const VERSION_LIMIT: usize = 64;

/// Whether the agent answers: 200 only then.
#[utoipa::path(get, path = "/vm/{vm}/health", tag = "guests",
    responses(Rejection,
        (status = 200, body = AgentHealth),
        (status = 400, description = "The VM has no agent"),
        (status = 409, description = "The VM is paused or does not run"),
        (status = 503, description = "The agent does not answer yet"),
    ))]
pub(super) async fn health<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
    Path(vm): Path<String>,
) -> Result<Json<AgentHealth>, Rejection> {
    let vm = vm_name(&vm)?;
    let node = state.backend.node(vm.clone()).await.map_err(refused)?.node;
    if let Some(why) = node.access.obstacle() {
        return Err(invalid(format!("vm/{vm} {why}")));
    }
    let body = agent::ask(&state, &caller, &vm, (Endpoint::Health, "/health")).await?;
    let health: Health = serde_json::from_slice(&body).map_err(|_| {
        let text = format!("the agent of vm/{vm} has sent an invalid response");
        error(StatusCode::BAD_GATEWAY, text)
    })?;
    Ok(Json(AgentHealth {
        hostname: vm.to_string(),
        agent_version: plain_text::line(&health.agent_version, VERSION_LIMIT).into_owned(),
        agent_uptime: health.agent_uptime,
        system_uptime: health.system_uptime,
        userdata_ran: health.userdata_ran,
        userdata_exit_code: health.userdata_exit_code,
        ip: address(&node),
    }))
}
