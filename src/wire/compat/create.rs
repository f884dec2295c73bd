//! Creates VMs, and waits for their agents.
//! Out of scope: limits of the group, which the daemon checks when it stores the VM.
//!
//! # A request that is sent again
//! The VM is stored before the answer is sent. A client that has got no answer may send its request again: with the tag `name=LABEL` it is
//! refused with 409 if the VM exists.

mod body;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use bytes::Bytes;
use serde::Deserialize;
use utoipa::IntoParams;

use super::super::backend::{Backend, Refusal};
use super::super::caller::Caller;
use super::super::shared::{AppState, Shared};
use super::counters::COUNTERS;
use super::errors::{Rejection, error, invalid, json, name, query, refused};
use super::types::Created;
use super::wait;
use crate::api::condition::Reason;
use crate::api::meta::Name;
use crate::api::node::{GuestAgent, Node};
use crate::api::provision::MAX_SECRETS;
use crate::api::secret::SecretName;
use crate::api::view::{Applied, Kind, Object, VmmState};
use crate::api::vm::VmSpec;
use crate::guest::go_duration;

use body::CreateBody;

/// How long a VMM may take to start before a request is answered nevertheless.
const LAUNCH: Duration = Duration::from_secs(10);

/// How long a request waits for an agent by default, and at most.
const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// How long a request waits.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// `agent`: until the agent answers; `userdata`: until the userdata has ended; absent or `none`: until the VMM has started.
    wait: Option<String>,
    /// How long, as Go writes durations: `60s`, `2m0s`. The default is 5 minutes.
    timeout: Option<String>,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The agent answers.
    Agent,
    /// The userdata has ended.
    Userdata,
}

impl WaitQuery {
    /// The goal, and how long it is waited for.
    pub(super) fn parsed(&self) -> Result<Option<(Goal, Duration)>, Rejection> {
        let goal = match self.wait.as_deref() {
            None | Some("" | "none" | "false") => None,
            Some("agent" | "true") => Some(Goal::Agent),
            Some("userdata") => Some(Goal::Userdata),
            Some(_) => return Err(invalid("invalid wait: expected agent, userdata or none")),
        };
        let limit = match self.timeout.as_deref() {
            None | Some("") => DEFAULT_WAIT,
            Some(text) => {
                let parsed = go_duration::parse(text);
                parsed.map_err(|error| invalid(format!("invalid timeout: {error}")))?
            }
        };
        Ok(goal.map(|goal| (goal, limit.min(MAX_WAIT))))
    }
}

/// Creates a VM in a group.
#[utoipa::path(post, path = "/hostgroup/{group}/nodes", tag = "vms",
    params(WaitQuery),
    request_body(content = Option<CreateBody>),
    responses(Rejection,
        (status = 200, body = Created),
        (status = 400, description = "The request is invalid, or exceeds a limit of the group"),
        (status = 404, description = "There is no such group"),
        (status = 408, description = "The agent has not answered in time; the VM is removed"),
        (status = 409, description = "The name is taken, the group has no free address, or the VM was deleted during the wait"),
    ))]
