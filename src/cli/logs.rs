//! `logs`: prints the output of guests.
//! Out of scope: input (`console`).

use std::io::IsTerminal;

use futures::StreamExt;
use http_body_util::BodyExt;

use super::args::LogsArgs;
use super::failure::Failure;
use super::guest::with_query;
use super::sanitize::Sanitizer;
use super::{print, watch};
use crate::guest::protocol::UserdataLogsQuery;
use crate::wire::backend::{LogStart, StreamMode};
use crate::wire::{AgentRequest, Client};

/// `logs VM [-f] [-n NUMBER] [--raw]`: prints the bytes as they are, to a terminal only what cannot control it. If the output is
/// followed, goes on after a restart of the daemon where it was interrupted.
pub async fn logs(client: &Client, args: LogsArgs) -> Result<(), Failure> {
    if args.userdata {
        return userdata(client, args).await;
    }
    let span = match args.follow {
        true => StreamMode::Follow,
        false => StreamMode::Once,
    };
    let mut start = args.lines.map_or(LogStart::Beginning, LogStart::LastLines);
    let mut output = Output::new(args.raw);
    let (mut offset, stream) = client.logs(&args.vm, start, span).await?;
    let mut stream = stream.boxed();
    loop {
        while let Some(bytes) = stream.next().await {
            let bytes = match (bytes, span) {
                (Ok(bytes), _) => bytes,
                (Err(_), StreamMode::Follow) => break,
                (Err(error), StreamMode::Once) => {
                    output.finish()?;
                    return Err(error.into());
                }
            };
            offset = offset.map(|offset| offset + bytes.len() as u64);
            output.print(&bytes)?;
        }
        if span == StreamMode::Once {
            return output.finish();
        }
        start = offset.map_or(start, LogStart::Offset);
        let (at, next) = watch::reconnect(|| client.logs(&args.vm, start, span)).await?;
        (offset, stream) = (at, next.boxed());
    }
}

/// The output of the userdata, from the agent of the guest.
async fn userdata(client: &Client, args: LogsArgs) -> Result<(), Failure> {
    let query = UserdataLogsQuery {
        follow: args.follow,
        lines: args.lines,
    };
    let path = with_query("/userdata/logs", &query)?;
    let response = client.agent(AgentRequest::get(&args.vm, path)).await?;
    let mut body = response.into_body();
    let mut output = Output::new(args.raw);
    while let Some(frame) = body.frame().await {
        let interrupted = |_| Failure::one("the agent's connection was closed unexpectedly");
        if let Ok(bytes) = frame.map_err(interrupted)?.into_data() {
            output.print(&bytes)?;
        }
    }
    output.finish()
}

struct Output {
    sanitizer: Option<Sanitizer>,
}

impl Output {
    fn new(raw: bool) -> Self {
        let is_sanitized = std::io::stdout().is_terminal() && !raw;
        Self {
            sanitizer: is_sanitized.then(Sanitizer::default),
        }
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match &mut self.sanitizer {
            Some(sanitizer) => print::bytes(sanitizer.push(bytes).as_bytes()),
            None => print::bytes(bytes),
        }
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let end = self.sanitizer.as_mut().map_or("", Sanitizer::finish);
        print::bytes(end.as_bytes())
    }
}
