//! `/health` and `/stats`.
//! Out of scope: the figures (`stats`).

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use rustix::system::uname;
use rustix::time::{ClockId, clock_gettime};

use super::error::Error;
use super::state::Agent;
use super::stats;
use crate::clock;
use crate::guest::protocol::{Health, Stats};

/// The routes.
pub fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/health", get(health))
        .route("/stats", get(figures))
}

async fn health(State(agent): State<Arc<Agent>>) -> Json<Health> {
    let uptime = clock::monotonic().saturating_duration_since(agent.started);
    let boot = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(boot.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(boot.tv_nsec).unwrap_or(0);
    let provisioner = agent.provisioner.as_ref();
    let userdata = provisioner.map(|it| it.userdata_status());
    Json(Health {
        hostname: uname().nodename().to_string_lossy().into_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_uptime: u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX),
        system_uptime: seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
        userdata_ran: provisioner.is_none_or(|it| it.has_run()),
        userdata_exit_code: userdata.as_ref().and_then(|it| it.exit_code),
        generation: provisioner.map(|it| it.generation()),
        userdata,
        in_initrd: agent.in_initrd,
    })
}

async fn figures() -> Result<Json<Stats>, Error> {
    // The root file system may not answer, and other requests do not wait for it.
    let read = tokio::task::spawn_blocking(stats::read).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map(Json)
        .map_err(|error| Error::system("read figures", &error))
}
