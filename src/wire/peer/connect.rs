//! Connections to the APIs of other nodes: TCP, mutual TLS, HTTP/1.1; one request each.
//! Out of scope: the requests.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Response, header::HeaderValue};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::failure::Failure;
use super::registry::PeerConnection;
use super::tls::{Role, SERVER_NAME};
use super::verifier::NotTheNode;
use super::{Fleet, Place};
use crate::guest::early_response::EarlyResponse;
use crate::wire::endpoint::Url;
use crate::wire::limits::HEAD_LIMIT;
use crate::wire::tunnel::Far;

/// How long a node may take to accept a connection, with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to be upgraded after the response.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that has vanished without a word is noticed after 10 + 3 × 5 s, also while nothing is sent.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long data may be unconfirmed by the host of the node (tcp(7), `TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Duration = Duration::from_secs(25);

type Stream = EarlyResponse<TlsStream<TcpStream>>;

/// A connection, which is closed when this is dropped.
pub(super) struct Connection<B> {
    pub(super) sender: SendRequest<B>,
    pub(super) host: HeaderValue,
    pub(super) link: Link,
}

/// Keeps a connection open.
pub(super) struct Link {
    pub(super) peer: Arc<PeerConnection>,
    _task: AbortOnDropHandle<()>,
}

/// Connects to a node.
///
/// # Errors
/// See [`Failure`].
pub(super) async fn connect<B>(
    fleet: &dyn Fleet,
    place: &Place,
    stop: &CancellationToken,
) -> Result<Connection<B>, Failure>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let url = place.url.as_deref().ok_or(Failure::NoApi)?;
    let url: Url = url.parse().map_err(|_| Failure::InvalidUrl)?;
    let Url::Tcp {
        host,
        port,
        is_tls: true,
    } = &url
    else {
        return Err(Failure::InvalidUrl);
    };
    let connecting = handshake(fleet, &place.node, (host.as_str(), *port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    let stream = stream.map_err(|_| Failure::ConnectTimeout(CONNECT_TIMEOUT))??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = fleet
        .connections()
        .register(chain, Role::Server, stop, || fleet.tls());
    let peer = peer.map_err(|why| Failure::NotTheNode(NotTheNode::Refused(why)))?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(EarlyResponse::new(stream)))
        .await?;
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node closed with an error");
        }
    }));
    let host = HeaderValue::try_from(url.authority()).map_err(|_| Failure::InvalidUrl)?;
    let link = Link { peer, _task: task };
    Ok(Connection { sender, host, link })
}

async fn handshake(
    fleet: &dyn Fleet,
    node: &crate::api::meta::Name,
    address: (&str, u16),
) -> Result<TlsStream<TcpStream>, Failure> {
    let tls = fleet.tls().ok_or(Failure::NoCertificates)?;
    let config = tls.client_config(node);
    let config = config.map_err(|error| Failure::OwnCertificates(error.to_string()))?;
    let name = ServerName::try_from(format!("{node}{SERVER_NAME}"));
    let name = name.map_err(|_| Failure::InvalidUrl)?;
    let stream = TcpStream::connect(address).await?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let options = SockRef::from(&stream);
    options.set_tcp_keepalive(&keepalive)?;
    options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(TlsConnector::from(config).connect(name, stream).await?)
}

/// The connection after a response with the status 101.
///
/// # Errors
/// The connection was closed.
pub(super) async fn upgraded(
    mut response: Response<Incoming>,
) -> Result<Far<ReadHalf<TlsStream<TcpStream>>, WriteHalf<TlsStream<TcpStream>>>, Failure> {
    let upgrade = hyper::upgrade::on(&mut response);
    let upgraded = tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await;
    let upgraded = upgraded.map_err(|_| Failure::NoUpgrade)??;
    let parts = upgraded.downcast::<TokioIo<Stream>>();
    let parts = parts.map_err(|_| Failure::NoUpgrade)?;
    let (read, write) = tokio::io::split(parts.io.into_inner().into_inner());
    Ok(Far {
        read,
        write,
        received: parts.read_buf,
        lingers: true,
    })
}

/// The body of a response. Dropping it closes the connection.
pub(super) struct PeerBody {
    body: Incoming,
    /// How long it may send nothing while it is read.
    idle: Option<Duration>,
    /// When that time ends.
    end: Option<Pin<Box<Sleep>>>,
    _link: Link,
}

impl PeerBody {
    /// `idle`: how long it may send nothing; `None`: as long as both sides are connected.
    pub(super) fn new(body: Incoming, idle: Option<Duration>, link: Link) -> Self {
        Self {
            body,
            idle,
            end: None,
            _link: link,
        }
    }
}

impl Body for PeerBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_ready() {
            self.end = None;
            return frame.map_err(Into::into);
        }
        let Some(limit) = self.idle else {
            return Poll::Pending;
        };
        let end = self
            .end
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match end.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err("the node sends nothing".into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
