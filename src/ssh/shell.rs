//! Shells and commands on a terminal of the guest.
//! Out of scope: the terminal of the client, which executes all escape sequences of the guest.

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use russh::Sig;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::agent::{Agent, Socket};
use super::channel::{Control, Gone, Output, Parts, Terminal};
use super::exec::words;
use super::flow::Input;
use super::visitor::{FAILED, Login};
use crate::guest::protocol::ShellQuery;
use crate::guest::shell_frame::{DATA_LIMIT, ShellFrame};
use crate::wire::Backend;

/// How a shell has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With an exit status.
    Exited(u32),
    /// One sentence: it was not started, or the connection to it was lost.
    Failed(String),
    /// The client has left.
    Gone,
}

/// Runs a login shell, or a command, on a terminal.
pub async fn run<B: Backend>(
    backend: &B,
    agent: &Agent,
    login: Login,
    command: Option<String>,
    terminal: Terminal,
    parts: &mut Parts,
) -> End {
    let mut env = login.env;
    env.push(format!("TERM={}", terminal.term));
    let mut query = ShellQuery {
        user: login.user,
        env,
        ..ShellQuery::default()
    };
    if command.is_some() {
        let (cmd, args) = words(command);
        (query.cmd, query.args) = (Some(cmd), args);
    }
    let socket = match agent.socket("/shell", &query, &[]).await {
        Ok(socket) => socket,
        Err(text) => return End::Failed(text),
    };
    let Parts {
        input,
        controls,
        output,
        ..
    } = parts;
    match pass_on(socket, &terminal, input, controls, output).await {
        Ok(Some(status)) => End::Exited(status),
        Ok(None) => End::Failed(agent.lost(backend).await),
        Err(Gone) => End::Gone,
    }
}

/// Ends the channel.
pub async fn finish(end: End, parts: Parts) {
    match end {
        End::Exited(status) => parts.output.exit(status).await,
        End::Failed(text) => {
            let _ = parts.output.message(&text).await;
            parts.output.exit(FAILED).await;
        }
        End::Gone => {}
    }
}

/// The exit status; `None` if the connection was lost.
async fn pass_on(
    socket: Socket,
    terminal: &Terminal,
    input: &mut Input,
    controls: &mut mpsc::Receiver<Control>,
    output: &Output,
) -> Result<Option<u32>, Gone> {
    let (mut sink, mut source) = socket.split();
    let (columns, rows) = (terminal.columns, terminal.rows);
    let size = ShellFrame::Window { columns, rows };
    if send(&mut sink, size).await.is_none() {
        return Ok(None);
    }
    let ended = tokio::select! {
        received = receive(&mut source, output) => received,
        sent = transmit(&mut sink, input, controls) => match sent {
            // The agent reports the end, if it can.
            Some(never) => match never {},
            None => receive(&mut source, output).await,
        },
    };
    // The agent ends a shell when its connection is closed.
    let _ = sink.close().await;
    ended
}

async fn receive(source: &mut SplitStream<Socket>, output: &Output) -> Result<Option<u32>, Gone> {
    let mut status = None;
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(bytes) = message else {
            continue;
        };
        match ShellFrame::decode(&bytes) {
            Some(ShellFrame::Data(data)) => output.data(data).await?,
            Some(ShellFrame::ExitStatus(code)) => status = u32::try_from(code).ok(),
            Some(ShellFrame::Close | ShellFrame::Shutdown) => return Ok(status.or(Some(0))),
            _ => {}
        }
    }
    Ok(None)
}

/// Passes on input, sizes and signals; `None` if the agent does not take them.
async fn transmit(
    sink: &mut SplitSink<Socket, Message>,
    input: &mut Input,
    controls: &mut mpsc::Receiver<Control>,
) -> Option<std::convert::Infallible> {
    let (mut has_input, mut has_controls) = (true, true);
    loop {
        tokio::select! {
            control = controls.recv(), if has_controls => match control {
                Some(Control::Window { columns, rows }) => {
                    send(sink, ShellFrame::Window { columns, rows }).await?;
                }
                Some(Control::Signal(signal)) => send(sink, key(&signal)).await?,
                None => has_controls = false,
            },
            data = input.next(), if has_input => match data {
                Some(mut data) => while !data.is_empty() {
                    let part = data.split_to(data.len().min(DATA_LIMIT));
                    send(sink, ShellFrame::Data(part)).await?;
                },
                // A terminal has no end of input that could be passed on.
                None => has_input = false,
            },
            () = std::future::pending(), if !has_input && !has_controls => {}
        }
    }
}

/// The key for a signal that a terminal has; another signal ends the shell.
fn key(signal: &Sig) -> ShellFrame {
    match signal {
        Sig::INT => ShellFrame::Data(bytes::Bytes::from_static(b"\x03")),
        Sig::QUIT => ShellFrame::Data(bytes::Bytes::from_static(b"\x1c")),
        _ => ShellFrame::Shutdown,
    }
}

async fn send(sink: &mut SplitSink<Socket, Message>, frame: ShellFrame) -> Option<()> {
    sink.send(Message::Binary(frame.encode())).await.ok()
}
