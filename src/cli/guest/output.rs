//! Writes the output of commands in guests to standard output and standard error.
//! Out of scope: receiving it.
//!
//! A thread writes, since a reader that reads nothing blocks it: signals are handled meanwhile. The order of both streams is kept.

use std::io::{self, IsTerminal, Write};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::super::failure::Failure;
use super::super::sanitize::Sanitizer;
use crate::guest::protocol::{Encoding, Frame};

/// How output is written to a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// As it is, as from a local command.
    Always,
    /// Without what can control the terminal.
    ExceptTerminal,
}

/// A stream of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The thread that writes.
pub struct Output {
    sender: mpsc::Sender<(Stream, Bytes)>,
    result: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Starts the thread.
    pub fn start(raw: Raw) -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Stream, Bytes)>(1);
        let (done, result) = oneshot::channel();
        std::thread::spawn(move || {
            let sanitizer = |is_terminal: bool| {
                let is_sanitized = is_terminal && raw == Raw::ExceptTerminal;
                is_sanitized.then(Sanitizer::default)
            };
            let mut stdout = sanitizer(io::stdout().is_terminal());
            let mut stderr = sanitizer(io::stderr().is_terminal());
            let mut write = || {
                while let Some((stream, bytes)) = receiver.blocking_recv() {
                    match stream {
                        Stream::Stdout => write(io::stdout().lock(), &mut stdout, &bytes)?,
                        Stream::Stderr => write(io::stderr().lock(), &mut stderr, &bytes)?,
                    }
                }
                finish(io::stdout().lock(), &mut stdout)?;
                finish(io::stderr().lock(), &mut stderr)
            };
            let _ = done.send(write());
        });
        Self { sender, result }
    }

    /// Passes bytes to the thread; waits while it writes earlier ones.
    ///
    /// # Errors
    /// Earlier bytes could not be written.
    pub async fn write(&mut self, stream: Stream, bytes: Bytes) -> Result<(), Failure> {
        match self.sender.send((stream, bytes)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// The same, for the output in a frame.
    pub async fn write_frame(&mut self, frame: &Frame) -> Result<(), Failure> {
        let streams = [
            (Stream::Stdout, &frame.stdout),
            (Stream::Stderr, &frame.stderr),
        ];
        for (stream, text) in streams {
            if let Some(text) = text {
                self.write(stream, decode(frame.encoding, text)?).await?;
            }
        }
        Ok(())
    }

    /// Waits until all is written.
    pub async fn finish(self) -> Result<(), Failure> {
        let Self { sender, result } = self;
        drop(sender);
        match result.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(Failure::one("cannot write the output")),
        }
    }

    async fn failure(&mut self) -> Failure {
        match (&mut self.result).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => Failure::one("cannot write the output"),
        }
    }
}

fn write(mut to: impl Write, sanitizer: &mut Option<Sanitizer>, bytes: &[u8]) -> io::Result<()> {
    match sanitizer {
        Some(sanitizer) => to.write_all(sanitizer.push(bytes).as_bytes())?,
        None => to.write_all(bytes)?,
    }
    to.flush()
}

fn finish(mut to: impl Write, sanitizer: &mut Option<Sanitizer>) -> io::Result<()> {
    match sanitizer {
        Some(sanitizer) => to.write_all(sanitizer.finish().as_bytes()),
        None => Ok(()),
    }
}

fn decode(encoding: Option<Encoding>, text: &str) -> Result<Bytes, Failure> {
    match encoding {
        None | Some(Encoding::Text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some(Encoding::Base64) => match BASE64_STANDARD.decode(text) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(Failure::one(format!(
                "invalid response of the agent: {error}"
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_decoded_and_invalid_base64_is_an_error() {
        let bytes = |encoding, text| decode(encoding, text).ok().map(|bytes| bytes.to_vec());
        assert_eq!(bytes(None, "aGk="), Some(b"aGk=".to_vec()));
        assert_eq!(bytes(Some(Encoding::Text), "hi"), Some(b"hi".to_vec()));
        assert_eq!(
            bytes(Some(Encoding::Base64), "AP8K"),
            Some(vec![0, 255, 10])
        );
        assert_eq!(bytes(Some(Encoding::Base64), "A?"), None);
    }
}
