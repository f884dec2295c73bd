//! Accepts connections and serves each of them until it ends.
//! Out of scope: requests ([`super::server`]), permission ([`super::socket`], [`super::auth`]), limits ([`super::connections`]).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Client};
use super::agents::Agents;
use super::auth::Auth;
use super::backend::Backend;
use super::connections::{Connection, Connections, Registration};
use super::guarded::MonitoredStream;
use super::limits::{HEAD_LIMIT, Limits};
use super::origin::Origin;
use super::peer::Peers;
use super::rates::Rates;
use super::server::router;
use super::shared::Shared;
use super::socket::Listener;
use super::stream::{SharedSocket, Socket};
use super::transport::Transport;
use super::ui::Page;
use crate::api::view::Problem;
use crate::clock;

/// How long requests may continue after the stop, so that the daemon stops within 2 s.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause after a failed accept(2), which is due to a lack of descriptors or memory.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The TLS handshakes of an address at once, and per second: each costs more than a request.
const HANDSHAKES: f64 = 512.0;
const HANDSHAKE_RATE: f64 = 100.0;

/// Where connections come from.
#[derive(Debug)]
pub enum Listening {
    /// A Unix socket.
    Unix(Listener),
    /// A TCP socket.
    Tcp(TcpListener),
}

impl Listening {
    /// Listens on an address.
    ///
    /// # Errors
    /// The errors of bind(2), for example EADDRINUSE.
    pub async fn on(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    async fn accept(&self) -> io::Result<(Socket, Origin)> {
        match self {
            Self::Unix(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::Unix(stream), Origin::Local(peer)))
            }
            Self::Tcp(listener) => loop {
                let (stream, address) = listener.accept().await?;
                // Fails only if the connection has ended.
                if let Ok(socket) = Socket::of_tcp(stream) {
                    return Ok((socket, Origin::Remote(address.ip().to_canonical())));
                }
            },
        }
    }
}

/// The requests to agents of all listeners.
#[derive(Clone, Debug)]
pub struct AgentRequests(Arc<Agents>);

impl AgentRequests {
    /// With the maximum number of these limits.
    pub fn new(limits: &Limits) -> Self {
        Self(Arc::new(Agents::new(limits.agents)))
    }
}

/// Serves the API on one listener.
pub struct Server<B> {
    shared: Arc<Shared<B>>,
    connections: Arc<Connections>,
    peers: Arc<Peers>,
    app: Router,
    handshakes: Rates,
    tasks: JoinSet<()>,
    max_tasks: usize,
    stop: CancellationToken,
}

impl<B: Backend> Server<B> {
    /// Serves until `stop` is cancelled.
    pub fn new(
        backend: Arc<B>,
        agents: &AgentRequests,
        auth: Auth,
        page: Page,
        limits: Limits,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            backend,
            agents: Arc::clone(&agents.0),
            stop: stop.clone(),
        });
        let connections = Arc::new(Connections::new(limits));
        let peers = Arc::new(Peers {
            fleet: shared.backend.fleet(),
            agents: Arc::clone(&agents.0),
            stop: stop.clone(),
        });
        let (known, others) = (Arc::clone(&connections), Arc::clone(&peers));
        let admission = Arc::new(Admission::new(limits, auth, page, known, others));
        Self {
            app: router(Arc::clone(&shared), admission),
            shared,
            connections,
            peers,
            handshakes: Rates::new(HANDSHAKES, HANDSHAKE_RATE),
            tasks: JoinSet::new(),
            // An evicted connection holds its socket until its task has run: this bounds their number.
            max_tasks: limits.connections + limits.connections / 8 + 1 + limits.agents,
            stop,
        }
    }

    /// Accepts connections and serves them, until the stop. No connection is lost if the future is dropped.
    pub async fn accept_all(&mut self, listening: &Listening, tls: Option<&Arc<ServerConfig>>) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                Some(_) = self.tasks.join_next() => continue,
                accepted = listening.accept(), if self.tasks.len() < self.max_tasks => accepted,
            };
            match accepted {
                Ok((socket, origin)) => self.accepted(socket, origin, tls),
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    self.shared.backend.accept_failed(&error);
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
        }
    }

    /// After the stop: streams end, and other requests have half a second to complete.
    pub async fn end(mut self) {
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, all_ended).await;
    }

    fn accepted(&mut self, socket: Socket, origin: Origin, tls: Option<&Arc<ServerConfig>>) {
        if tls.is_some()
            && !self
                .handshakes
                .permits(origin.address(), clock::monotonic())
        {
            return;
        }
        let is_tls = tls.is_some();
        if let Some((registration, caller)) = admit(&self.connections, &socket, origin, is_tls) {
            let serving = serve_connection(
                SharedSocket(Arc::new(socket)),
                registration,
                caller,
                tls.map(|config| TlsAcceptor::from(Arc::clone(config))),
                Arc::clone(&self.peers),
                self.app.clone(),
                self.stop.clone(),
            );
            self.tasks.spawn(serving);
        }
    }
}

