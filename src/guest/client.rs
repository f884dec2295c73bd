//! Connects to the agent of a guest through the Unix socket of its vsock device, and sends a request.
//! Out of scope: which VM, which request.
//!
//! # How a connection is made
//! The VMM listens on a Unix socket. It expects `CONNECT PORT`, connects to that port in the guest, and sends `OK NUMBER`; then the
//! connection is that of the guest. It closes the connection if the guest refuses it: nothing listens on the port yet, or the backlog of
//! the listening socket is full (vsock(7) has no SYN queue). So a closed connection is tried again for a short time.
//!
//! All that is received is the guest's or its VMM's, and hostile: a line and a head are limited in size and time, the body is read only as
//! fast as its reader reads it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::early_response::EarlyResponse;
use super::endpoint::HeadTimeout;
use super::protocol::{HEAD_LIMIT, PORT};

/// How long the VMM and the guest may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum length of the line that confirms a connection, in bytes.
const OK_LIMIT: usize = 32;

/// The pauses before a refused connection is tried again: 2 s in total.
const PAUSES: [Duration; 9] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(400),
    Duration::from_millis(500),
    Duration::from_millis(500),
];

/// Why an agent has not answered. The messages contain no path of the host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM has no socket for vsock.
    #[error("the VM has no vsock device")]
    NoDevice,
    /// Each connection was refused.
    #[error("vsock port {PORT} refuses connections (tried {} times within 2 s): is slice-agent running in the guest?", PAUSES.len() + 1)]
    Refused,
    /// The VMM does not accept connections.
    #[error("cannot connect to its vsock device: {0}")]
    Connect(#[source] io::Error),
    /// The connection was not confirmed in time.
    #[error("vsock port {PORT} has not accepted a connection within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// The request was not answered in time.
    #[error("no response within {} s", .0.as_secs())]
    HeadTimeout(Duration),
    /// The response is invalid.
    #[error("invalid response: {0}")]
    Invalid(String),
}

/// The body of a response. Dropping it closes the connection.
pub struct AgentBody {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

/// A connection after an upgrade.
pub struct Upgraded {
    /// The connection.
    pub stream: UnixStream,
    /// What was received after the head of the response.
    pub received: Bytes,
}

/// Connects to the agent behind the socket of a vsock device.
///
/// # Errors
/// See [`Error`].
pub async fn connect(socket: &Path) -> Result<UnixStream, Error> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, try_connect(socket));
        let error = match attempt.await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => return Err(Error::ConnectTimeout),
        };
        let is_temporary = match &error {
            Error::Refused => true,
            // EAGAIN: the backlog of the socket is full (unix(7)). A VMM that starts or ends refuses connections.
            Error::Connect(cause) => matches!(
                cause.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused
            ),
            _ => false,
        };
        match pauses.next().filter(|_| is_temporary) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(error),
        }
    }
}

async fn try_connect(socket: &Path) -> Result<UnixStream, Error> {
    let mut stream = open(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::NoDevice,
        _ => Error::Connect(error),
    })?;
    let request = format!("CONNECT {PORT}\n");
    // A VMM that closes a connection may do so before it has read all (EPIPE, ECONNRESET).
    let sent = stream.write_all(request.as_bytes()).await;
    sent.map_err(|_| Error::Refused)?;
    let mut line = Vec::with_capacity(OK_LIMIT);
    loop {
        // Byte by byte: what follows the line belongs to the agent.
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if line.len() < OK_LIMIT => line.push(byte),
            Ok(_) => return Err(invalid("the confirmation of the connection is too long")),
            Err(_) => return Err(Error::Refused),
        }
    }
    let number = line.strip_prefix(b"OK ");
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    match number.is_some_and(is_number) {
        true => Ok(stream),
        false => Err(invalid("the connection was not confirmed with OK")),
    }
}

/// Connects to a socket with a path that may be longer than 107 bytes (unix(7)). Symbolic links, which the VMM may have created, are not followed.
async fn open(socket: &Path) -> io::Result<UnixStream> {
    let found = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(socket)?;
    if !found.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("it is not a socket"));
    }
    let path = Path::new("/proc/self/fd").join(found.as_raw_fd().to_string());
    UnixStream::connect(path).await
}

fn invalid(reason: impl ToString) -> Error {
    Error::Invalid(reason.to_string())
}

/// Sends a request on a connection of its own. The response is returned when its head is received; the body of the request may continue.
///
/// # Errors
/// See [`Error`]. A status that is no success is none.
pub async fn send<B>(
    socket: &Path,
    request: Request<B>,
    timeout: HeadTimeout,
) -> Result<Response<AgentBody>, Error>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = connect(socket).await?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(EarlyResponse::new(stream)))
        .await
        .map_err(invalid)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an agent closed with an error");
        }
    }));
    let (progress, progressed) = watch::channel(Turn::Agent);
    let request = request.map(|body| ObservedBody { body, progress });
    tokio::select! {
        response = sender.send_request(request) => match response {
            Ok(response) => Ok(response.map(|body| AgentBody { body, _connection: connection })),
            Err(error) => Err(invalid(causes(&error))),
        },
        limit = late(timeout, progressed) => Err(Error::HeadTimeout(limit)),
    }
}

/// The connection after a response with the status 101.
///
/// # Errors
/// The connection was closed.
pub async fn upgraded(mut response: Response<AgentBody>) -> Result<Upgraded, Error> {
    let upgrade = hyper::upgrade::on(&mut response);
    let upgraded = tokio::time::timeout(CONNECT_TIMEOUT, upgrade).await;
    let upgraded = upgraded.map_err(|_| Error::HeadTimeout(CONNECT_TIMEOUT))?;
    let parts = upgraded
        .map_err(invalid)?
        .downcast::<TokioIo<EarlyResponse<UnixStream>>>()
        .map_err(|_| invalid("the connection cannot be upgraded"))?;
    Ok(Upgraded {
        stream: parts.io.into_inner().into_inner(),
        received: parts.read_buf,
    })
}

/// The message with those of its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Returns when a response is late: its timeout.
async fn late(timeout: HeadTimeout, mut progress: watch::Receiver<Turn>) -> Duration {
    let limit = match timeout {
        HeadTimeout::AfterHead(limit) => {
            tokio::time::sleep(limit).await;
            return limit;
        }
        HeadTimeout::AfterBody(limit) => limit,
        HeadTimeout::Never => std::future::pending().await,
    };
    loop {
        // An error means that the body has ended.
        let _ = progress.wait_for(|turn| *turn == Turn::Agent).await;
        tokio::select! {
            () = tokio::time::sleep(limit) => return limit,
            Ok(()) = progress.changed() => {}
        }
    }
}

/// Which side a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The client, for more of the body.
    Client,
    /// The agent: to read the body, or to answer.
    Agent,
}

/// The body of a request; reports each part that is taken from it.
struct ObservedBody<B> {
    body: B,
    progress: watch::Sender<Turn>,
}

impl<B: Body + Unpin> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let result = Pin::new(&mut self.body).poll_frame(context);
        // Always, so that each part starts the timeout again.
        self.progress.send_replace(match result.is_pending() {
            true => Turn::Client,
            false => Turn::Agent,
        });
        result
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Body for AgentBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
