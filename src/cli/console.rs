//! `console`: a VM's serial port, both ways.
//! Out of scope: reading only (`logs`).

use std::io::{self, IsTerminal, Read};

use bytes::Bytes;
use futures::StreamExt;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;

use super::args::ConsoleArgs;
use super::failure::{Failure, note};
use super::print;
use crate::wire::{Client, backend::Span};

/// Ctrl-], as telnet and virsh have it: no program at the other end is known to want it.
const DETACH: u8 = 0x1d;

/// `console VM [-n NUMBER]`. Ends with the detach key, with the end of what is typed, or when the daemon goes.
pub async fn console(client: &Client, args: ConsoleArgs) -> Result<(), Failure> {
    // Says what is wrong before the terminal is another.
    client.type_in(&args.vm, Bytes::new()).await?;
    let output = client.logs(&args.vm, Some(args.lines), Span::Follow);
    let mut output = Box::pin(output.await?);
    let terminal = Raw::enter()?;
    if terminal.is_some() {
        note(&format!("connected to {}; Ctrl-] leaves it\r", args.vm));
    }
    let mut typed = typed();
    let ended = loop {
        tokio::select! {
            said = output.next() => match said {
                Some(bytes) => print::bytes(&bytes?)?,
                None => break "\r\nsliced has ended the console",
            },
            keys = typed.recv() => match keys {
                Some(keys) => {
                    let (keys, left) = before_detach(&keys);
                    client.type_in(&args.vm, Bytes::copy_from_slice(keys)).await?;
                    if left {
                        break "\r\nleft";
                    }
                }
                None => break "",
            },
        }
    };
    if terminal.is_some() {
        drop(terminal);
        note(ended);
    }
    Ok(())
}

/// What is for the guest, and whether the detach key came after it.
fn before_detach(keys: &[u8]) -> (&[u8], bool) {
    match keys.iter().position(|key| *key == DETACH) {
        Some(at) => (&keys[..at], true),
        None => (keys, false),
    }
}

/// What is typed, as it comes. A thread of its own: a read of a terminal cannot be taken back.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (tell, typed) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = io::stdin().lock().read(&mut buffer) {
            if tell.blocking_send(buffer[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    typed
}

/// A terminal that hands on each key as it is, until dropped (termios(3), raw mode).
struct Raw(Termios);

impl Raw {
    /// None: standard input is no terminal.
    fn enter() -> Result<Option<Self>, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let failed = |error| Failure::one(format!("cannot change the terminal: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::before_detach;

    #[test]
    fn what_was_typed_before_the_detach_key_still_reaches_the_guest() {
        assert_eq!(before_detach(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(before_detach(b"ls\r\x1dmore"), (&b"ls\r"[..], true));
        assert_eq!(before_detach(b"\x1d"), (&b""[..], true));
    }
}
