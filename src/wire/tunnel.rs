//! Forwards the bytes of a connection that was upgraded, until either side goes.
//! Out of scope: what the bytes mean.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::stream::SharedSocket;
use super::transport::Transport;

/// How long a client may take to receive the response that upgrades its connection.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent may take to read what a client has sent before it went.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The size of the buffer of a direction, in bytes. It exists only while there is data: a thousand idle connections have none.
const BUFFER: usize = 16 << 10;

/// The other side of a connection: an agent, or a node that forwards to one.
pub(super) struct Far<R, W> {
    /// What reads from it.
    pub(super) read: R,
    /// What writes to it.
    pub(super) write: W,
    /// What was received with the head of its response.
    pub(super) received: Bytes,
    /// A connection on a network: what it has received is lost if it is closed while this side has data that nobody has read. So its end
    /// is awaited for a short time.
    pub(super) lingers: bool,
}

/// Forwards until one side has gone and the other has what it sent, or until `stop`.
pub(super) async fn run<R, W>(client: OnUpgrade, agent: Far<R, W>, stop: CancellationToken)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Ok(Ok(client)) = tokio::time::timeout(UPGRADE_TIMEOUT, client).await else {
        return;
    };
    let Ok(client) = client.downcast::<TokioIo<Transport>>() else {
        tracing::error!("a connection of an unknown type was upgraded");
        return;
    };
    let transport = client.io.into_inner();
    let socket = transport.socket().clone();
    let early = client.read_buf;
    tokio::select! {
        () = stop.cancelled() => {}
        () = async {
            match transport {
                // Without a lock between the directions.
                Transport::Plain(_) => {
                    drop(transport);
                    let ends = (socket.clone(), socket.clone());
                    forward(&socket, ends, early, agent).await;
                }
                Transport::Tls(_) => {
                    forward(&socket, tokio::io::split(transport), early, agent).await;
                }
            }
        } => {}
    }
}

/// `ends`: what reads from the client, and what writes to it.
async fn forward<R, W>(
    socket: &SharedSocket,
    ends: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    early: Bytes,
    agent: Far<R, W>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = ends;
    let (mut from_agent, mut to_agent) = (agent.read, agent.write);
    let upload = async {
        {
            let sending = pump(&mut from_client, early, &mut to_agent);
            tokio::pin!(sending);
            tokio::select! {
                _ = &mut sending => {}
                () = socket.0.closed_by_peer() => {
                    let _ = tokio::time::timeout(DRAIN_TIMEOUT, sending).await;
                }
            }
        }
        if agent.lingers {
            let ended = async {
                let _ = to_agent.shutdown().await;
                std::future::pending::<()>().await;
            };
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, ended).await;
        }
    };
    let download = async {
        // A client that has gone ends the upload, which may have data of it.
        let sent = pump(&mut from_agent, agent.received, &mut to_client).await;
        if sent.is_err() {
            match agent.lingers {
                true => drop(tokio::io::copy(&mut from_agent, &mut tokio::io::sink()).await),
                false => std::future::pending::<()>().await,
            }
        }
        // The end of TLS, which a client distinguishes from a connection that was cut off.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, to_client.shutdown()).await;
    };
    tokio::select! {
        () = upload => {}
        () = download => {}
    }
}

/// Copies until the end of the input.
///
/// # Errors
/// The output cannot be written.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    first: Bytes,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    to.write_all(&first).await?;
    // TLS has a buffer of its own.
    to.flush().await?;
    drop(first);
    while let Ok(data) = receive(from).await {
        if data.is_empty() {
            break;
        }
        to.write_all(&data).await?;
        to.flush().await?;
    }
    Ok(())
}

/// What is there to read; empty at the end. There is no buffer while it waits.
async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    poll_fn(|context| {
        let mut buffer = Vec::with_capacity(BUFFER);
        ready!(poll_read_buf(Pin::new(&mut *from), context, &mut buffer))?;
        Poll::Ready(Ok(buffer))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    use super::super::stream::Socket;
    use super::*;

    /// The ends of a client and of an agent, with the task that forwards between them.
    fn connected(
        early: &'static [u8],
        received: &'static [u8],
    ) -> (UnixStream, UnixStream, tokio::task::JoinHandle<()>) {
        let (client, local) = UnixStream::pair().unwrap();
        let (agent, theirs) = UnixStream::pair().unwrap();
        let (read, write) = theirs.into_split();
        let upgraded = Far {
            read,
            write,
            received: Bytes::from_static(received),
            lingers: false,
        };
        let socket = SharedSocket(Arc::new(Socket::Unix(local)));
        let task = tokio::spawn(async move {
            let ends = (socket.clone(), socket.clone());
            forward(&socket, ends, Bytes::from_static(early), upgraded).await;
        });
        (client, agent, task)
    }

    #[tokio::test]
    async fn what_was_received_with_the_heads_comes_first_in_both_directions() {
        let (mut client, mut agent, _task) = connected(b"ear", b"hea");
        client.write_all(b"ly").await.unwrap();
        agent.write_all(b"d").await.unwrap();
        let mut buffer = [0; 5];
        agent.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"early");
        client.read_exact(&mut buffer[..4]).await.unwrap();
        assert_eq!(&buffer[..4], b"head");
    }

    #[tokio::test]
    async fn each_side_has_all_data_of_the_other_before_it_is_closed() {
        let data = vec![7; 1 << 20];
        let (mut client, mut agent, task) = connected(b"", b"");
        let sent = data.clone();
        tokio::spawn(async move { client.write_all(&sent).await });
        let mut received = Vec::new();
        agent.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, data);
        task.await.unwrap();
        let (mut client, mut agent, task) = connected(b"", b"");
        let sent = data.clone();
        tokio::spawn(async move { agent.write_all(&sent).await });
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, data);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_ends_the_connection_even_if_the_agent_reads_nothing() {
        let (mut client, agent, task) = connected(b"", b"");
        let endless = vec![7; 8 << 20];
        let sending = tokio::time::timeout(Duration::from_millis(100), client.write_all(&endless));
        assert!(sending.await.is_err(), "back-pressure");
        drop(client);
        tokio::time::timeout(2 * DRAIN_TIMEOUT, task)
            .await
            .unwrap()
            .unwrap();
        drop(agent);
    }
}
