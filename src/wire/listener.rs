//! Accepts connections and serves each of them until it ends.
//! Out of scope: requests ([`super::server`]), permission ([`super::socket`]), limits ([`super::connections`]).

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

use super::admission::{Admission, Client};
use super::agents::Agents;
use super::backend::Backend;
use super::connections::{Connections, Registration};
use super::guarded::MonitoredStream;
use super::limits::{HEAD_LIMIT, Limits};
use super::server::router;
use super::shared::Shared;
use super::socket::{Listener, Peer};
use super::user::User;
use crate::api::view::Problem;
use crate::clock;

/// How long requests may continue after the stop, so that the daemon stops within 2 s.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a failed accept(2), which is due to a lack of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves until `stop` is cancelled; then streams end, and other requests have half a second to complete.
pub async fn serve<B: Backend>(
    listener: Listener,
    backend: B,
    stop: CancellationToken,
) -> io::Result<()> {
    serve_with_limits(listener, backend, stop, Limits::default()).await
}

/// The same as [`serve`] with other limits.
pub async fn serve_with_limits<B: Backend>(
    unix_listener: Listener,
    backend: B,
    stop: CancellationToken,
    limits: Limits,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        backend,
        agents: Arc::new(Agents::new(limits.agents)),
        stop: stop.clone(),
    });
    let connections = Arc::new(Connections::new(limits));
    let admission = Arc::new(Admission::new(limits, Arc::clone(&connections)));
    let app = router(Arc::clone(&shared), admission);
    let mut tasks = JoinSet::new();
    // An evicted connection holds its socket until its task has run: this bounds their number.
    let max_tasks = limits.connections + limits.connections / 8 + 1 + limits.agents;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = unix_listener.accept(), if tasks.len() < max_tasks => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(caller) = admit(&connections, &stream, peer) {
                    let (registration, caller) = caller;
                    tasks.spawn(serve_connection(
                        stream,
                        registration,
                        caller,
                        app.clone(),
                        stop.clone(),
                    ));
                }
            }
            Err(error) => {
                shared.backend.accept_failed(&error);
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    // Closes the listening socket, so that no client waits for an accept(2).
    drop(unix_listener);
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_TIMEOUT, all_ended).await;
    Ok(())
}

/// Admits the connection, or sends the peer a 503 response.
fn admit(
    connections: &Arc<Connections>,
    stream: &UnixStream,
    peer: Peer,
) -> Option<(Registration, Client)> {
    let user = match peer.is_privileged() {
        true => User::Privileged,
        false => User::Of(peer.uid),
    };
    match connections.admit(user, clock::monotonic()) {
        Ok(registration) => {
            let connection = Arc::clone(&registration.connection);
            let caller = Client {
                peer,
                user,
                connection,
            };
            Some((registration, caller))
        }
        Err(error) => {
            tracing::debug!(uid = peer.uid, %error, "refused a connection");
            let body = serde_json::to_string(&Problem {
                error: format!("sliced is busy: {error}"),
                problems: Vec::new(),
            });
            let body = body.unwrap_or_default();
            let response = format!(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            // Best effort: if the socket buffer is full, the peer receives no response.
            let _ = stream.try_write(response.as_bytes());
            None
        }
    }
}

/// Serves a connection until it ends.
async fn serve_connection(
    stream: UnixStream,
    place: Registration,
    caller: Client,
    app: Router,
    stop: CancellationToken,
) {
    let connection = Arc::clone(&place.connection);
    let stream = Arc::new(stream);
    let monitored = MonitoredStream::new(Arc::clone(&stream), Arc::clone(&connection));
    let io = TokioIo::new(monitored);
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        caller.connection.works();
        request.extensions_mut().insert(ConnectInfo(caller.clone()));
        TowerToHyperService::new(app.clone()).call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(io, service)
        .with_upgrades();
    tokio::pin!(serving);
    let mut is_stopping = false;
    loop {
        tokio::select! {
            result = &mut serving => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection closed with an error");
                }
                break;
            }
            () = connection.wait_for_close(&stream) => break,
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
    drop(place);
}
