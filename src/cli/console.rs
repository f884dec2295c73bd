//! `console`: connects the terminal to a VM's serial port.
//! Out of scope: output only (`logs`).

use std::io::{self, IsTerminal, Read, Write};

use bytes::Bytes;
use futures::StreamExt;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use super::args::ConsoleArgs;
use super::failure::Failure;
use super::print;
use crate::wire::Client;
use crate::wire::backend::{LogStart, StreamMode};

/// Ctrl-], as in telnet and virsh: programs in the guest rarely use it.
const DETACH: u8 = 0x1d;

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
    let mut keys_read = read_keys();
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

/// A message with its own carriage returns, for a terminal that is or was in raw mode.
fn notice(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// The keys for the guest, up to the detach key, and whether the detach key was found.
fn before_detach(keys: &[u8]) -> (&[u8], bool) {
    match keys.iter().position(|key| *key == DETACH) {
        Some(at) => (&keys[..at], true),
        None => (keys, false),
    }
}

/// Reads standard input in a separate thread, since a blocking read of a terminal cannot be cancelled.
fn read_keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Standard input in raw mode (termios(3)) until dropped.
struct RawMode(Termios);

impl RawMode {
    /// Returns `None` if standard input is not a terminal.
    fn enter() -> Result<Option<Self>, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let failed = |error| Failure::one(format!("cannot set the terminal to raw mode: {error}"));
        let original = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = original.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self(original)))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::before_detach;

    #[test]
    fn keys_before_the_detach_key_are_sent_to_the_guest() {
        assert_eq!(before_detach(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(before_detach(b"ls\r\x1dmore"), (&b"ls\r"[..], true));
        assert_eq!(before_detach(b"\x1d"), (&b""[..], true));
    }
}
