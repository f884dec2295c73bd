//! A socket that reports to its connection when the peer does not read, and a response body that reports when it has been sent.
//! Out of scope: the consequences ([`super::connections`]).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connections::Connection;
use super::stream::SharedSocket;
use crate::clock;

/// A connection's socket; reports the progress of writes. Below TLS, if there is any.
pub(super) struct MonitoredStream {
    socket: SharedSocket,
    connection: Arc<Connection>,
}

impl MonitoredStream {
    pub(super) fn new(socket: SharedSocket, connection: Arc<Connection>) -> Self {
        Self { socket, connection }
    }

    /// The socket.
    pub(super) fn socket(&self) -> &SharedSocket {
        &self.socket
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
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for MonitoredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this when it has written all data, through TLS if there is any.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.write_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
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
