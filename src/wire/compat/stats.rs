//! The figures of guests.
//! Out of scope: asking an agent ([`super::super::agent`]).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use futures::StreamExt;

use super::super::admission::Client;
use super::super::agent;
use super::super::backend::Backend;
use super::super::shared::{AppState, Shared};
use super::errors::{Rejection, refused, vm_name};
use super::types::{NodeStats, address};
use crate::api::node::Node;
use crate::api::plain_text;
use crate::api::view::{Problem, VmmState};
use crate::guest::endpoint::Endpoint;
use crate::guest::protocol::Stats;

/// How long an agent may take: the list has those of all VMs.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The number of agents that are asked at the same time.
const CONCURRENCY: usize = 32;

/// The maximum length of a text of a guest, in bytes.
const TEXT_LIMIT: usize = 64;

/// The figures of all guests.
#[utoipa::path(get, path = "/nodes/stats", tag = "guests", responses(Rejection,
    (status = 200, body = Vec<NodeStats>),
))]
pub(super) async fn all<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
) -> Result<Json<Vec<NodeStats>>, Rejection> {
    let nodes = state.backend.nodes(None).await.map_err(refused)?;
    let questions = nodes.into_iter().map(|node| {
        let (state, caller) = (Arc::clone(&state), caller.clone());
        async move { stats(&state, &caller, &node).await }
    });
    let answers = futures::stream::iter(questions).buffered(CONCURRENCY);
    Ok(Json(answers.collect().await))
}

/// The figures of one guest, as a list: clients expect one.
#[utoipa::path(get, path = "/node/{vm}/stats", tag = "guests",
    responses(Rejection, (status = 200, body = Vec<NodeStats>)))]
pub(super) async fn one<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
    Path(vm): Path<String>,
) -> Result<Json<Vec<NodeStats>>, Rejection> {
    let vm = vm_name(&vm)?;
    let node = state.backend.node(vm).await.map_err(refused)?.node;
    Ok(Json(vec![stats(&state, &caller, &node).await]))
}

async fn stats<B: Backend>(state: &Shared<B>, caller: &Client, node: &Node) -> NodeStats {
    let found = match (node.access.obstacle(), node.state) {
        (Some(why), _) => Err(format!("vm/{} {why}", node.name)),
        (None, VmmState::Running) => ask(state, caller, node).await,
        (None, _) => Err(format!("vm/{} does not run", node.name)),
    };
    let (snapshot, error) = match found {
        Ok(stats) => (Some(stats), None),
        Err(error) => (None, Some(error)),
    };
    NodeStats {
        hostname: node.name.to_string(),
        ip: address(node),
        created_at: node.created_at,
        snapshot,
        error,
    }
}

async fn ask<B: Backend>(state: &Shared<B>, caller: &Client, node: &Node) -> Result<Stats, String> {
    let vm = &node.name;
    let answer = agent::ask(state, caller, vm, (Endpoint::Stats, "/stats"));
    let body = match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok(body)) => body,
        Ok(Err(mut refusal)) => {
            let problem = refusal.extensions_mut().remove::<Problem>();
            let reason = problem.map(|found| match found.problems.is_empty() {
                true => found.error,
                false => found.problems.join("; "),
            });
            return Err(reason.unwrap_or_else(|| refusal.status().to_string()));
        }
        Err(_) => {
            let seconds = TIMEOUT.as_secs();
            return Err(format!(
                "the agent of vm/{vm} has not answered within {seconds} s"
            ));
        }
    };
    let invalid = |_| format!("the agent of vm/{vm} has sent an invalid response");
    let mut stats: Stats = serde_json::from_slice(&body).map_err(invalid)?;
    stats.hostname = vm.to_string();
    for text in [&mut stats.arch, &mut stats.timestamp, &mut stats.uptime] {
        *text = plain_text::line(text, TEXT_LIMIT).into_owned();
    }
    Ok(stats)
}
