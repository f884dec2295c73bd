//! The standard streams of a process: its output in chunks, its input from the body of a request.
//! Out of scope: frames, buffers, the process.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::process::Process;
use crate::guest::protocol::{CHUNK, Encoding, FrameKind};

/// How long output is awaited after the end of the process if other processes have its pipes open.
pub const AFTER_EXIT: Duration = Duration::from_millis(500);

/// The maximum number of bytes that are read after the end of the process. What the process itself wrote fits into a pipe; its maximum
/// size is 1 MiB (`/proc/sys/fs/pipe-max-size`).
pub const AFTER_EXIT_LIMIT: usize = 1 << 20;

/// How long the rest of a body is read and discarded after the end of the process. A client that is still sending would otherwise receive
/// a reset instead of the response.
const LINGER: Duration = Duration::from_secs(5);

/// A part of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// [`FrameKind::Stdout`] or [`FrameKind::Stderr`].
    pub kind: FrameKind,
    /// At most [`CHUNK`] bytes; for [`Encoding::Text`], whole characters.
    pub data: Bytes,
}

/// Reads both streams. The channel ends after the end of both; reading stops when the receiver is dropped.
///
/// # Errors
/// A descriptor cannot be registered.
pub fn read(
    process: &Arc<Process>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    encoding: Encoding,
    chunk: usize,
) -> io::Result<mpsc::Receiver<Chunk>> {
    let (sender, receiver) = mpsc::channel(1);
    for (kind, descriptor) in [(FrameKind::Stdout, stdout), (FrameKind::Stderr, stderr)] {
        let Some(descriptor) = descriptor else {
            continue;
        };
        let reader = Reader {
            pipe: pipe::Receiver::from_owned_fd(descriptor)?,
            process: Arc::clone(process),
            kind,
            encoding,
            chunk: chunk.min(CHUNK),
        };
        tokio::spawn(reader.run(sender.clone()));
    }
    Ok(receiver)
}

struct Reader {
    pipe: pipe::Receiver,
    process: Arc<Process>,
    kind: FrameKind,
    encoding: Encoding,
    chunk: usize,
}

impl Reader {
    async fn run(mut self, sender: mpsc::Sender<Chunk>) {
        let process = Arc::clone(&self.process);
        let after_exit = async {
            process.ended().await;
            sleep(AFTER_EXIT).await;
        };
        tokio::pin!(after_exit);
        let mut rest = AFTER_EXIT_LIMIT;
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(self.chunk);
            let mut limited = (&mut buffer).limit(self.chunk);
            let length = tokio::select! {
                biased;
                read = self.pipe.read_buf(&mut limited) => read.unwrap_or(0),
                () = &mut after_exit => 0,
                () = sender.closed() => return,
            };
            if process.ending().is_some() {
                rest = rest.saturating_sub(length);
            }
            let last = length == 0 || rest == 0;
            let kept = match self.encoding {
                Encoding::Text if !last => incomplete(&buffer),
                _ => 0,
            };
            let tail = buffer.split_off(buffer.len() - kept);
            let data = std::mem::replace(&mut buffer, tail).freeze();
            let kind = self.kind;
            if !data.is_empty() && sender.send(Chunk { kind, data }).await.is_err() || last {
                return;
            }
        }
    }
}

/// The length of an incomplete UTF-8 character at the end.
fn incomplete(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if length > back + 1 { back + 1 } else { 0 };
    }
    0
}

/// Writes a body to the standard input. After the end of the process, or if it has closed its input, the rest is discarded.
///
/// # Errors
/// The descriptor cannot be registered.
pub fn write(process: &Arc<Process>, stdin: OwnedFd, body: Body) -> io::Result<()> {
    let pipe = pipe::Sender::from_owned_fd(stdin)?;
    tokio::spawn(feed(Arc::clone(process), pipe, body));
    Ok(())
}

async fn feed(process: Arc<Process>, mut pipe: pipe::Sender, body: Body) {
    let mut data = body.into_data_stream();
    let mut complete = false;
    let copy = async {
        while let Some(next) = data.next().await {
            // The client has left: the process is terminated, and does not see the end of its input before.
            let Ok(bytes) = next else {
                return;
            };
            if pipe.write_all(&bytes).await.is_err() {
                return;
            }
        }
        complete = true;
    };
    tokio::select! {
        () = copy => {}
        _ = process.ended() => {}
    }
    if complete {
        return;
    }
    let discard = async { while let Some(Ok(_)) = data.next().await {} };
    tokio::pin!(discard);
    tokio::select! {
        () = &mut discard => {
            process.ended().await;
        }
        _ = process.ended() => {
            let _ = timeout(LINGER, discard).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_incomplete_character_at_the_end_is_held_back() {
        for text in ["a", "ü", "€", "🦀", "x🦀"] {
            let bytes = text.as_bytes();
            assert_eq!(incomplete(bytes), 0, "{text}");
            let start = text.char_indices().last().map_or(0, |(at, _)| at);
            for end in start + 1..bytes.len() {
                assert_eq!(incomplete(&bytes[..end]), end - start, "{text} {end}");
            }
        }
        for invalid in [
            &b""[..],
            b"\xff",
            b"\xc0",
            b"\x80\x80\x80\x80",
            b"\xf5\x80",
            b"a\x80",
        ] {
            assert_eq!(incomplete(invalid), 0, "{invalid:?}");
        }
    }
}
