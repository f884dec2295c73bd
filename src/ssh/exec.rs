//! Commands without a terminal: separate standard output and standard error, and the exit status.
//! Out of scope: commands on a terminal (`shell`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use russh::Sig;
use tokio::sync::mpsc;

use super::agent::{Agent, Frames};
use super::channel::{Control, Gone, Output, Parts};
use super::visitor::{FAILED, Login};
use crate::guest::protocol::{Encoding, ExecQuery, Frame, FrameKind, Kill};
use crate::wire::Backend;

/// As sshd(8), the shell of the user runs the command. Only the agent knows it.
const RUN: &str = "exec \"${SHELL:-/bin/sh}\" -c \"$0\"";

/// A login shell without a terminal.
const LOGIN: &str = "exec \"${SHELL:-/bin/sh}\" -l";

/// The time between TERM and KILL: the client decides, and ends a command by closing its channel.
const GRACE_MS: u64 = 600_000;

/// The program and its arguments for a command; a login shell without one.
pub fn words(command: Option<String>) -> (String, Vec<String>) {
    let args = match command {
        Some(command) => vec!["-c".to_owned(), RUN.to_owned(), command],
        None => vec!["-c".to_owned(), LOGIN.to_owned()],
    };
    ("/bin/sh".to_owned(), args)
}

/// Runs a command, or a shell that reads its commands from the client.
pub async fn run<B: Backend>(
    backend: &B,
    agent: &Agent,
    login: Login,
    command: Option<String>,
    parts: Parts,
) {
    let (cmd, args) = words(command);
    let query = ExecQuery {
        cmd,
        args,
        env: login.env,
        user: login.user,
        stdin: true,
        stdio: Encoding::Base64,
        ..ExecQuery::default()
    };
    let Parts {
        input,
        mut controls,
        output,
        ..
    } = parts;
    let mut frames = match agent.exec(&query, input).await {
        Ok(frames) => frames,
        Err(text) => return failed(output, &text).await,
    };
    match pass_on(agent, &mut frames, &mut controls, &output).await {
        Ok(Some(end)) => match (end.error, end.signal) {
            (Some(error), _) => {
                let _ = output.message(&error).await;
                output.exit(status(end.exit_code)).await;
            }
            (None, Some(signal)) if signal.starts_with("SIG") => output.exit_signal(&signal).await,
            _ => output.exit(status(end.exit_code)).await,
        },
        Ok(None) => failed(output, &agent.lost(backend).await).await,
        Err(Gone) => {}
    }
}

async fn failed(output: Output, text: &str) {
    let _ = output.message(text).await;
    output.exit(FAILED).await;
}

fn status(code: Option<i32>) -> u32 {
    code.and_then(|code| u32::try_from(code).ok())
        .unwrap_or(FAILED)
}

/// Passes on output and signals until the command has ended: its last frame. `None` if there is none.
async fn pass_on(
    agent: &Agent,
    frames: &mut Frames,
    controls: &mut mpsc::Receiver<Control>,
    output: &Output,
) -> Result<Option<Frame>, Gone> {
    let (mut id, mut has_controls): (Option<String>, bool) = (None, true);
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame,
            control = controls.recv(), if has_controls => {
                match (control, &id) {
                    (Some(Control::Signal(signal)), Some(id)) => kill(agent, id, &signal),
                    (None, _) => has_controls = false,
                    _ => {}
                }
                continue;
            }
        };
        let Some(frame) = frame else {
            return Ok(None);
        };
        match frame.kind {
            FrameKind::Started => id = frame.exec_id,
            FrameKind::Stdout => match decoded(&frame, frame.stdout.as_deref()) {
                Some(data) => output.data(data).await?,
                None => return Ok(None),
            },
            FrameKind::Stderr => match decoded(&frame, frame.stderr.as_deref()) {
                Some(data) => output.error(data).await?,
                None => return Ok(None),
            },
            FrameKind::Exit => return Ok(Some(frame)),
            FrameKind::Gap => {}
        }
    }
}

fn decoded(frame: &Frame, text: Option<&str>) -> Option<Bytes> {
    let text = text.unwrap_or_default();
    match frame.encoding {
        Some(Encoding::Base64) => STANDARD.decode(text).ok().map(Bytes::from),
        Some(Encoding::Text) | None => Some(Bytes::copy_from_slice(text.as_bytes())),
    }
}

/// In a task of its own: output is passed on meanwhile.
fn kill(agent: &Agent, id: &str, signal: &Sig) {
    let name = match signal {
        Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    };
    let kill = Kill {
        signal: Some(name),
        grace_ms: Some(GRACE_MS),
    };
    let (agent, id) = (agent.clone(), id.to_owned());
    tokio::spawn(async move {
        if let Err(error) = agent.kill(&id, &kill).await {
            tracing::debug!(%error, "cannot send a signal");
        }
    });
}
