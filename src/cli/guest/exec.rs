//! `vm exec`: runs a command in a guest as if it were a local one.
//! Out of scope: commands on a terminal (`shell`), in the background (`background`).

use std::cell::OnceCell;
use std::io::{self, IsTerminal};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

use super::super::failure::{Failure, warn};
use super::super::terminal::read_input;
use super::args::ExecArgs;
use super::output::{Output, Raw};
use super::signals::{Signal, Signals};
use super::{exit_with, shell, with_query};
use crate::api::meta::Name;
use crate::guest::protocol::{CHUNK, Encoding, ExecQuery, Frame, FrameKind, Kill, Killed};
use crate::wire::client::ClientError;
use crate::wire::{AgentRequest, Client};

/// How long a command may handle SIGTERM before it is killed, in milliseconds: the longest time that an agent permits. The user decides.
const GRACE_MS: u64 = 600_000;

/// `vm exec VM -- CMD…`.
pub async fn exec(client: &Client, args: ExecArgs) -> Result<(), Failure> {
    if args.tty {
        return shell::exec(client, args).await;
    }
    let has_input = args.stdin || !io::stdin().is_terminal();
    let query = ExecQuery {
        stdin: has_input,
        stdio: Encoding::Base64,
        ..args.program.query(args.command)
    };
    let mut request = AgentRequest::post(&args.vm, with_query("/exec", &query)?);
    if has_input {
        request = request.stream(input());
    }
    let mut signals = Signals::new()?;
    // Its id, as soon as it is started.
    let id = OnceCell::new();
    let command = run(client, request, &id);
    tokio::pin!(command);
    let mut is_interrupted = false;
    loop {
        tokio::select! {
            result = &mut command => return result,
            signal = signals.next() => {
                let is_second = is_interrupted && signal == Signal::Interrupt;
                match id.get().filter(|_| !is_second) {
                    Some(id) => kill(client, &args.vm, id, signal),
                    // The command ends when its connection is closed.
                    None => return Err(Failure::WithStatus(signal.exit_status(), Vec::new())),
                }
                is_interrupted |= signal == Signal::Interrupt;
            }
        }
    }
}

/// Standard input as the body of a request.
fn input() -> impl Stream<Item = io::Result<Bytes>> + Send {
    let parts = read_input(CHUNK);
    stream::unfold(parts, |mut parts| async {
        parts.recv().await.map(|part| (Ok(part), parts))
    })
}

/// Runs the command to its end.
async fn run(client: &Client, request: AgentRequest, id: &OnceCell<String>) -> Result<(), Failure> {
    let mut frames = client.agent_lines::<Frame>(request).await?;
    let mut output = Output::start(Raw::Always);
    while let Some(frame) = frames.next().await {
        let frame = match frame {
            Err(ClientError::AgentClosed) => break,
            frame => frame?,
        };
        match frame.kind {
            FrameKind::Started => {
                if let Some(found) = frame.exec_id {
                    let _ = id.set(found);
                }
            }
            FrameKind::Stdout | FrameKind::Stderr => output.write_frame(&frame).await?,
            FrameKind::Gap => {}
            FrameKind::Exit => {
                output.finish().await?;
                let causes = frame.error.into_iter().collect();
                return exit_with(frame.exit_code.unwrap_or_default(), causes);
            }
        }
    }
    Err(Failure::one(
        "connection closed unexpectedly: the exit status of the command is unknown",
    ))
}

/// Sends a signal to the command, while its output is still received.
fn kill(client: &Client, vm: &Name, id: &str, signal: Signal) {
    let body = Kill {
        signal: Some(signal.name().to_owned()),
        grace_ms: Some(GRACE_MS),
    };
    // The id is that of a guest; the daemon accepts no other characters in a path.
    let request = AgentRequest::post(vm, format!("/exec/{id}/kill")).json(&body);
    let client = client.clone();
    tokio::spawn(async move {
        if let Err(error) = client.agent_json::<Killed>(request).await {
            let name = signal.name();
            warn(&format!("cannot send SIG{name} to the command: {error}"));
        }
    });
}
