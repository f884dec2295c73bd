//! `vm shell`, and `vm exec -t`: a terminal in a guest.
//! Out of scope: the serial console (`console`).

use std::io::{self, IsTerminal};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_tungstenite::tungstenite::Message;

use super::super::failure::Failure;
use super::super::terminal::{RawMode, before_detach, notice, read_input, window};
use super::args::{ExecArgs, ShellArgs};
use super::output::{Output, Raw, Stream};
use super::signals::Signals;
use super::{exit_with, with_query};
use crate::api::meta::Name;
use crate::guest::protocol::ShellQuery;
use crate::guest::shell_frame::ShellFrame;
use crate::wire::{AgentRequest, AgentSocket, Client};

/// Interval of the messages that show that the client is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How long the agent may take to receive that the client leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The maximum size of a part of the input, in bytes.
const KEYS: usize = 4096;

/// The end of the input, typed on a terminal (VEOF).
const END: u8 = 4;

/// How often it is sent when the input has ended.
const END_INTERVAL: Duration = Duration::from_millis(500);

/// What Ctrl-] does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detach {
    /// It leaves.
    Leaves,
    /// It is a key like others.
    IsKey,
}

/// How a session has ended.
enum End {
    /// With this exit status; `None`: the agent has not sent one.
    Closed(Option<i32>),
    /// The user has left.
    Detached,
    /// The connection was lost.
    Lost,
}

/// `vm shell VM`.
pub async fn shell(client: &Client, args: ShellArgs) -> Result<(), Failure> {
    let query = ShellQuery {
        uid: args.run_as.uid,
        gid: args.run_as.gid,
        cwd: args.run_as.cwd,
        shell: args.shell,
        env: terminal_type(),
        ..ShellQuery::default()
    };
    run(client, &args.vm, query, Detach::Leaves).await
}

/// `vm exec -t VM -- CMD…`.
pub async fn exec(client: &Client, args: ExecArgs) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "--tty requires a terminal as standard input".to_owned(),
        ));
    }
    let query = args.program.query(args.command);
    let query = ShellQuery {
        uid: query.uid,
        gid: query.gid,
        cwd: query.cwd,
        cmd: Some(query.cmd),
        args: query.args,
        env: [terminal_type(), query.env].concat(),
        ..ShellQuery::default()
    };
    run(client, &args.vm, query, Detach::IsKey).await
}

/// The type of the user's terminal, for programs in the guest.
fn terminal_type() -> Vec<String> {
    let is_name = |name: &String| {
        let is_permitted = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        !name.is_empty() && name.bytes().all(is_permitted)
    };
    let name = std::env::var("TERM").ok().filter(is_name);
    name.map(|name| format!("TERM={name}"))
        .into_iter()
        .collect()
}

async fn run(client: &Client, vm: &Name, query: ShellQuery, detach: Detach) -> Result<(), Failure> {
    // A program may end before the size of the terminal is sent.
    let size = window();
    let query = ShellQuery {
        columns: size.map(|(columns, _)| columns),
        rows: size.map(|(_, rows)| rows),
        ..query
    };
    let request = AgentRequest::get(vm, with_query("/shell", &query)?);
    let socket = client.agent_socket(request).await?;
    let mut signals = Signals::new()?;
    // Not before all else that can fail; restored when it is dropped.
    let raw_mode = RawMode::enter()?;
    if raw_mode.is_some() && detach == Detach::Leaves {
        notice(&format!("connected to {vm}; Ctrl-] leaves\r"));
    }
    let is_raw = raw_mode.is_some();
    let session = session(socket, detach, is_raw);
    let result = tokio::select! {
        result = session => result,
        signal = signals.next() => Err(Failure::WithStatus(signal.exit_status(), Vec::new())),
    };
    drop(raw_mode);
    match result? {
        End::Closed(status) => exit_with(status.unwrap_or_default(), Vec::new()),
        End::Detached => {
            notice("\r\ndetached");
            Ok(())
        }
        End::Lost => Err(Failure::one("connection closed unexpectedly")),
    }
}

