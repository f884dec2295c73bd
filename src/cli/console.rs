//! `console`: connects the terminal to a VM's serial port.
//! Out of scope: output only (`logs`).

use bytes::Bytes;
use futures::StreamExt;

use super::args::ConsoleArgs;
use super::failure::Failure;
use super::print;
use super::terminal::{RawMode, before_detach, notice, read_input};
use crate::wire::Client;
use crate::wire::backend::{LogStart, StreamMode};

/// The maximum number of keys in a request, below `PIPE_BUF` (pipe(7)).
const KEYS: usize = 1024;

/// `console VM [-n NUMBER]`. Ends at the detach key, at the end of the input, or when the daemon stops.
pub async fn console(client: &Client, args: ConsoleArgs) -> Result<(), Failure> {
    // Reports errors before the terminal is in raw mode.
    client.write_console(&args.vm, Bytes::new()).await?;
    let lines = LogStart::LastLines(args.lines);
    let output = client.logs(&args.vm, lines, StreamMode::Follow);
    let (_, output) = output.await?;
    let mut output = Box::pin(output);
    let raw_mode = RawMode::enter()?;
    if raw_mode.is_some() {
        notice(&format!("connected to {}; Ctrl-] detaches\r", args.vm));
    }
    let mut keys_read = read_input(KEYS);
    let message = loop {
        tokio::select! {
            chunk = output.next() => match chunk {
                Some(bytes) => print::bytes(&bytes?)?,
                None => break "\r\nconnection closed by sliced",
            },
            keys = keys_read.recv() => match keys {
                Some(keys) => {
                    let (keys, is_detached) = before_detach(&keys);
                    client.write_console(&args.vm, Bytes::copy_from_slice(keys)).await?;
                    if is_detached {
                        break "\r\ndetached";
                    }
                }
                None => break "",
            },
        }
    };
    if raw_mode.is_some() {
        drop(raw_mode);
        notice(message);
    }
    Ok(())
}
