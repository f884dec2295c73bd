//! `/shell`: a program on a terminal; its input and output are messages of a WebSocket.
//! Out of scope: the terminal of the client.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::time::sleep;

use super::child::Streams;
use super::error::{Error, query};
use super::output::{AFTER_EXIT, AFTER_EXIT_LIMIT};
use super::process::{Ending, Process, Scope, Spawned, start};
use super::pty::Terminal;
use super::socket::Connection;
use super::spec::Spec;
use super::state::Agent;
use super::websocket::{Upgrade, accept, close};
use crate::guest::protocol::ShellQuery;
use crate::guest::shell_frame::{DATA_LIMIT, ShellFrame};

/// The time for input of a client that has left to be read by the program.
const HANGUP_TIME: Duration = Duration::from_secs(1);

/// The route.
pub fn router() -> Router<Arc<Agent>> {
    Router::new().route("/shell", get(shell))
}

async fn shell(
    Extension(connection): Extension<Connection>,
    uri: Uri,
    upgrade: Upgrade,
) -> Result<Response, Error> {
    let upgrade = accept(upgrade)?;
    let query: ShellQuery = query(&uri)?;
    let spec = Spec::of_shell(&query)?;
    let (columns, rows) = (query.columns.unwrap_or(80), query.rows.unwrap_or(24));
    let (terminal, slave) =
        Terminal::open(columns, rows).map_err(|error| Error::system("open a terminal", &error))?;
    // Before the upgrade: afterwards there is no response for an error.
    let spawned = start(spec, Streams::Terminal(slave), Scope::Session).await?;
    Ok(upgrade.on_upgrade(move |socket| session(socket, terminal, spawned, connection)))
}

async fn session(socket: WebSocket, terminal: Terminal, spawned: Spawned, connection: Connection) {
    let (mut sink, mut source) = socket.split();
    let ending = tokio::select! {
        ending = output(&terminal, &mut sink, &spawned.process) => ending,
        () = input(&terminal, &mut source) => None,
        // `input` does not see this while the program does not read.
        () = async { connection.hangup().await; sleep(HANGUP_TIME).await } => None,
    };
    // Terminates the session if it runs.
    drop(spawned.abandoned);
    if let Some(ending) = ending {
        for frame in [ShellFrame::ExitStatus(ending.exit_code), ShellFrame::Close] {
            if sink.send(Message::Binary(frame.encode())).await.is_err() {
                return;
            }
        }
    }
    close(sink, source, None).await;
}

/// Sends output until the program has ended; `None`: the client has left.
async fn output(
    terminal: &Terminal,
    sink: &mut SplitSink<WebSocket, Message>,
    process: &Process,
) -> Option<Ending> {
    let after_exit = async {
        process.ended().await;
        sleep(AFTER_EXIT).await;
    };
    tokio::pin!(after_exit);
    let mut rest = AFTER_EXIT_LIMIT;
    let mut buffer = vec![0; DATA_LIMIT];
    while rest > 0 {
        let length = tokio::select! {
            biased;
            read = terminal.read(&mut buffer) => read.unwrap_or(0),
            // Other processes of the session have the terminal open.
            () = &mut after_exit => 0,
        };
        if length == 0 {
            break;
        }
        if process.ending().is_some() {
            rest = rest.saturating_sub(length);
        }
        let data = ShellFrame::Data(Bytes::copy_from_slice(&buffer[..length]));
        sink.send(Message::Binary(data.encode())).await.ok()?;
    }
    Some(process.ended().await)
}

/// Passes on input until the client leaves.
async fn input(terminal: &Terminal, source: &mut SplitStream<WebSocket>) {
    while let Some(Ok(message)) = source.next().await {
        let frame = match message {
            Message::Binary(bytes) => ShellFrame::decode(&bytes),
            Message::Close(_) => return,
            _ => None,
        };
        match frame {
            // Input that no process can read is discarded.
            Some(ShellFrame::Data(data)) => drop(terminal.write(&data).await),
            Some(ShellFrame::Window { columns, rows }) => terminal.resize(columns, rows),
            Some(ShellFrame::Shutdown | ShellFrame::Close) => return,
            Some(ShellFrame::Heartbeat | ShellFrame::ExitStatus(_)) | None => {}
        }
    }
}
