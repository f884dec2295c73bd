//! HTTP connections to an endpoint. Connections that are idle are used again.
//! Out of scope: which endpoint ([`super::endpoints`]), what the answers mean ([`super::answer`]).

use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinHandle};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, ClientConfig, Error as TlsError};

use super::error::{Cause, Malformed};
use super::message::Request;
use super::url::Url;
use crate::clock;

/// How many idle connections an endpoint keeps, and how long.
const MAX_IDLE: usize = 8;
const MAX_IDLE_TIME: Duration = Duration::from_secs(30);

/// A peer that is gone without a word is noticed after 5 + 3 × 2 s, also by a watch, which sends nothing.
const KEEPALIVE_TIME: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;

/// How long a connection that accepts no request may take to end.
const END_TIME: Duration = Duration::from_millis(100);

/// A token of etcd.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(HeaderValue);

impl Token {
    /// A token of an answer.
    ///
    /// # Errors
    /// It cannot be the value of a header.
    pub(super) fn new(text: &str) -> Result<Self, Malformed> {
        let value = HeaderValue::from_str(text);
        let mut value = value.map_err(|_| Malformed::Field("token"))?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

/// Sends requests on one connection.
pub(super) struct Sender {
    requests: SendRequest<Full<Bytes>>,
    /// Ends with the connection, and knows why.
    connection: JoinHandle<Result<(), hyper::Error>>,
}

/// An endpoint with its idle connections.
pub(super) struct Endpoint {
    pub(super) url: Url,
    tls: Option<Arc<ClientConfig>>,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

/// A connection on which a request was answered.
pub(super) struct Exchange {
    pub(super) response: Response<Incoming>,
    sender: Sender,
}

/// Why there is no response.
#[derive(Debug)]
pub(super) enum SendError {
    /// The request was not sent, or was not accepted because of the certificate.
    NotSent(Cause),
    /// The request was sent.
    Lost(Cause),
}

impl SendError {
    /// A request that ends because the certificate is refused was not processed.
    fn checked(self) -> Self {
        match self {
            Self::Lost(cause @ Cause::Tls(_)) => Self::NotSent(cause),
            error => error,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Endpoint {
    pub(super) fn new(url: Url, tls: Option<Arc<ClientConfig>>) -> Self {
        Self {
            tls: tls.filter(|_| url.is_tls()),
            url,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// A connection that can be used now, idle or new.
    pub(super) async fn sender(&self) -> Result<Sender, Cause> {
        while let Some(mut sender) = self.take_idle() {
            if sender.requests.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        self.connect().await
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        let now = clock::monotonic();
        idle.retain(|(sender, since)| {
            !sender.requests.is_closed() && now.saturating_duration_since(*since) < MAX_IDLE_TIME
        });
        idle.pop().map(|(sender, _)| sender)
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((sender, clock::monotonic()));
        }
    }

    /// Connects.
    async fn connect(&self) -> Result<Sender, Cause> {
        let address = (self.url.host(), self.url.port());
        let stream = TcpStream::connect(address).await.map_err(Cause::Connect)?;
        prepare(&stream).map_err(Cause::Connect)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(self.url.host().to_owned());
                let name = name.map_err(|error| Cause::Connect(io::Error::other(error)))?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, stream).await.map_err(of_tls)?)
            }
        };
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(of_http)?;
        // Ends when the sender and the body of the last response are dropped.
        Ok(Sender {
            requests,
            connection: tokio::spawn(connection),
        })
    }

    /// Sends a request; returns when the head of the response is received.
    pub(super) async fn send(
        &self,
        mut sender: Sender,
        request: Request,
        token: Option<&Token>,
        body: Bytes,
    ) -> Result<Exchange, SendError> {
        let malformed = |_| SendError::NotSent(Cause::Malformed(Malformed::Field("request")));
        let mut message = hyper::Request::post(request.path())
            .header(HOST, self.url.authority())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(malformed)?;
        let headers = message.headers_mut();
        if let Some(Token(token)) = token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        // A member without leader fails a read at once, and ends a watch, which would be silent otherwise. Not a write: of that, it
        // could be after the proposal.
        if !request.is_write() {
            let name = "grpc-metadata-hasleader";
            headers.insert(name, HeaderValue::from_static("true"));
        }
        let mut sending = pin!(sender.requests.try_send_request(message));
        let (result, ended) = tokio::select! {
            biased;
            result = &mut sending => (Some(result), None),
            // A request that is queued while the connection ends is never answered, as long as there is a sender.
            ended = &mut sender.connection => (sending.now_or_never(), Some(ended)),
        };
        let mut error = match result {
            Some(Ok(response)) => return Ok(Exchange { response, sender }),
            Some(Err(error)) => error,
            None => return Err(SendError::Lost(of_end(ended).unwrap_or(Cause::Ended)).checked()),
        };
        let is_sent = error.take_message().is_none();
        let cause = of_http(error.into_error());
        if is_sent {
            return Err(SendError::Lost(cause).checked());
        }
        // Only the connection knows why.
        let ended = match ended {
            None => tokio::time::timeout(END_TIME, &mut sender.connection)
                .await
                .ok(),
            ended => ended,
        };
        Err(SendError::NotSent(of_end(ended).unwrap_or(cause)))
    }

    /// Reads the whole body, of at most `limit` bytes; the connection can then be used again.
    pub(super) async fn read(
        &self,
        exchange: Exchange,
        limit: usize,
    ) -> Result<(StatusCode, Vec<u8>), Cause> {
        let Exchange { response, sender } = exchange;
        let status = response.status();
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(of_http)?;
            let Some(chunk) = frame.data_ref() else {
                continue;
            };
            if bytes.len() + chunk.len() > limit {
                return Err(Malformed::TooLong(limit).into());
            }
            bytes.extend_from_slice(chunk);
        }
        self.keep(sender);
        Ok((status, bytes))
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// The error of a handshake.
fn of_tls(error: io::Error) -> Cause {
    match tls_error(&error) {
        Some(error) => Cause::Tls(error.clone()),
        None => Cause::Connect(error),
    }
}

/// The error of a connection. With TLS 1.3 a client learns that its certificate is not accepted when it reads its first response.
pub(super) fn of_http(error: hyper::Error) -> Cause {
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        let io = inner.downcast_ref::<io::Error>();
        match io.and_then(tls_error) {
            Some(error) if is_refusal(error) => return Cause::Tls(error.clone()),
            _ => source = inner.source(),
        }
    }
    Cause::Closed(error)
}

/// Why a connection has ended; `None` if it was closed without an error.
fn of_end(ended: Option<Result<Result<(), hyper::Error>, JoinError>>) -> Option<Cause> {
    ended?.ok()?.err().map(of_http)
}

fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// Alerts that a server sends before it has accepted the certificate: it has not read the request.
fn is_refusal(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::AlertReceived(
            AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRequired
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::HandshakeFailure
        )
    )
}
