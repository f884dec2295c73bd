//! Pause, resume, shut down and start VMs. A request is answered when the VM has reached the state.
//! Out of scope: the transitions.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use bytes::Bytes;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::super::backend::Backend;
use super::super::shared::{AppState, Shared};
use super::create::WaitQuery;
use super::errors::{Rejection, error, invalid, json, query, refused, vm_name};
use super::types::Created;
use super::wait;
use crate::api::meta::Name;
use crate::api::node::Node;
use crate::api::view::VmmState;
use crate::api::vm::PowerCommand;

/// How long a VMM may take to pause or resume its guest.
const PAUSE: Duration = Duration::from_secs(30);

/// How long a guest may take to power down, in addition to `graceful_shutdown` of its group, after which its VMM is killed.
const SHUTDOWN: Duration = Duration::from_secs(180);

/// How a guest is shut down.
#[derive(Debug, Default, Deserialize, IntoParams, ToSchema)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub(super) struct Action {
    /// `shutdown` or `reboot`; both stop the VM, as a reboot ends a VMM without firmware.
    action: Option<String>,
}

impl Action {
    fn check(&self) -> Result<(), Rejection> {
        match self.action.as_deref() {
            None | Some("" | "shutdown" | "reboot") => Ok(()),
            Some(_) => Err(invalid("invalid action: expected shutdown or reboot")),
        }
    }
}

/// Pauses a VM. Requests to its agent are refused with 409 until it is resumed.
#[utoipa::path(post, path = "/vm/{vm}/pause", tag = "power",
    responses(Rejection,
        (status = 200, body = String, content_type = "text/plain"),
        (status = 409, description = "The VM does not run"),
    ))]
pub(super) async fn pause<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
) -> Result<String, Rejection> {
    let vm = vm_name(&vm)?;
    reach(&state, &vm, PowerCommand::Pause, VmmState::Paused, PAUSE).await?;
    Ok(format!("vm/{vm} is paused"))
}

/// Resumes a paused VM.
#[utoipa::path(post, path = "/vm/{vm}/resume", tag = "power",
    responses(Rejection,
        (status = 200, body = String, content_type = "text/plain"),
        (status = 409, description = "The VM does not run"),
    ))]
pub(super) async fn resume<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
) -> Result<String, Rejection> {
    let vm = vm_name(&vm)?;
    reach(&state, &vm, PowerCommand::Resume, VmmState::Running, PAUSE).await?;
    Ok(format!("vm/{vm} runs"))
}

/// Stops a VM. It keeps its name, address, disk and tags until it is deleted.
#[utoipa::path(post, path = "/vm/{vm}/shutdown", tag = "power",
    params(Action),
    request_body(content = Option<Action>),
    responses(Rejection,
        (status = 200, body = String, content_type = "text/plain"),
        (status = 409, description = "The daemon does not run this VM"),
    ))]
pub(super) async fn shutdown<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<String, Rejection> {
    let vm = vm_name(&vm)?;
    query::<Action>(&uri)?.check()?;
    json::<Action>(&body)?.check()?;
    reach(&state, &vm, PowerCommand::Stop, VmmState::Stopped, SHUTDOWN).await?;
    Ok(format!("vm/{vm} is stopped"))
}

async fn reach<B: Backend>(
    state: &Shared<B>,
    vm: &Name,
    command: PowerCommand,
    goal: VmmState,
    limit: Duration,
) -> Result<(), Rejection> {
    let backend = &*state.backend;
    // One that is being deleted does not exist for clients of this API.
    backend.node(vm.clone()).await.map_err(refused)?;
    backend.power(vm.clone(), command).await.map_err(refused)?;
    let reached = wait::until(backend, vm, limit, |node| {
        (node.state == goal).then_some(())
    });
    match reached.await.map_err(refused)? {
        Some(()) => Ok(()),
        None => Err(error(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!(
                "cannot {command} vm/{vm} within {} s: see its conditions",
                limit.as_secs()
            ),
        )),
    }
}

