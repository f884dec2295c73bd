//! A socket that reports to its connection when the peer does not read, and a response body that reports when it has been sent.
//! Out of scope: the consequences ([`super::connections`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::connections::Connection;
use crate::clock;

/// A connection's socket; reports the progress of writes.
pub(super) struct MonitoredStream {
    stream: Arc<UnixStream>,
    connection: Arc<Connection>,
}

impl MonitoredStream {
    pub(super) fn new(stream: Arc<UnixStream>, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    /// The socket, no longer monitored.
    pub(super) fn into_socket(self) -> Arc<UnixStream> {
        self.stream
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Pending => self.connection.write_blocked(clock::monotonic()),
            Poll::Ready(Ok(_)) => self.connection.write_progressed(clock::monotonic()),
            Poll::Ready(Err(_)) => {}
        }
        result
    }
}

impl AsyncRead for MonitoredStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(context))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl MonitoredStream {
    fn poll_try_write(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for MonitoredStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.poll_try_write(context, |stream| stream.try_write(bytes));
        self.note(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.poll_try_write(context, |stream| stream.try_write_vectored(slices));
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this when it has written all data. A socket has no buffer of its own to flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.write_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shutdown = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
        Poll::Ready(shutdown.map_err(io::Error::from))
    }
}

/// A response body; reports its end when dropped.
pub(super) struct TrackedBody {
    body: Body,
    connection: Arc<Connection>,
    /// Held until the end of the body.
    _guard: Box<dyn Send>,
}

impl TrackedBody {
    pub(super) fn new(body: Body, connection: Arc<Connection>, guard: impl Send + 'static) -> Self {
        Self {
            body,
            connection,
            _guard: Box::new(guard),
        }
    }
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.connection.answered(clock::monotonic());
    }
}
