//! One VM with its lists and its commands in the background.
//! Out of scope: the lists of VMs (`nodes`).

use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};

use super::super::admission::Client;
use super::super::agent;
use super::super::backend::Backend;
use super::super::shared::{AppState, Shared};
use super::errors::{Rejection, refused, vm_name};
use super::types::{
    BackgroundCommand, DescribedNetwork, Description, Lists, NodeEntry, OverrideLists,
};
use crate::api::node::{Node, NodeDetails};
use crate::api::plain_text;
use crate::api::policy::{Entry, Policy};
use crate::api::view::VmmState;
use crate::guest::endpoint::Endpoint;
use crate::guest::protocol::ExecInfo;

/// How long an agent may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum length of a command line of a guest, in bytes.
const COMMAND_LIMIT: usize = 1000;

/// One VM.
#[utoipa::path(get, path = "/vm/{vm}", tag = "vms",
    responses(Rejection, (status = 200, body = Description)))]
pub(super) async fn describe<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
    Path(vm): Path<String>,
) -> Result<Json<Description>, Rejection> {
    let vm = vm_name(&vm)?;
    let details = state.backend.node(vm.clone()).await.map_err(refused)?;
    let open_agent_connections = state.agents.open(&vm);
    let bg_execs = commands(&state, &caller, &details.node).await;
    let last = state.agents.uses().last(&vm, details.node.created_at);
    Ok(Json(Description {
        node: NodeEntry::of(&details.node, last),
        storage: match details.node.has_disk {
            true => "image",
            false => "none",
        },
        network: network(&details),
        image: details.image,
        open_agent_connections,
        bg_execs,
    }))
}

/// The commands in the background; `None` if the agent does not answer.
async fn commands<B: Backend>(
    state: &Shared<B>,
    caller: &Client,
    node: &Node,
) -> Option<Vec<BackgroundCommand>> {
    if node.access.obstacle().is_some() || node.state != VmmState::Running {
        return None;
    }
    let answer = agent::ask(state, caller, &node.name, (Endpoint::ExecList, "/exec"));
    let body = tokio::time::timeout(TIMEOUT, answer).await.ok()?.ok()?;
    let commands: Vec<ExecInfo> = serde_json::from_slice(&body).ok()?;
    Some(commands.into_iter().map(command).collect())
}

fn command(info: ExecInfo) -> BackgroundCommand {
    let arguments = std::iter::once(info.command).chain(info.args);
    let line = arguments.collect::<Vec<_>>().join(" ");
    BackgroundCommand {
        exec_id: plain_text::line(&info.exec_id, 64).into_owned(),
        command: plain_text::line(&line, COMMAND_LIMIT).into_owned(),
        pid: info.pid,
        state: match info.running {
            true => "running",
            false => "exited",
        },
        started_at: info.started_at,
        exit_code: info.exit_code,
    }
}

fn network(details: &NodeDetails) -> DescribedNetwork {
    let own = &details.overrides;
    let overrides = (own.allow.is_some() || own.drop.is_some()).then(|| OverrideLists {
        allow: own.allow.as_deref().map(texts),
        drop: own.drop.as_deref().map(texts),
    });
    DescribedNetwork {
        mode: details.mode.to_string(),
        policy_source: match overrides {
            Some(_) => "vm",
            None => "hostgroup",
        },
        host_group: lists(details.group_policy.as_ref()),
        overrides,
        effective: lists(details.policy.as_ref()),
    }
}

fn lists(policy: Option<&Policy>) -> Lists {
    policy.map_or_else(Lists::default, |policy| Lists {
        allow: texts(&policy.allow),
        drop: texts(&policy.drop),
    })
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(ToString::to_string).collect()
}
