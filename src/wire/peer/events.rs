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
use tokio::sync::Semaphore;

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

/// The maximum length of a line of another node, in bytes.
const LINE_LIMIT: usize = 64 << 10;
/// The maximum length of an error, in bytes.
const ERROR_LIMIT: usize = 500;
/// How many nodes are asked at the same time, if the events are not followed.
const CONCURRENT: usize = 32;
/// The maximum number of connections for events of all requests.
static CONNECTIONS: Semaphore = Semaphore::const_new(1024);

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
        let Ok(permit) = CONNECTIONS.try_acquire() else {
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
    let state = Some((node, chunks.boxed(), Lines::new(LINE_LIMIT)));
    stream::unfold(state, move |state| async move {
        let (node, mut chunks, mut lines) = state?;
        match next(&mut chunks, &mut lines).await {
            Ok(Some(line)) => {
                let item = match serde_json::from_slice(&line) {
                    Ok(event) => event_of(&node, event),
                    // Of a later version: those that follow may be known.
                    Err(_) => error_of(&node, &format!("an event of node {node} cannot be read")),
                };
                Some((item, Some((node, chunks, lines))))
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

    #[test]
    fn the_events_of_a_node_are_lines_and_what_is_wrong_is_a_line_too() {
        const EVENT: &str = r#"{"time":"2026-01-01T00:00:00Z","object":"vm/a-1","reason":"GuestAccess","message":"exec","count":1,"type":"Normal"}"#;
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
}
