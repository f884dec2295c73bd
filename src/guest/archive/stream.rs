//! Async streams of bytes, for code on threads that block.
//! Out of scope: what the bytes are.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// A stream of bytes; an error ends it.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Bytes in one item, and items that wait for the reader: the memory that a copy needs.
const CHUNK: usize = 64 << 10;
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
    let writer = Writer {
        buffer: BytesMut::with_capacity(CHUNK),
        sender,
    };
    let stream = stream::unfold(
        receiver,
        |mut receiver: mpsc::Receiver<io::Result<Bytes>>| async {
            receiver.recv().await.map(|item| (item, receiver))
        },
    );
    (writer, stream.boxed())
}

/// Sends what is written.
pub struct Writer {
    buffer: BytesMut,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Writer {
    fn run<E: ToString>(mut self, write: impl FnOnce(&mut Self) -> Result<(), E>) {
        let written = write(&mut self).map_err(|error| io::Error::other(error.to_string()));
        if let Err(error) = written.and_then(|()| self.flush()) {
            // Nobody reads any more if this fails.
            let _ = self.sender.blocking_send(Err(error));
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(CHUNK));
        self.sender
            .blocking_send(Ok(full.freeze()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