/// Starts a VM that has stopped, with the same disk and address.
#[utoipa::path(post, path = "/vm/{vm}/relaunch", tag = "power",
    params(WaitQuery),
    responses(Rejection,
        (status = 200, body = Created),
        (status = 408, description = "The agent has not answered in time"),
        (status = 409, description = "The VM runs, or is not persistent"),
    ))]
pub(super) async fn relaunch<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
    uri: Uri,
) -> Result<Json<Created>, Rejection> {
    let vm = vm_name(&vm)?;
    let goal = query::<WaitQuery>(&uri)?.parsed()?;
    let node = state.backend.node(vm.clone()).await.map_err(refused)?.node;
    check_relaunch(&node)?;
    // One that is stopping is waited for.
    let is_down = |node: &Node| is_down(node.state).then_some(());
    let down = wait::until(&*state.backend, &vm, SHUTDOWN, is_down).await;
    if down.map_err(refused)?.is_none() {
        let text = format!("vm/{vm} is still stopping");
        return Err(error(StatusCode::CONFLICT, text));
    }
    let started = state.backend.power(vm.clone(), PowerCommand::Start).await;
    started.map_err(refused)?;
    // Its last state is that of its last generation until the VMM is started.
    let starts = |node: &Node| (node.state == VmmState::Running).then(|| node.clone());
    let node = wait::until(&*state.backend, &vm, PAUSE, starts).await;
    let Some(node) = node.map_err(refused)? else {
        let text = format!("vm/{vm} has not started within {} s", PAUSE.as_secs());
        return Err(error(StatusCode::INTERNAL_SERVER_ERROR, text));
    };
    if let Some((goal, limit)) = goal {
        let reached = |node: &Node| goal.is_reached(node).then_some(());
        let reached = wait::until(&*state.backend, &vm, limit, reached).await;
        if reached.map_err(refused)?.is_none() {
            let text = format!("the agent of vm/{vm} has not answered within {limit:?}");
            return Err(error(StatusCode::REQUEST_TIMEOUT, text));
        }
    }
    Ok(Json(Created::of(&node)))
}

fn is_down(state: VmmState) -> bool {
    matches!(state, VmmState::Stopped | VmmState::Failed)
}

fn check_relaunch(node: &Node) -> Result<(), Rejection> {
    let vm = &node.name;
    let why = match node.state {
        VmmState::Running | VmmState::Starting => "runs",
        VmmState::Paused => "is paused: resume it",
        VmmState::None => "has no VMM of the daemon: hypervisor is none",
        // Without a disk, there is nothing that a stop has removed.
        _ if node.has_disk && !node.persistent => "is not persistent: create another one",
        VmmState::Stopping | VmmState::Stopped | VmmState::Failed => return Ok(()),
    };
    Err(error(StatusCode::CONFLICT, format!("vm/{vm} {why}")))
}

/// Not supported.
#[utoipa::path(post, path = "/vm/{vm}/suspend", tag = "power",
    responses(Rejection, (status = 501)))]
pub(super) async fn suspend<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
) -> Result<(), Rejection> {
    unsupported(&state, &vm, "suspend").await
}

/// Not supported.
#[utoipa::path(post, path = "/vm/{vm}/restore", tag = "power",
    responses(Rejection, (status = 501)))]
pub(super) async fn restore<B: Backend>(
    State(state): AppState<B>,
    Path(vm): Path<String>,
) -> Result<(), Rejection> {
    unsupported(&state, &vm, "restore").await
}

async fn unsupported<B: Backend>(
    state: &Shared<B>,
    vm: &str,
    command: &str,
) -> Result<(), Rejection> {
    let vm = vm_name(vm)?;
    state.backend.node(vm.clone()).await.map_err(refused)?;
    let text = format!("cannot {command} vm/{vm}: snapshots are not supported");
    Err(error(StatusCode::NOT_IMPLEMENTED, text))
}
