//! Accepts connections and serves each of them until it ends.
//! Out of scope: requests ([`super::server`]), permission ([`super::door`]), limits ([`super::connections`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::admission::{Caller, Room};
use super::backend::Backend;
use super::connections::{Connections, Place, User};
use super::door::{Door, Peer};
use super::guarded::Guarded;
use super::limits::{HEAD_LIMIT, Limits};
use super::server::{Shared, router};
use crate::api::view::Problem;
use crate::clock;

/// How long requests may continue after the stop, so that the daemon stops within 2 s.
const GRACE: Duration = Duration::from_millis(500);
/// Pause after a failed accept(2), which is due to a lack of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled; then streams end, and other requests have half a second to complete.
pub async fn serve<B: Backend>(door: Door, backend: B, stop: CancellationToken) -> io::Result<()> {
    serve_within(door, backend, stop, Limits::default()).await
}

/// The same as [`serve`] with other limits.
pub async fn serve_within<B: Backend>(
    door: Door,
    backend: B,
    stop: CancellationToken,
    limits: Limits,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        backend,
        stop: stop.clone(),
    });
    let connections = Arc::new(Connections::new(limits));
    let room = Arc::new(Room::new(limits, Arc::clone(&connections)));
    let app = router(Arc::clone(&shared), room);
    let mut tasks = JoinSet::new();
    // An evicted connection holds its socket until its task has run: this bounds their number.
    let most = limits.connections + limits.connections / 8 + 1;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = door.accept(), if tasks.len() < most => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(caller) = take_in(&connections, &stream, peer) {
                    let (place, caller) = caller;
                    tasks.spawn(talk(stream, place, caller, app.clone(), stop.clone()));
                }
            }
            Err(error) => {
                shared.backend.exhausted(&error);
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
            }
        }
    }
    // Closes the listening socket, so that no client waits for an accept(2).
    drop(door);
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, ended).await;
    Ok(())
}

/// Admits the connection, or sends the peer a 503 response.
fn take_in(
    connections: &Arc<Connections>,
    stream: &UnixStream,
    peer: Peer,
) -> Option<(Place, Caller)> {
    let user = match peer.is_privileged() {
        true => User::Privileged,
        false => User::Of(peer.uid),
    };
    match connections.admit(user, clock::monotonic()) {
        Ok(place) => {
            let connection = Arc::clone(&place.connection);
            let caller = Caller {
                peer,
                user,
                connection,
            };
            Some((place, caller))
        }
        Err(error) => {
            tracing::debug!(uid = peer.uid, %error, "refused a connection");
            let body = serde_json::to_string(&Problem {
                error: format!("sliced is busy: {error}"),
                problems: Vec::new(),
            });
            let body = body.unwrap_or_default();
            let answer = format!(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            // Best effort: if the socket buffer is full, the peer receives no response.
            let _ = stream.try_write(answer.as_bytes());
            None
        }
    }
}

/// Serves a connection until it ends.
async fn talk(
    stream: UnixStream,
    place: Place,
    caller: Caller,
    app: Router,
    stop: CancellationToken,
) {
    let connection = Arc::clone(&place.connection);
    let io = TokioIo::new(Guarded::new(stream, Arc::clone(&connection)));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        caller.connection.works();
        request.extensions_mut().insert(ConnectInfo(caller.clone()));
        TowerToHyperService::new(app.clone()).call(request)
    });
    let talking = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(io, service);
    tokio::pin!(talking);
    let mut stopping = false;
    loop {
        tokio::select! {
            talked = &mut talking => {
                if let Err(error) = talked {
                    tracing::debug!(%error, "connection closed with an error");
                }
                break;
            }
            () = connection.must_close() => break,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                talking.as_mut().graceful_shutdown();
            }
        }
    }
    drop(place);
}
