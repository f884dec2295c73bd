//! Commands in the foreground: the response is the output, and the command ends with the connection of the client.
//! Out of scope: commands in the background.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;

use super::commands::{Commands, Foreground};
use super::frames;
use crate::clock;
use crate::guest::agent::child::Streams;
use crate::guest::agent::error::Error;
use crate::guest::agent::output::{self, Chunk};
use crate::guest::agent::process::{Abandoned, Process, Scope, start};
use crate::guest::agent::spec::{Spec, StartError};
use crate::guest::protocol::{Buffered, CHUNK, Encoding, ExecQuery, Frame, FrameKind};

/// The maximum size of each stream in a response with `buffered`, in bytes.
const BUFFERED_LIMIT: usize = 8 << 20;

/// A command, and what ends with it.
struct Command {
    process: Arc<Process>,
    output: mpsc::Receiver<Chunk>,
    known: Foreground,
    /// Terminates the process when the client leaves; dropped last.
    _abandoned: Abandoned,
}

impl Command {
    async fn start(
        commands: &Arc<Commands>,
        query: &ExecQuery,
        body: Body,
    ) -> Result<Self, StartError> {
        let streams = Streams::Pipes {
            stdin: query.stdin,
            stdout: query.stdout,
            stderr: query.stderr,
        };
        let spawned = start(Spec::of_exec(query)?, streams, Scope::Group).await?;
        let failed = |error| Error::system("connect pipes", &error);
        if let Some(stdin) = spawned.stdin {
            output::write(&spawned.process, stdin, body).map_err(failed)?;
        }
        let (stdout, stderr) = (spawned.stdout, spawned.stderr);
        let output = output::read(&spawned.process, stdout, stderr, query.stdio, CHUNK);
        Ok(Self {
            output: output.map_err(failed)?,
            known: commands.add_foreground(&spawned.process),
            process: spawned.process,
            _abandoned: spawned.abandoned,
        })
    }
}

/// The response with lines of frames.
///
/// # Errors
/// The request is invalid. A program that cannot be executed is no error but the frame `exit`.
pub async fn stream(
    commands: &Arc<Commands>,
    query: &ExecQuery,
    body: Body,
) -> Result<Response, Error> {
    let body = match Command::start(commands, query, body).await {
        Ok(command) => Body::from_stream(lines(command, query.stdio)),
        Err(StartError::Program { exit_code, text }) => {
            let mut frame = Frame::new(FrameKind::Exit, clock::now());
            frame.exit_code = Some(exit_code);
            frame.error = Some(text);
            Body::from(frames::line(&frame))
        }
        Err(StartError::Request(error)) => return Err(error),
    };
    Ok(ndjson(body))
}

/// A response with lines of JSON.
pub fn ndjson(body: Body) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

enum State {
    Started(Command),
    Running(Command),
    Ended,
}

fn lines(
    command: Command,
    encoding: Encoding,
) -> impl futures::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(State::Started(command), move |state| async move {
        let (frame, state) = match state {
            State::Started(command) => {
                let frame = frames::started(&command.known.id, &command.process);
                (frame, State::Running(command))
            }
            State::Running(mut command) => match command.output.recv().await {
                Some(chunk) => {
                    let frame = frames::output(chunk.kind, &chunk.data, encoding, clock::now());
                    (frame, State::Running(command))
                }
                None => (frames::exit(&command.process.ended().await), State::Ended),
            },
            State::Ended => return None,
        };
        Some((Ok(frames::line(&frame)), state))
    })
}

/// The response with one JSON object after the end of the command.
///
/// # Errors
/// See [`stream()`].
pub async fn buffered(
    commands: &Arc<Commands>,
    query: &ExecQuery,
    body: Body,
) -> Result<Response, Error> {
    let response = match Command::start(commands, query, body).await {
        Ok(command) => collect(command, query.stdio).await,
        Err(StartError::Program { exit_code, text }) => Buffered {
            exit_code,
            encoding: frames::encoding_field(query.stdio),
            error: Some(text),
            ..Buffered::default()
        },
        Err(StartError::Request(error)) => return Err(error),
    };
    Ok(Json(response).into_response())
}

async fn collect(mut command: Command, encoding: Encoding) -> Buffered {
    let (mut stdout, mut stderr, mut discarded) = (Vec::new(), Vec::new(), None);
    while let Some(chunk) = command.output.recv().await {
        let (buffer, name) = match chunk.kind {
            FrameKind::Stderr => (&mut stderr, "stderr"),
            _ => (&mut stdout, "stdout"),
        };
        let rest = chunk.data.len().min(BUFFERED_LIMIT - buffer.len());
        buffer.extend_from_slice(&chunk.data[..rest]);
        if rest < chunk.data.len() {
            discarded = Some(name);
        }
    }
    let ending = command.process.ended().await;
    Buffered {
        stdout: frames::encode(&stdout, encoding),
        stderr: frames::encode(&stderr, encoding),
        exit_code: ending.exit_code,
        encoding: frames::encoding_field(encoding),
        pid: Some(command.process.pid()),
        started_at: Some(command.process.started_at),
        ended_at: Some(ending.ended_at),
        signal: ending.signal,
        error: discarded.map(|name| {
            format!("{name} is larger than {BUFFERED_LIMIT} bytes, the rest was discarded: request the output without \"buffered\"")
        }),
    }
}
