//! Async streams of bytes, for code on threads that block.
//! Out of scope: what the bytes are.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// A stream of bytes; an error ends it.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Bytes in one item, and items that wait for the reader: the memory that a copy needs.
const CHUNK: usize = 128 << 10;
const WAITING: usize = 4;

/// Reads a stream on a thread of the runtime that may block.
pub struct Reader(SyncIoBridge<StreamReader<ByteStream, Bytes>>);

impl Reader {
    /// A reader for a thread of [`tokio::task::spawn_blocking`].
    pub fn new(stream: ByteStream) -> Self {
        let reader = StreamReader::new(stream);
        Self(SyncIoBridge::new_with_handle(reader, Handle::current()))
    }

    /// What has not been read, except a part of an item.
    pub fn into_stream(self) -> ByteStream {
        self.0.into_inner().into_inner()
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        self.0.consume(length);
    }
}

/// Runs `write` on a thread that may block; what it writes is the stream. An error of `write` is the last item, so that the receiver does
/// not take a part for the whole. If the stream is dropped, writing fails with `BrokenPipe`.
pub fn written_by<E: ToString>(
    write: impl FnOnce(&mut Writer) -> Result<(), E> + Send + 'static,
) -> ByteStream {
    let (writer, stream) = pair();
    tokio::task::spawn_blocking(move || writer.run(write));
    stream
}

/// Standard input. It is read on a thread of its own: the runtime would wait for one of its threads when it stops, until a user types.
pub fn stdin() -> ByteStream {
    let (writer, stream) = pair();
    std::thread::spawn(move || {
        writer.run(|output| io::copy(&mut io::stdin().lock(), output).map(drop));
    });
    stream
}

/// The same stream; after the guard is dropped, it ends with an error. A thread that reads it ends soon after the future that waits for
/// the thread is dropped, and does not take a part for the whole.
pub fn guarded(stream: ByteStream) -> (ByteStream, oneshot::Sender<()>) {
    let (guard, dropped) = oneshot::channel();
    let stream = stream::unfold(Some((stream, dropped)), |state| async {
        let (mut stream, mut dropped) = state?;
        tokio::select! {
            item = stream.next() => item.map(|item| (item, Some((stream, dropped)))),
            _ = &mut dropped => {
                let error = io::Error::other("the copy was interrupted");
                Some((Err(error), None))
            }
        }
    });
    (stream.boxed(), guard)
}

fn pair() -> (Writer, ByteStream) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let stream = stream::unfold(
        receiver,
        |mut receiver: mpsc::Receiver<io::Result<Bytes>>| async {
            receiver.recv().await.map(|item| (item, receiver))
        },
    );
    (Writer::new(sender), stream.boxed())
}

/// Sends what is written. Its buffers are used again after the receiver has dropped them: new memory costs a page fault and the zeros of
/// each page, which take longer than the copy itself.
pub struct Writer {
    /// The buffer that is filled: of `CHUNK` bytes, or empty before the first byte of an item.
    buffer: BytesMut,
    /// Bytes at its start that are written.
    filled: usize,
    /// Buffers that were sent, the oldest first.
    sent: VecDeque<Bytes>,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Writer {
    fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self {
            buffer: BytesMut::new(),
            filled: 0,
            sent: VecDeque::new(),
            sender,
        }
    }

    /// The free part of the buffer, which is never empty. What is put there is written by [`Self::fill`].
    ///
    /// # Errors
    /// The stream was dropped.
    pub fn space(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
            self.buffer = self.free_buffer();
        }
        Ok(&mut self.buffer[self.filled..])
    }

    /// Writes `length` bytes of [`Self::space`].
    pub fn fill(&mut self, length: usize) {
        self.filled = self.buffer.len().min(self.filled + length);
    }

    fn run<E: ToString>(mut self, write: impl FnOnce(&mut Self) -> Result<(), E>) {
        let written = write(&mut self).map_err(|error| io::Error::other(error.to_string()));
        if let Err(error) = written.and_then(|()| self.flush()) {
            // Nobody reads any more if this fails.
            let _ = self.sender.blocking_send(Err(error));
        }
    }

    /// A buffer that the receiver has dropped, or a new one.
    fn free_buffer(&mut self) -> BytesMut {
        match self.sent.pop_front().map(Bytes::try_into_mut) {
            Some(Ok(mut buffer)) => {
                buffer.resize(CHUNK, 0);
                buffer
            }
            Some(Err(in_use)) => {
                // The channel, the receiver and what is between them have the others.
                if self.sent.len() < 2 * WAITING {
                    self.sent.push_front(in_use);
                }
                BytesMut::zeroed(CHUNK)
            }
            None => BytesMut::zeroed(CHUNK),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = self.space()?;
        let length = bytes.len().min(space.len());
        space[..length].copy_from_slice(&bytes[..length]);
        self.fill(length);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled == 0 {
            return Ok(());
        }
        let mut full = std::mem::take(&mut self.buffer);
        full.truncate(self.filled);
        self.filled = 0;
        let full = full.freeze();
        self.sent.push_back(full.clone());
        self.sender
            .blocking_send(Ok(full))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Items of `CHUNK` bytes, each with its number in all of them, and a shorter one. `used_again` counts buffers that are not new: those
    /// contain an earlier item.
    fn numbered(used_again: &Arc<AtomicUsize>) -> ByteStream {
        let used_again = Arc::clone(used_again);
        written_by(move |output| {
            for number in 1..=ITEMS {
                let space = output.space()?;
                let is_new = space.len() == CHUNK && space.iter().all(|byte| *byte == 0);
                used_again.fetch_add(usize::from(!is_new), Ordering::Relaxed);
                space.fill(number);
                output.fill(CHUNK);
            }
            output.write_all(b"end")
        })
    }

    const ITEMS: u8 = 100;

    #[tokio::test]
    async fn buffers_are_used_again_after_the_receiver_has_dropped_them() {
        let used_again = Arc::default();
        let lengths = numbered(&used_again).map(|item| item.unwrap().len());
        let received = lengths.fold(0, async |sum, length| sum + length).await;
        assert_eq!(received, usize::from(ITEMS) * CHUNK + 3);
        let new = usize::from(ITEMS) - used_again.load(Ordering::Relaxed);
        assert!(new <= 2 * WAITING, "{new} new buffers");
    }

    #[tokio::test]
    async fn an_item_that_the_receiver_keeps_does_not_change() {
        let items: Vec<_> = numbered(&Arc::default())
            .map(Result::unwrap)
            .collect()
            .await;
        assert_eq!(items.len(), usize::from(ITEMS) + 1);
        for (item, number) in items.iter().zip(1..=ITEMS) {
            assert!(item.len() == CHUNK && item.iter().all(|byte| *byte == number));
        }
        assert_eq!(items[usize::from(ITEMS)], "end");
    }
}
