//! `GET /v1/fleet/events`: the events of all nodes in one stream.
//! Out of scope: the events of this node.
//!
//! The events of a node are in order; those of different nodes come as they arrive. A node that does not answer is a line with an error.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Query, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::forward::Timeouts;
use super::{Peers, Place};
use crate::api::event::{Event, FleetEvent, ObjectRef};
use crate::api::meta::Name;
use crate::api::plain_text;
use crate::guest::lines::Lines;
use crate::wire::admission::Client;
use crate::wire::backend::{Backend, Refusal, StreamMode};
use crate::wire::client::percent_encode;
use crate::wire::extract::Extract;
use crate::wire::lines::lines;
use crate::wire::queries::{FollowQuery, ObjectQuery};
use crate::wire::shared::{ApiError, AppState};
use crate::wire::user::User;

/// The maximum length of a line of another node, in bytes.
const LINE_LIMIT: usize = 64 << 10;
/// The maximum length of an error, in bytes.
const ERROR_LIMIT: usize = 500;
/// The most lines of a node, if the events are not followed: a daemon keeps fewer events.
const LINES: usize = 4000;
/// The most bytes of these lines.
const BYTES: usize = 8 << 20;
/// How many nodes are asked at the same time, if the events are not followed.
const CONCURRENT: usize = 32;
/// The maximum number of connections for events of all requests.
const MAX_CONNECTIONS: usize = 1024;
/// Those that only root and the user of the daemon may have.
const RESERVED: usize = MAX_CONNECTIONS / 4;
static CONNECTIONS: Semaphore = Semaphore::const_new(MAX_CONNECTIONS);

const TIMEOUTS: Timeouts = Timeouts {
    head: Some(Duration::from_secs(10)),
    idle: Some(Duration::from_secs(10)),
};

/// The events of all nodes. They are in the order in which they arrive.
#[utoipa::path(get, path = "/v1/fleet/events", tag = "v1", params(ObjectQuery, FollowQuery), responses(ApiError, (status = 200, body = FleetEvent, content_type = "application/x-ndjson")))]
pub(in crate::wire) async fn events<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
    Extract(Query(filter)): Extract<Query<ObjectQuery>>,
    Extract(Query(length)): Extract<Query<FollowQuery>>,
) -> Result<Response, ApiError> {
    let fleet = state.backend.fleet();
    let own = fleet.as_ref().and_then(|fleet| fleet.tls());
    let (Some(fleet), Some(own)) = (fleet, own) else {
        let why = "this host has no certificates of a fleet: see fleet: in its settings file";
        return Err(Refusal::Conflict(vec![why.to_owned()]).into());
    };
    let span = length.span();
    let of_this = state.backend.events(filter.object.clone(), span).await?;
    let node = own.node().clone();
    let of_this = of_this.map(move |event| event_of(&node, event));
    // One hop at most.
    let others = match caller.peer {
        Some(_) => Vec::new(),
        None => fleet.others(),
    };
    let peers = Arc::new(Peers {
        fleet: Some(fleet),
        agents: Arc::clone(&state.agents),
        stop: state.stop.clone(),
    });
    let path = path("/v1/events", filter.object.as_ref(), span);
    let of_others = others.into_iter().map(move |place| {
        let (peers, caller, path) = (Arc::clone(&peers), caller.clone(), path.clone());
        of_node(peers, caller, place, path, span).boxed()
    });
    let at_once = match span {
        StreamMode::Once => Some(CONCURRENT),
        StreamMode::Follow => None,
    };
    let of_others = stream::iter(of_others).flatten_unordered(at_once);
    Ok(lines(&state, stream::select(of_this, of_others)))
}

/// The path of a request for events.
pub(super) fn path(path: &str, object: Option<&ObjectRef>, span: StreamMode) -> String {
    let mut path = format!("{path}?follow={}", span == StreamMode::Follow);
    if let Some(object) = object {
        path.push_str("&object=");
        path.push_str(&percent_encode(&object.to_string()));
    }
    path
}

