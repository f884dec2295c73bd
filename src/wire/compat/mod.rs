//! The REST API that existing clients of Slicer use, on the same router and with the same handlers as `/v1`.
//! Out of scope: what the requests do ([`super::backend`]); the listener.
//!
//! A request that both APIs have is handled once: secrets by [`super::secrets`], those to agents by [`super::agent`]. Here are the bodies,
//! statuses and rules that these clients expect. All errors have the body [`ErrorBody`](super::error_body::ErrorBody).
//!
//! # Endpoints
//! | request | response |
//! |---|---|
//! | `GET /healthz` | `OK` |
//! | `GET /info` | [`types::Info`] |
//! | `GET /metrics` | text of Prometheus |
//! | `POST /daemon/shutdown` | 202; the daemon ends, the VMs keep running |
//! | `GET /hostgroup` | array of [`types::GroupEntry`] |
//! | `GET /nodes?tag=&tag_prefix=` | array of [`types::NodeEntry`] |
//! | `GET /nodes/stats` | array of [`types::NodeStats`] |
//! | `GET /node/{vm}/stats` | array of one [`types::NodeStats`] |
//! | `GET /hostgroup/{group}/nodes?tag=&tag_prefix=` | array of [`types::NodeEntry`] |
//! | `POST /hostgroup/{group}/nodes?wait=agent&timeout=5m`, body [`CreateBody`](create) | [`types::Created`]; 408 if it waits too long, and the VM is removed |
//! | `GET /hostgroup/{group}/{nodes}` | the list again: a client sends `nodes%3Ftag=x` as a part of the path |
//! | `DELETE /hostgroup/{group}/nodes/{vm}` | [`types::Deleted`]; 403 for a VM of `count` |
//! | `GET /vm/{vm}` | [`types::Description`] |
//! | `GET /vm/{vm}/tags` | [`types::Tags`] |
//! | `PATCH /vm/{vm}/tags`, body [`tags::TagsBody`] | [`types::Tags`] |
//! | `GET /vm/{vm}/logs?lines=20` | [`types::Logs`] |
//! | `GET /vm/{vm}/health` | [`types::AgentHealth`], once the agent answers |
//! | `POST /vm/{vm}/pause` | text, when the guest is paused |
//! | `POST /vm/{vm}/resume` | text, when the guest runs |
//! | `POST /vm/{vm}/shutdown?action=shutdown` | text, when the VMM has ended |
//! | `POST /vm/{vm}/relaunch` | [`types::Created`] |
//! | `POST /vm/{vm}/suspend` | 501 |
//! | `POST /vm/{vm}/restore` | 501 |
//! | `GET /vm/{vm}/exec` | this and the following: as [`crate::guest::protocol`] |
//! | `POST /vm/{vm}/exec` | |
//! | `GET /vm/{vm}/exec/{id}` | |
//! | `DELETE /vm/{vm}/exec/{id}` | |
//! | `GET /vm/{vm}/exec/{id}/logs` | |
//! | `POST /vm/{vm}/exec/{id}/kill` | |
//! | `GET /vm/{vm}/exec/{id}/wait-exit` | |
//! | `GET /vm/{vm}/cp` | |
//! | `POST /vm/{vm}/cp` | |
//! | `GET /vm/{vm}/fs/stat` | |
//! | `GET /vm/{vm}/fs/readdir` | |
//! | `POST /vm/{vm}/fs/mkdir` | |
//! | `DELETE /vm/{vm}/fs/remove` | |
//! | `GET /vm/{vm}/fs/watch` | |
//! | `GET /vm/{vm}/shell` | |
//! | `GET /vm/{vm}/forward` | |
//! | `GET /secrets` | array of [`SecretView`](crate::api::secret::SecretView) |
//! | `POST /secrets`, body [`SecretRequest`](crate::api::secret::SecretRequest) | 201, [`SecretView`](crate::api::secret::SecretView) |
//! | `PATCH /secrets/{name}`, same body | [`SecretView`](crate::api::secret::SecretView) |
//! | `DELETE /secrets/{name}` | 200 |
//! | `GET /openapi.json` | the description of all of these |

mod counters;
mod create;
mod describe;
mod errors;
mod guest;
mod health;
mod info;
mod logs;
mod metrics;
mod nodes;
pub(super) mod openapi;
mod power;
mod stats;
mod tags;
mod types;
mod wait;

use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::routing::{delete, get, patch, post};

use super::backend::Backend;
use super::secrets;
use super::shared::Shared;

pub(super) use errors::of_dialect;

