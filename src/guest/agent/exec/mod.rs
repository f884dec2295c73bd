//! `/exec`: commands in the foreground and in the background.
//! Out of scope: starting processes.
//!
//! | file | content |
//! |---|---|
//! | `background` | a command in the background and its logs |
//! | `budget` | the memory for output |
//! | `commands` | all commands by their ids, limits |
//! | `foreground` | a command that ends with its client |
//! | `frames` | the lines of responses |
//! | `ring` | the buffer for output of a command in the background |

mod background;
mod budget;
pub(super) mod commands;
mod foreground;
mod frames;
mod ring;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::time::timeout;

use self::background::Background;
use self::commands::{Commands, new_id};
use super::child::Streams;
use super::error::{Error, query};
use super::output;
use super::process::{Scope, signal_of, start};
use super::spec::Spec;
use super::state::Agent;
use crate::guest::protocol::{CHUNK, ExecInfo, ExecQuery, Kill, Killed, Reaped, Started, Waited};

/// The size of the buffer of a command without `ring_bytes`, in bytes.
const RING_BYTES: u64 = 1 << 20;

/// The valid values of `ring_bytes`.
const RING_RANGE: std::ops::RangeInclusive<u64> = 4 << 10..=64 << 20;

/// The maximum size of a body with parameters, in bytes, and the time to read it.
const BODY_LIMIT: usize = 64 << 10;
const BODY_TIME: Duration = Duration::from_secs(10);

/// The default and the maximum of `timeout`, in seconds.
const WAIT: u64 = 30;
const WAIT_LIMIT: u64 = 600;

/// The default and the maximum of `grace_ms`, in milliseconds.
const GRACE: u64 = 5_000;
const GRACE_LIMIT: u64 = 600_000;

/// The routes.
pub fn router() -> Router<Arc<Agent>> {
    Router::new()
        .route("/exec", get(list).post(exec))
        .route("/exec/{id}", get(info).delete(remove))
        .route("/exec/{id}/logs", get(logs))
        .route("/exec/{id}/kill", post(kill))
        .route("/exec/{id}/wait-exit", get(wait_exit))
}

async fn exec(State(agent): State<Arc<Agent>>, uri: Uri, body: Body) -> Result<Response, Error> {
    let query: ExecQuery = query(&uri)?;
    let conflict = match (query.background, query.buffered, query.stdin) {
        (true, true, _) => Some("background has no effect with buffered"),
        (true, _, true) => Some("stdin has no effect with background"),
        (_, true, true) => Some("stdin has no effect with buffered"),
        _ => None,
    };
    match conflict {
        Some(text) => Err(Error::bad_request(text)),
        None if query.background => background(&agent.commands, query).await,
        None if query.buffered => foreground::buffered(&agent.commands, &query, body).await,
        None => foreground::stream(&agent.commands, &query, body).await,
    }
}

async fn background(commands: &Arc<Commands>, query: ExecQuery) -> Result<Response, Error> {
    let spec = Spec::of_exec(&query)?;
    let requested = query.ring_bytes.unwrap_or(RING_BYTES);
    let ring_bytes = usize::try_from(requested)
        .ok()
        .filter(|_| RING_RANGE.contains(&requested))
        .ok_or_else(|| {
            let (min, max) = RING_RANGE.into_inner();
            Error::bad_request(format!(
                "invalid ring_bytes {requested}: expected {min} to {max}"
            ))
        })?;
    let (reservation, slot) = commands.reserve(ring_bytes)?;
    let streams = Streams::Pipes {
        stdin: false,
        stdout: query.stdout,
        stderr: query.stderr,
    };
    let spawned = start(spec, streams, Scope::Group).await?;
    let process = spawned.process;
    // One chunk never takes the whole buffer.
    let chunk = CHUNK.min(ring_bytes / 4);
    let output = output::read(&process, spawned.stdout, spawned.stderr, query.stdio, chunk)
        .map_err(|error| Error::system("connect pipes", &error))?;
    spawned.abandoned.keep();
    let started = Started {
        exec_id: new_id(),
        pid: process.pid(),
        started_at: process.started_at,
        ring_bytes: requested,
    };
    let id = started.exec_id.clone();
    let command = Background::new(id, process, query, ring_bytes, reservation, output);
    commands.add(command, slot);
    Ok((StatusCode::CREATED, Json(started)).into_response())
}

async fn list(State(agent): State<Arc<Agent>>) -> Json<Vec<ExecInfo>> {
    let commands = agent.commands.list();
    Json(commands.iter().map(|command| command.info()).collect())
}

async fn info(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<ExecInfo>, Error> {
    Ok(Json(agent.commands.get(&id)?.info()))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LogsQuery {
    follow: bool,
    from_id: u64,
}

async fn logs(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Error> {
    let query: LogsQuery = query(&uri)?;
    let command = agent.commands.get(&id)?;
    Ok(foreground::ndjson(
        command.logs(query.from_id, query.follow),
    ))
}

/// The parameters; none for an empty body and for `null`.
async fn parameters(body: Body) -> Result<Kill, Error> {
    let read = timeout(BODY_TIME, to_bytes(body, BODY_LIMIT)).await;
    let body = match read {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let text = format!("invalid body: expected at most {BODY_LIMIT} bytes of JSON");
            return Err(Error::bad_request(text));
        }
        Err(_) => {
            let text = "the body was not complete within 10 s";
            return Err(Error::new(StatusCode::REQUEST_TIMEOUT, text));
        }
    };
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Kill::default());
    }
    let parsed: Option<Kill> = serde_json::from_slice(&body)
        .map_err(|error| Error::bad_request(format!("invalid body: {error}")))?;
    Ok(parsed.unwrap_or_default())
}

async fn kill(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<Killed>, Error> {
    let kill = parameters(body).await?;
    let name = kill.signal.as_deref().unwrap_or("TERM");
    let Some((name, signal)) = signal_of(name) else {
        let text =
            format!("invalid signal \"{name}\": expected TERM, KILL, INT, HUP, QUIT, USR1 or USR2");
        return Err(Error::bad_request(text));
    };
    let grace = kill.grace_ms.unwrap_or(GRACE);
    if grace > GRACE_LIMIT {
        let text = format!("invalid grace_ms {grace}: expected at most {GRACE_LIMIT}");
        return Err(Error::bad_request(text));
    }
    let process = agent.commands.process(&id)?;
    let running = process.ending().is_none();
    match name {
        _ if !running => {}
        "SIGTERM" => process.terminate(signal, Duration::from_millis(grace)),
        _ => process.signal(signal),
    }
    Ok(Json(Killed {
        exec_id: id,
        pid: process.pid(),
        running,
        signal_sent: if running { name } else { "" }.to_owned(),
    }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WaitQuery {
    timeout: Option<u64>,
}

async fn wait_exit(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Json<Waited>, Error> {
    let query: WaitQuery = query(&uri)?;
    let command = agent.commands.get(&id)?;
    let limit = Duration::from_secs(query.timeout.unwrap_or(WAIT).min(WAIT_LIMIT));
    let ending = timeout(limit, command.complete()).await.ok();
    Ok(Json(Waited {
        exec_id: id,
        running: ending.is_none(),
        exit_code: ending.as_ref().map(|ending| ending.exit_code),
        signal: ending.as_ref().and_then(|ending| ending.signal.clone()),
        timed_out: ending.is_none(),
        ended_at: ending.map(|ending| ending.ended_at),
    }))
}

async fn remove(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<Reaped>, Error> {
    agent.commands.remove(&id)?;
    Ok(Json(Reaped {
        exec_id: id,
        reaped: true,
    }))
}