/// Whether an error of `accept` is that of a connection, which has ended before it was accepted (accept(2), ERRORS).
pub fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// Serves the daemon's own socket until `stop` is cancelled; then streams end, and other requests have half a second to complete.
pub async fn serve<B: Backend>(
    listener: Listener,
    backend: B,
    agents: AgentRequests,
    stop: CancellationToken,
    limits: Limits,
) {
    let (backend, auth) = (Arc::new(backend), Auth::none());
    let mut server = Server::new(backend, &agents, auth, Page::Off, limits, stop);
    let listening = Listening::Unix(listener);
    server.accept_all(&listening, None).await;
    // Closes the listening socket, so that no client waits for an accept(2).
    drop(listening);
    server.end().await;
}

/// Admits the connection, or sends the peer a 503 response.
fn admit(
    connections: &Arc<Connections>,
    socket: &Socket,
    origin: Origin,
    is_tls: bool,
) -> Option<(Registration, Client)> {
    let user = origin.user();
    match connections.admit(user, clock::monotonic()) {
        Ok(registration) => {
            let connection = Arc::clone(&registration.connection);
            let caller = Client {
                origin,
                user,
                connection,
                peer: None,
            };
            Some((registration, caller))
        }
        Err(error) => {
            tracing::debug!(client = %origin, %error, "refused a connection");
            let body = serde_json::to_string(&Problem {
                error: format!("sliced is busy: {error}"),
                problems: Vec::new(),
            });
            let body = body.unwrap_or_default();
            let response = format!(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            // Best effort: if the socket buffer is full, the peer receives no response. A handshake would cost more than it is worth.
            if !is_tls {
                let _ = socket.try_write(response.as_bytes());
            }
            None
        }
    }
}

/// Serves a connection until it ends.
async fn serve_connection(
    socket: SharedSocket,
    place: Registration,
    mut caller: Client,
    tls: Option<TlsAcceptor>,
    peers: Arc<Peers>,
    app: Router,
    stop: CancellationToken,
) {
    let connection = Arc::clone(&place.connection);
    let Some(transport) = transport(&socket, &connection, tls, &stop).await else {
        return;
    };
    caller.peer = match peers.accepted(transport.certificates()) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(client = %caller.origin, %error, "refused a connection of a node");
            return;
        }
    };
    if caller.peer.is_some() {
        connection.authenticated();
    }
    // Of a node, also when its certificate is revoked.
    let revoked = caller.stop(&stop);
    let io = TokioIo::new(transport);
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
            () = connection.wait_for_close(&socket.0) => break,
            () = revoked.cancelled(), if !is_stopping => {
                if !stop.is_cancelled() {
                    break;
                }
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
    drop(place);
}

/// The connection, after the handshake of TLS if there is one. The handshake has the deadline of the first request's head.
async fn transport(
    socket: &SharedSocket,
    connection: &Arc<Connection>,
    tls: Option<TlsAcceptor>,
    stop: &CancellationToken,
) -> Option<Transport> {
    let stream = MonitoredStream::new(socket.clone(), Arc::clone(connection));
    let Some(acceptor) = tls else {
        return Some(Transport::Plain(stream));
    };
    tokio::select! {
        accepted = acceptor.accept(stream) => match accepted {
            Ok(stream) => Some(Transport::Tls(Box::new(stream))),
            Err(error) => {
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
        },
        () = connection.wait_for_close(&socket.0) => None,
        () = stop.cancelled() => None,
    }
}