fn event_of(node: &Name, event: Event) -> FleetEvent {
    FleetEvent {
        node: node.clone(),
        event: Some(event),
        error: None,
    }
}

fn error_of(node: &Name, error: &str) -> FleetEvent {
    FleetEvent {
        node: node.clone(),
        event: None,
        error: Some(plain_text::line(error, ERROR_LIMIT).into_owned()),
    }
}

/// The events of a node, or one error.
fn of_node(
    peers: Arc<Peers>,
    caller: Client,
    place: Place,
    path: String,
    span: StreamMode,
) -> impl Stream<Item = FleetEvent> + Send {
    let node = place.node.clone();
    let asked = async move {
        let Some(permit) = permit(&CONNECTIONS, caller.user) else {
            let error = "too many connections for events are open; try again";
            return stream::iter([error_of(&node, error)]).boxed();
        };
        let timeouts = Timeouts {
            idle: TIMEOUTS.idle.filter(|_| span == StreamMode::Once),
            ..TIMEOUTS
        };
        match peers.get(&caller, &place, &path, timeouts).await {
            Ok(response) => events_in(node, response, span)
                .inspect(move |_| {
                    // Held as long as the stream.
                    let _ = &permit;
                })
                .boxed(),
            Err(error) => stream::iter([error_of(&node, &error)]).boxed(),
        }
    };
    stream::once(asked).flatten()
}

/// A connection of this user; `None`: there are too many.
fn permit(connections: &Semaphore, user: User) -> Option<SemaphorePermit<'_>> {
    let reserved = match user {
        User::Privileged => 0,
        User::Of(_) | User::Remote(_) | User::Forwarded(_) => RESERVED,
    };
    let has_place = connections.available_permits() > reserved;
    has_place.then(|| connections.try_acquire().ok())?
}

/// What a node may still send.
struct Budget {
    lines: usize,
    bytes: usize,
}

impl Budget {
    /// Whether this line is the last one or an earlier one of those that are passed on. Those of a stream that is followed are passed on
    /// as they arrive, and are not limited.
    fn takes(&mut self, line: &[u8], span: StreamMode) -> bool {
        if span == StreamMode::Follow {
            return true;
        }
        let rest = (self.lines.checked_sub(1)).zip(self.bytes.checked_sub(line.len()));
        let is_within = rest.is_some();
        (self.lines, self.bytes) = rest.unwrap_or_default();
        is_within
    }
}

fn events_in(node: Name, response: Response, span: StreamMode) -> BoxStream<'static, FleetEvent> {
    if !response.status().is_success() {
        let error = format!(
            "node {node} answers with status {}",
            response.status().as_u16()
        );
        return stream::iter([error_of(&node, &error)]).boxed();
    }
    let body = response.into_body().into_data_stream();
    let chunks = body.map(|chunk| chunk.map_err(|error| error.to_string()));
    let budget = Budget {
        lines: LINES,
        bytes: BYTES,
    };
    let state = Some((node, chunks.boxed(), Lines::new(LINE_LIMIT), budget));
    stream::unfold(state, move |state| async move {
        let (node, mut chunks, mut lines, mut budget) = state?;
        match next(&mut chunks, &mut lines).await {
            Ok(Some(line)) if !budget.takes(&line, span) => {
                let error = format!(
                    "node {node} has sent more than {LINES} events or {BYTES} bytes: the others are not shown"
                );
                Some((error_of(&node, &error), None))
            }
            Ok(Some(line)) => {
                let item = match serde_json::from_slice(&line) {
                    Ok(event) => event_of(&node, event),
                    // Of a later version: those that follow may be known.
                    Err(_) => error_of(&node, &format!("an event of node {node} cannot be read")),
                };
                Some((item, Some((node, chunks, lines, budget))))
            }
            Ok(None) if span == StreamMode::Once => None,
            Ok(None) => {
                let error =
                    format!("the events of node {node} have ended: it has closed the connection");
                Some((error_of(&node, &error), None))
            }
            Err(error) => {
                let error = format!("the events of node {node} have ended: {error}");
                Some((error_of(&node, &error), None))
            }
        }
    })
    .boxed()
}