/// The routes of the API.
pub(super) fn routes<B: Backend>() -> Router<Arc<Shared<B>>> {
    Router::new()
        .route("/healthz", get(info::healthz))
        .route("/info", get(info::info))
        .route("/metrics", get(metrics::metrics::<B>))
        .route("/openapi.json", get(openapi::document))
        .route("/daemon/shutdown", post(info::shutdown::<B>))
        .route("/hostgroup", get(nodes::groups::<B>))
        .route("/nodes", get(nodes::all::<B>))
        .route("/nodes/stats", get(stats::all::<B>))
        .route("/node/{vm}/stats", get(stats::one::<B>))
        .route(
            "/hostgroup/{group}/nodes",
            get(nodes::of_group::<B>).post(create::create::<B>),
        )
        .route("/hostgroup/{group}/{nodes}", get(nodes::in_path::<B>))
        .route("/hostgroup/{group}/nodes/{vm}", delete(nodes::remove::<B>))
        .route("/vm/{vm}", get(describe::describe::<B>))
        .route(
            "/vm/{vm}/tags",
            get(tags::get::<B>).patch(tags::change::<B>),
        )
        .route("/vm/{vm}/logs", get(logs::logs::<B>))
        .route("/vm/{vm}/health", get(health::health::<B>))
        .route("/vm/{vm}/pause", post(power::pause::<B>))
        .route("/vm/{vm}/resume", post(power::resume::<B>))
        .route("/vm/{vm}/shutdown", post(power::shutdown::<B>))
        .route("/vm/{vm}/relaunch", post(power::relaunch::<B>))
        .route("/vm/{vm}/suspend", post(power::suspend::<B>))
        .route("/vm/{vm}/restore", post(power::restore::<B>))
        .route(
            "/vm/{vm}/exec",
            get(guest::list::<B>).post(guest::exec::<B>),
        )
        .route(
            "/vm/{vm}/exec/{id}",
            get(guest::info::<B>).delete(guest::reap::<B>),
        )
        .route("/vm/{vm}/exec/{id}/logs", get(guest::logs::<B>))
        .route("/vm/{vm}/exec/{id}/kill", post(guest::kill::<B>))
        .route("/vm/{vm}/exec/{id}/wait-exit", get(guest::wait_exit::<B>))
        .route(
            "/vm/{vm}/cp",
            get(guest::copy_from::<B>).post(guest::copy_to::<B>),
        )
        .route("/vm/{vm}/fs/stat", get(guest::stat::<B>))
        .route("/vm/{vm}/fs/readdir", get(guest::readdir::<B>))
        .route("/vm/{vm}/fs/mkdir", post(guest::mkdir::<B>))
        .route("/vm/{vm}/fs/remove", delete(guest::remove::<B>))
        .route("/vm/{vm}/fs/watch", get(guest::watch::<B>))
        .route("/vm/{vm}/shell", get(guest::shell::<B>))
        .route("/vm/{vm}/forward", get(guest::connect::<B>))
        .route(
            "/secrets",
            get(secrets::list::<B>).post(secrets::create::<B>),
        )
        .route(
            "/secrets/{name}",
            patch(secrets::update::<B>).delete(secrets::delete::<B>),
        )
        .layer(middleware::from_fn(errors::translate))
}

/// Whether the body of a request with this path is forwarded to an agent, and not read into memory.
pub(super) fn is_agent_path(path: &str) -> bool {
    let mut parts = path.split('/');
    let is_of_vm = parts.next() == Some("") && parts.next() == Some("vm") && parts.next().is_some();
    let agent = ["exec", "cp", "fs", "shell", "forward"];
    is_of_vm && parts.next().is_some_and(|part| agent.contains(&part))
}

/// Whether a request with this path asks all agents.
pub(super) fn is_list_of_agents(path: &str) -> bool {
    path == "/nodes/stats"
}

/// Whether the body of a request with this path may have a secret or a script.
pub(super) fn has_medium_body(path: &str) -> bool {
    path.starts_with("/secrets") || path.starts_with("/hostgroup/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_streams_only_of_requests_to_agents() {
        for (path, expected) in [
            ("/vm/a/exec", true),
            ("/vm/a/exec/ex_1/logs", true),
            ("/vm/a/cp", true),
            ("/vm/a/fs/mkdir", true),
            ("/vm/a/shell", true),
            ("/vm/a/shutdown", false),
            ("/vm/a/tags", false),
            ("/vm/exec", false),
            ("/vms/a/exec", false),
            ("vm/a/exec", false),
        ] {
            assert_eq!(is_agent_path(path), expected, "{path}");
        }
    }
}
