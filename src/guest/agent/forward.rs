//! `/forward`: a connection in the guest; its bytes are binary messages of a WebSocket.
//! Out of scope: listening, which the client does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::BytesMut;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::error::{Error, reason};
use super::hosts;
use super::socket::Connection;
use super::state::Agent;
use super::websocket::{Upgrade, accept, close};
use crate::guest::protocol::{HALF_CLOSE, UPSTREAM};

/// The time to connect.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The maximum size of a message, in bytes.
const READ: usize = 16 << 10;

/// The time for data of a client that has left to be written.
const HANGUP_TIME: Duration = Duration::from_secs(10);

/// The route.
pub fn router() -> Router<Arc<Agent>> {
    Router::new().route("/forward", get(forward))
}

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Upstream {
    Tcp { host: String, port: u16 },
    Unix(String),
}

impl Upstream {
    fn parse(text: &str) -> Result<Self, Error> {
        let invalid = || {
            let text = format!("invalid {UPSTREAM} \"{text}\": expected HOST:PORT or unix:/PATH");
            Error::bad_request(text)
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let is_absolute = path.starts_with('/');
            return is_absolute
                .then(|| Self::Unix(path.to_owned()))
                .ok_or_else(invalid);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let literal = host.strip_prefix('[').map(|rest| rest.strip_suffix(']'));
        let host = match literal {
            Some(literal) => literal.ok_or_else(invalid)?,
            None if host.contains(':') => return Err(invalid()),
            None => host,
        };
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(invalid)?;
        if host.is_empty() {
            return Err(invalid());
        }
        let host = host.to_owned();
        Ok(Self::Tcp { host, port })
    }

    async fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => {
                let (read, write) = UnixStream::connect(path).await?.into_split();
                Ok(Stream::new(read, write))
            }
            Self::Tcp { host, port } => {
                let name = host.clone();
                let addresses = tokio::task::spawn_blocking(move || hosts::resolve(&name));
                let mut last = io::Error::other("the name is not in /etc/hosts");
                for address in addresses.await.map_err(io::Error::other)? {
                    match TcpStream::connect(SocketAddr::new(address, *port)).await {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            let (read, write) = stream.into_split();
                            return Ok(Stream::new(read, write));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

/// A connection of any family, or the pipes of a process.
pub struct Stream {
    read: Box<dyn AsyncRead + Send + Unpin>,
    write: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Stream {
    /// Both directions.
    pub fn new(
        read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let (read, write) = (Box::new(read), Box::new(write));
        Self { read, write }
    }
}

async fn forward(
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, Error> {
    let upgrade = accept(upgrade)?;
    let header = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
    };
    let Some(text) = header(UPSTREAM) else {
        return Err(Error::bad_request(format!("header {UPSTREAM} is required")));
    };
    let half_close = header(HALF_CLOSE).is_some_and(|value| value == "true");
    let failed =
        |why: &str| Error::new(StatusCode::BAD_GATEWAY, format!("connect to {text}: {why}"));
    // Before the upgrade: afterwards there is no response for an error.
    let stream = match timeout(CONNECT_TIME, Upstream::parse(&text)?.connect()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(&reason(&error))),
        Err(_) => return Err(failed("no answer within 5 s")),
    };
    Ok(upgrade.on_upgrade(move |socket| copy(socket, stream, half_close, connection)))
}

/// Copies until both directions have ended, or the client has left.
pub async fn copy(socket: WebSocket, stream: Stream, half_close: bool, connection: Connection) {
    let (mut sink, mut source) = socket.split();
    let (ended, client_ended) = oneshot::channel();
    let result = tokio::select! {
        result = from_upstream(stream.read, &mut sink, half_close.then_some(client_ended)) => result,
        () = to_upstream(&mut source, stream.write, half_close.then_some(ended)) => Ok(()),
        () = async { connection.hangup().await; sleep(HANGUP_TIME).await } => Ok(()),
    };
    let error = result.err().map(|error| reason(&error));
    close(sink, source, error.as_deref()).await;
}

/// Copies until the end of the connection; with half-close, until the client has ended its direction, too.
async fn from_upstream(
    mut read: Box<dyn AsyncRead + Send + Unpin>,
    sink: &mut SplitSink<WebSocket, Message>,
    client_ended: Option<oneshot::Receiver<()>>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let length = read.read_buf(&mut buffer).await?;
        // An empty message is the end of the data for a client that knows of half-close.
        if length == 0 && client_ended.is_none() {
            return Ok(());
        }
        let message = Message::Binary(buffer.split().freeze());
        if sink.send(message).await.is_err() {
            return Ok(());
        }
        if length == 0 {
            break;
        }
    }
    if let Some(client_ended) = client_ended {
        // An error cannot occur while the other direction is copied.
        let _ = client_ended.await;
    }
    Ok(())
}

/// Copies until the client closes the WebSocket.
async fn to_upstream(
    source: &mut SplitStream<WebSocket>,
    mut write: Box<dyn AsyncWrite + Send + Unpin>,
    mut ended: Option<oneshot::Sender<()>>,
) {
    let half_close = ended.is_some();
    let mut open = true;
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(data) if data.is_empty() && half_close => {
                let _ = write.shutdown().await;
                open = false;
                if let Some(ended) = ended.take() {
                    let _ = ended.send(());
                }
            }
            // After an error, the rest is discarded: the other direction may still have data, and reports the end.
            Message::Binary(data) if open => open = write.write_all(&data).await.is_ok(),
            Message::Close(_) => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_a_host_with_a_port_or_a_path() {
        let tcp = |host: &str, port| {
            Some(Upstream::Tcp {
                host: host.to_owned(),
                port,
            })
        };
        for (text, expected) in [
            ("127.0.0.1:80", tcp("127.0.0.1", 80)),
            ("[::1]:80", tcp("::1", 80)),
            ("localhost:65535", tcp("localhost", 65535)),
            (
                "unix:/run/x.sock",
                Some(Upstream::Unix("/run/x.sock".to_owned())),
            ),
            ("unix:x", None),
            ("unix:", None),
            ("::1:80", None),
            ("[::1:80", None),
            ("localhost", None),
            (":80", None),
            ("a:0", None),
            ("a:65536", None),
            ("a:", None),
            ("", None),
        ] {
            assert_eq!(Upstream::parse(text).ok(), expected, "{text}");
        }
    }
}