async fn next(
    chunks: &mut BoxStream<'static, Result<Bytes, String>>,
    lines: &mut Lines,
) -> Result<Option<BytesMut>, String> {
    loop {
        if let Some(line) = lines.next_line().map_err(|error| error.to_string())? {
            return Ok(Some(line));
        }
        match chunks.next().await {
            Some(chunk) => lines.push(&chunk?),
            None if lines.is_empty() => return Ok(None),
            None => return Err("the connection was closed unexpectedly".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn found(body: &'static str, span: StreamMode) -> Vec<Result<String, String>> {
        let node = Name::new("node-b").unwrap();
        let events = events_in(node, Response::new(Body::from(body)), span).collect::<Vec<_>>();
        let events = futures::executor::block_on(events);
        let text = |it: FleetEvent| match (it.event, it.error) {
            (Some(event), None) => Ok(format!("{}: {}", it.node, event.message)),
            (None, error) => Err(error.unwrap()),
            (Some(_), Some(_)) => panic!("both"),
        };
        events.into_iter().map(text).collect()
    }

    const EVENT: &str = r#"{"time":"2026-01-01T00:00:00Z","object":"vm/a-1","reason":"GuestAccess","message":"exec","count":1,"type":"Normal"}"#;

    #[test]
    fn the_events_of_a_node_are_lines_and_what_is_wrong_is_a_line_too() {
        let ok = || Ok("node-b: exec".to_owned());
        let body: &'static str = format!("{EVENT}\n{EVENT}\n").leak();
        assert_eq!(found(body, StreamMode::Once), [ok(), ok()]);
        assert_eq!(found(body, StreamMode::Follow).len(), 3, "it has ended");
        assert!(found("", StreamMode::Once).is_empty());
        let body: &'static str = format!("{{}}\n{EVENT}\n{{\"cut").leak();
        let lines = found(body, StreamMode::Once);
        assert!(lines[0].as_ref().unwrap_err().contains("cannot be read"));
        assert_eq!(lines[1], ok());
        assert!(lines[2].as_ref().unwrap_err().contains("unexpectedly"));
        let long: &'static str = "x".repeat(LINE_LIMIT + 1).leak();
        assert!(found(long, StreamMode::Once)[0].is_err());
    }

    #[test]
    fn events_that_are_collected_are_limited_for_each_node_and_the_cut_is_a_line() {
        let many: &'static str = format!("{EVENT}\n").repeat(LINES + 5).leak();
        let lines = found(many, StreamMode::Once);
        assert_eq!(lines.len(), LINES + 1);
        assert!(lines[..LINES].iter().all(Result::is_ok));
        let cut = lines[LINES].as_ref().unwrap_err();
        assert!(cut.contains("more than 4000 events"), "{cut}");
        // They are passed on as they arrive.
        assert_eq!(found(many, StreamMode::Follow).len(), LINES + 6);
        let padded = EVENT.replace("exec", &"x".repeat(LINE_LIMIT - 200));
        let large: &'static str = format!("{padded}\n")
            .repeat(BYTES / padded.len() + 5)
            .leak();
        let lines = found(large, StreamMode::Once);
        assert_eq!(lines.len(), BYTES / padded.len() + 1);
        assert!(lines.last().unwrap().is_err());
        // Lines that cannot be read count as well.
        let nonsense: &'static str = "{}\n".repeat(LINES * 2).leak();
        assert_eq!(found(nonsense, StreamMode::Once).len(), LINES + 1);
    }

    #[test]
    fn a_quarter_of_the_connections_is_for_privileged_users() {
        let connections = Semaphore::new(MAX_CONNECTIONS);
        let take = |user| std::iter::from_fn(|| permit(&connections, user)).collect::<Vec<_>>();
        let others = take(User::Forwarded(7));
        assert_eq!(others.len(), MAX_CONNECTIONS - RESERVED);
        assert!(permit(&connections, User::Of(1000)).is_none());
        let privileged = take(User::Privileged);
        assert_eq!(privileged.len(), RESERVED);
        drop((others, privileged));
    }
}
