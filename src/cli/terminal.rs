//! The terminal of the user: raw mode, its size, and standard input as a stream.
//! Out of scope: who receives the input (`console`, `guest`).

use std::io::{self, IsTerminal, Read, Write};

use bytes::Bytes;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::failure::Failure;

/// Ctrl-], as in telnet and virsh: programs in the guest rarely use it.
const DETACH: u8 = 0x1d;

/// A message with its own carriage returns, for a terminal that is or was in raw mode.
pub fn notice(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// The keys for the guest, up to the detach key, and whether the detach key was found.
pub fn before_detach(keys: &[u8]) -> (&[u8], bool) {
    match keys.iter().position(|key| *key == DETACH) {
        Some(at) => (&keys[..at], true),
        None => (keys, false),
    }
}

/// Reads standard input in parts of at most `size` bytes, in a separate thread, since a blocking read of a terminal cannot be cancelled.
/// At most two parts are read ahead. The stream ends at the end of the input, or at an error.
pub fn read_input(size: usize) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; size];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(count @ 1..) => {
                    let part = Bytes::copy_from_slice(&buffer[..count]);
                    if sender.blocking_send(part).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => break,
            }
        }
    });
    receiver
}

/// Columns and rows of the terminal at standard input; `None` if it does not know them.
pub fn window() -> Option<(u32, u32)> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    let (columns, rows) = (u32::from(size.ws_col), u32::from(size.ws_row));
    (columns > 0 && rows > 0).then_some((columns, rows))
}

/// Standard input in raw mode (termios(3)) until dropped.
pub struct RawMode(Termios);

impl RawMode {
    /// Returns `None` if standard input is not a terminal.
    pub fn enter() -> Result<Option<Self>, Failure> {
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

/// Standard input without echo (termios(3)) until dropped: what is typed is not shown.
pub struct NoEcho(Termios);

impl NoEcho {
    /// Standard input is a terminal.
    pub fn enter() -> Result<Self, Failure> {
        let failed =
            |error| Failure::one(format!("cannot turn off the echo of the terminal: {error}"));
        let original = tcgetattr(io::stdin()).map_err(failed)?;
        let mut silent = original.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // What was typed before the question is discarded: it was shown.
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).map_err(failed)?;
        Ok(Self(original))
    }
}

impl Drop for NoEcho {
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
