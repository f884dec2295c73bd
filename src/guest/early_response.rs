//! A stream to an HTTP server that may respond before it has read the whole request.
//! Out of scope: HTTP.
//!
//! # Why
//! A server that refuses a request responds and closes, without reading the body. The next write of the client fails, and hyper reports
//! that failure in place of the response, which is in the receive buffer. On this stream such a write succeeds, so the response is read;
//! if there is none, reading fails.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream.
#[derive(Debug)]
pub struct EarlyResponse<S> {
    inner: S,
    /// The server reads nothing any more.
    is_closed: bool,
}

impl<S> EarlyResponse<S> {
    /// The stream on a connection.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            is_closed: false,
        }
    }

    /// The connection.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The result of a write of `length` bytes: discarded bytes count as written.
    fn written(&mut self, result: io::Result<usize>, length: usize) -> io::Result<usize> {
        match result {
            Err(error) if is_closed(&error) => {
                self.is_closed = true;
                Ok(length)
            }
            result => result,
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

impl<S: AsyncRead + Unpin> AsyncRead for EarlyResponse<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for EarlyResponse<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_closed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = ready!(Pin::new(&mut self.inner).poll_write(context, bytes));
        Poll::Ready(self.written(result, bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.is_closed {
            return Poll::Ready(Ok(length));
        }
        let result = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, slices));
        Poll::Ready(self.written(result, length))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_flush(context));
        Poll::Ready(self.written(result.map(|()| 0), 0).map(drop))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_shutdown(context));
        Poll::Ready(self.written(result.map(|()| 0), 0).map(drop))
    }
}