/// Connects the terminal to the socket until one of them ends.
async fn session(socket: AgentSocket, detach: Detach, is_raw: bool) -> Result<End, Failure> {
    let (mut sink, messages) = socket.split();
    let output = receive(messages);
    tokio::pin!(output);
    let left = {
        let input = send(&mut sink, detach, is_raw);
        tokio::pin!(input);
        tokio::select! {
            end = &mut output => return end,
            left = &mut input => left?,
        }
    };
    match left {
        // The input has ended; the shell has not.
        false => output.await,
        true => {
            let leaving = async {
                let _ = sink.send(message(&ShellFrame::Shutdown)).await;
                let _ = sink.close().await;
            };
            let _ = tokio::time::timeout(LEAVE_TIMEOUT, leaving).await;
            Ok(End::Detached)
        }
    }
}

fn message(frame: &ShellFrame) -> Message {
    Message::Binary(frame.encode())
}

/// Sends keys and the size of the terminal. Returns whether the user leaves; otherwise the input has ended.
async fn send<S>(sink: &mut S, detach: Detach, is_raw: bool) -> Result<bool, Failure>
where
    S: futures::Sink<Message> + Unpin,
{
    let failed = |error: std::io::Error| Failure::one(format!("cannot receive signals: {error}"));
    let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut ends = tokio::time::interval(END_INTERVAL);
    ends.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keys = read_input(KEYS);
    let resize = || window().map(|(columns, rows)| ShellFrame::Window { columns, rows });
    let mut next = resize();
    let mut has_ended = false;
    loop {
        if let Some(frame) = next.take()
            && sink.send(message(&frame)).await.is_err()
        {
            // The other direction reports the end of the connection.
            return std::future::pending().await;
        }
        tokio::select! {
            _ = resized.recv() => next = resize(),
            _ = heartbeat.tick() => next = Some(ShellFrame::Heartbeat),
            part = keys.recv(), if !has_ended => match part {
                Some(part) => {
                    let (before, leaves) = match is_raw && detach == Detach::Leaves {
                        true => before_detach(&part),
                        false => (part.as_ref(), false),
                    };
                    if leaves {
                        return Ok(true);
                    }
                    next = Some(ShellFrame::Data(part.slice_ref(before)));
                }
                None if is_raw => return Ok(false),
                None => has_ended = true,
            },
            // A pipe ends as a user would end it on the terminal. A program that changes the mode of the terminal while it starts, as
            // shells with line editing do, loses what was entered before: so it is repeated for each program that reads.
            _ = ends.tick(), if has_ended => next = Some(ShellFrame::Data(Bytes::from_static(&[END]))),
        }
    }
}

/// Writes what the terminal in the guest shows, until the shell has ended.
async fn receive<S, E>(mut messages: S) -> Result<End, Failure>
where
    S: futures::Stream<Item = Result<Message, E>> + Unpin,
{
    let mut output = Output::start(Raw::Always);
    let mut status = None;
    let mut is_closed = false;
    while let Some(Ok(message)) = messages.next().await {
        let Message::Binary(bytes) = message else {
            continue;
        };
        match ShellFrame::decode(&bytes) {
            Some(ShellFrame::Data(data)) => output.write(Stream::Stdout, data).await?,
            Some(ShellFrame::ExitStatus(code)) => status = Some(code),
            Some(ShellFrame::Close | ShellFrame::Shutdown) => {
                is_closed = true;
                break;
            }
            Some(ShellFrame::Window { .. } | ShellFrame::Heartbeat) | None => {}
        }
    }
    output.finish().await?;
    match is_closed || status.is_some() {
        true => Ok(End::Closed(status)),
        false => Ok(End::Lost),
    }
}