pub(super) async fn create<B: Backend>(
    State(state): AppState<B>,
    Path(group): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<Json<Created>, Rejection> {
    let group = name("hostgroup", &group)?;
    let template = template(&state, &group).await?;
    let launched = launch(&state, &group, &template, &uri, &body).await;
    let status = match &launched {
        Ok(_) => StatusCode::OK,
        Err(refusal) => refusal.status(),
    };
    COUNTERS.launched(&group, status);
    launched
}

async fn launch<B: Backend>(
    state: &Arc<Shared<B>>,
    group: &Name,
    template: &VmSpec,
    uri: &Uri,
    body: &Bytes,
) -> Result<Json<Created>, Rejection> {
    let goal = query::<WaitQuery>(uri)?.parsed()?;
    if let (Some(_), Some(why)) = (goal, GuestAgent::of(template).obstacle()) {
        return Err(invalid(format!("cannot wait: hostgroup/{group} {why}")));
    }
    let mut request = json::<CreateBody>(body)?.request(template)?;
    // Without an agent there are none, and clients may say so.
    let has_agent = GuestAgent::of(template) == GuestAgent::Possible;
    request.secrets = request
        .secrets
        .filter(|names| has_agent || !names.is_empty());
    if request.secrets.is_none() && template.guest_access.provision.secrets.is_empty() {
        request.secrets = all_secrets(state, template).await?;
    }
    check_secrets(state, request.secrets.as_deref().unwrap_or_default()).await?;
    let added = state.backend.add_vm(group.clone(), request).await;
    let added = added.map_err(refused)?;
    let vm = added.name;
    if added.applied != Applied::Created {
        let text = format!("vm/{vm} already exists");
        return Err(error(StatusCode::CONFLICT, text));
    }
    let node = match goal {
        None => launched(state, &vm).await?,
        Some((goal, limit)) => waited(state, &vm, goal, limit).await?,
    };
    Ok(Json(Created::of(&node)))
}

async fn template<B: Backend>(state: &Shared<B>, group: &Name) -> Result<VmSpec, Rejection> {
    let found = state.backend.get(Kind::HostGroup, Some(group.clone()));
    let found = found.await.map_err(refused)?.items.into_iter().next();
    match found {
        Some(Object::HostGroup(found)) if !found.metadata.deleting => Ok(found.spec.template),
        _ => Err(refused(Refusal::NotFound(format!("hostgroup/{group}")))),
    }
}

/// The names of all secrets, which a guest gets if neither its request nor its group names some.
async fn all_secrets<B: Backend>(
    state: &Shared<B>,
    template: &VmSpec,
) -> Result<Option<Vec<SecretName>>, Rejection> {
    if GuestAgent::of(template) != GuestAgent::Possible {
        return Ok(None);
    }
    let secrets = state.backend.secrets().await.map_err(refused)?;
    if secrets.len() > MAX_SECRETS {
        let count = secrets.len();
        return Err(invalid(format!(
            "the host has {count} secrets, and a VM has at most {MAX_SECRETS}: name those that it may have"
        )));
    }
    let names: Vec<SecretName> = secrets.into_iter().map(|secret| secret.name).collect();
    Ok((!names.is_empty()).then_some(names))
}

async fn check_secrets<B: Backend>(
    state: &Shared<B>,
    names: &[SecretName],
) -> Result<(), Rejection> {
    if names.is_empty() {
        return Ok(());
    }
    let known = state.backend.secrets().await.map_err(refused)?;
    let mut names = names.iter();
    match names.find(|name| known.iter().all(|secret| secret.name != **name)) {
        Some(missing) => Err(invalid(format!("secret \"{missing}\" not found"))),
        None => Ok(()),
    }
}

/// The VM when its VMM has started.
pub(super) async fn launched<B: Backend>(state: &Shared<B>, vm: &Name) -> Result<Node, Rejection> {
    let is_launched = |node: &Node| {
        let is_launched = match node.state {
            VmmState::None => node.ready,
            VmmState::Starting => false,
            VmmState::Running
            | VmmState::Paused
            | VmmState::Stopping
            | VmmState::Stopped
            | VmmState::Failed => true,
        };
        (is_launched && node.ip.is_some()).then(|| node.clone())
    };
    let found = wait::until(&*state.backend, vm, LAUNCH, is_launched).await;
    match found.map_err(refused)? {
        Some(node) => Ok(node),
        // It is stored, and is started as soon as that is possible.
        None => Ok(state.backend.node(vm.clone()).await.map_err(refused)?.node),
    }
}

/// The VM when the goal is reached; else it is removed, even if the client has gone meanwhile.
async fn waited<B: Backend>(
    state: &Arc<Shared<B>>,
    vm: &Name,
    goal: Goal,
    limit: Duration,
) -> Result<Node, Rejection> {
    let (state, vm, caller) = (Arc::clone(state), vm.clone(), Caller::current());
    let work = async move {
        let backend = &*state.backend;
        let found = wait::until(backend, &vm, limit, |node| {
            goal.is_reached(node).then(|| node.clone())
        });
        let found = tokio::select! {
            found = found => found.map_err(|refusal| match refusal {
                // Its userdata may power it off, which deletes it.
                Refusal::NotFound(_) | Refusal::NotFoundWithSuggestion(..) => {
                    let text = format!("vm/{vm} was deleted before the wait ended: see its events");
                    error(StatusCode::CONFLICT, text)
                }
                refusal => refused(refusal),
            })?,
            () = state.stop.cancelled() => {
                let text = format!("the daemon stops; vm/{vm} is kept");
                return Err(error(StatusCode::SERVICE_UNAVAILABLE, text));
            }
        };
        match found {
            Some(node) => Ok(node),
            None => {
                let cause = wait::cause(backend, &vm).await;
                backend.remove_vm(vm.clone()).await.map_err(refused)?;
                let what = match goal {
                    Goal::Agent => "its agent has not answered",
                    Goal::Userdata => "its userdata has not ended",
                };
                let cause = match cause {
                    Some(cause) => format!(": {cause}"),
                    None => String::new(),
                };
                let text = format!("vm/{vm} is removed: {what} within {limit:?}{cause}");
                Err(error(StatusCode::REQUEST_TIMEOUT, text))
            }
        }
    };
    let task = match caller {
        Some(caller) => tokio::spawn(caller.scope(work)),
        None => tokio::spawn(work),
    };
    task.await.unwrap_or_else(|failed| {
        tracing::error!(error = %failed, "a request has failed");
        Err(error(StatusCode::INTERNAL_SERVER_ERROR, "internal error"))
    })
}

impl Goal {
    pub(super) fn is_reached(self, node: &Node) -> bool {
        let answers = node.state == VmmState::Running;
        let reason = node.agent.filter(|_| answers);
        match self {
            Self::Agent => matches!(
                reason,
                Some(
                    Reason::Answering
                        | Reason::UserdataRunning
                        | Reason::UserdataFailed
                        | Reason::NotProvisioned
                )
            ),
            Self::Userdata => matches!(reason, Some(Reason::Answering | Reason::UserdataFailed)),
        }
    }
}
