//! One forwarded connection: bytes on the host, messages to the agent.
//! Out of scope: accepting it, opening that of the guest.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::Message;

use crate::wire::AgentSocket;

/// The maximum size of a message that is sent, in bytes.
const PART: usize = 16 << 10;

/// How long the agent may take to confirm the end of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection on the host.
pub(super) enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why a direction has ended before the end of its data.
enum End {
    /// The agent has closed the connection.
    Closed,
    /// The connection on the host, or that to the agent, has failed.
    Failed(io::Error),
}

impl Connection {
    /// Forwards until both directions have ended, or the connection is closed.
    ///
    /// # Errors
    /// The connection to the agent has failed.
    pub(super) async fn join(self, socket: AgentSocket) -> io::Result<()> {
        match self {
            Self::Tcp(mut stream) => {
                let (reader, writer) = stream.split();
                join(reader, writer, socket).await
            }
            Self::Unix(mut stream) => {
                let (reader, writer) = stream.split();
                join(reader, writer, socket).await
            }
        }
    }
}

async fn join(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    socket: AgentSocket,
) -> io::Result<()> {
    let (mut sink, mut messages) = socket.split();
    let failed = |error: io::Error| End::Failed(error);
    let upload = async {
        loop {
            let mut part = BytesMut::with_capacity(PART);
            // A reset of the host's side ends the connection.
            let count = reader.read_buf(&mut part).await.map_err(failed)?;
            let sent = sink.send(Message::Binary(part.freeze())).await;
            sent.map_err(|error| failed(io::Error::other(error)))?;
            if count == 0 {
                // An empty message: the end of this direction.
                return Ok(());
            }
        }
    };
    let download = async {
        loop {
            match messages.next().await {
                Some(Ok(Message::Binary(part))) if part.is_empty() => {
                    return writer.shutdown().await.map_err(failed);
                }
                Some(Ok(Message::Binary(part))) => {
                    writer.write_all(&part).await.map_err(failed)?;
                }
                Some(Ok(Message::Close(_))) | None => return Err(End::Closed),
                // tungstenite answers pings.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(failed(io::Error::other(error))),
            }
        }
    };
    let result = tokio::try_join!(upload, download);
    let close = async {
        let _ = sink.send(Message::Close(None)).await;
        while let Some(Ok(_)) = messages.next().await {}
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
    match result {
        Ok(((), ())) | Err(End::Closed) => Ok(()),
        // The program on the host has gone: it knows why.
        Err(End::Failed(error)) if is_gone(&error) => Ok(()),
        Err(End::Failed(error)) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}
