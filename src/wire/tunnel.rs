//! Forwards the bytes of a connection that was upgraded, until either side goes.
//! Out of scope: what the bytes mean.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::guarded::MonitoredStream;
use super::hangup::closed_by_peer;
use crate::guest::client::Upgraded;

/// How long a client may take to receive the response that upgrades its connection.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent may take to read what a client has sent before it went.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The size of the buffer of a direction, in bytes. It exists only while there is data: a thousand idle connections have none.
const BUFFER: usize = 16 << 10;

/// Forwards until one side has gone and the other has what it sent, or until `stop`.
pub(super) async fn run(client: OnUpgrade, agent: Upgraded, stop: CancellationToken) {
    let Ok(Ok(client)) = tokio::time::timeout(UPGRADE_TIMEOUT, client).await else {
        return;
    };
    let Ok(client) = client.downcast::<TokioIo<MonitoredStream>>() else {
        tracing::error!("a connection of an unknown type was upgraded");
        return;
    };
    let socket = client.io.into_inner().into_socket();
    tokio::select! {
        () = stop.cancelled() => {}
        () = forward(socket, client.read_buf, agent) => {}
    }
}

async fn forward(client: Arc<UnixStream>, early: Bytes, agent: Upgraded) {
    let upload = async {
        let sending = pump(&client, early, &agent.stream);
        tokio::pin!(sending);
        tokio::select! {
            _ = &mut sending => {}
            () = closed_by_peer(&client) => {
                let _ = tokio::time::timeout(DRAIN_TIMEOUT, sending).await;
            }
        }
    };
    let download = async {
        // A client that has gone ends the upload, which may have data of it.
        if pump(&agent.stream, agent.received, &client).await.is_err() {
            std::future::pending::<()>().await;
        }
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
async fn pump(from: &UnixStream, first: Bytes, to: &UnixStream) -> io::Result<()> {
    write_all(to, &first).await?;
    drop(first);
    while from.readable().await.is_ok() {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            match from.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => write_all(to, &buffer).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Ok(()),
            }
            buffer.clear();
        }
    }
    Ok(())
}

async fn write_all(to: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// The ends of a client and of an agent, with the task that forwards between them.
    fn connected(
        early: &'static [u8],
        received: &'static [u8],
    ) -> (UnixStream, UnixStream, tokio::task::JoinHandle<()>) {
        let (client, local) = UnixStream::pair().unwrap();
        let (agent, theirs) = UnixStream::pair().unwrap();
        let upgraded = Upgraded {
            stream: theirs,
            received: Bytes::from_static(received),
        };
        let task = tokio::spawn(forward(
            Arc::new(local),
            Bytes::from_static(early),
            upgraded,
        ));
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
