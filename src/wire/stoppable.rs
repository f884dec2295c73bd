//! The body of a forwarded response, which ends with an error when the daemon stops.
//! Out of scope: where it comes from.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// The body of a response; it ends with an error when the daemon stops, so that a client does not take a part for the whole.
pub(super) struct StoppableBody<B> {
    body: B,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// An error that ends the body when it is polled again.
    error: Option<io::Error>,
}

impl<B> StoppableBody<B> {
    /// This body, until `stop`.
    pub(super) fn new(body: B, stop: CancellationToken) -> Self {
        Self {
            body,
            stop: Box::pin(stop.cancelled_owned()),
            error: None,
        }
    }

    /// Ends the body with an error, but only when it is polled again: hyper drops what it has buffered when a body fails, even the head
    /// of the response, and writes its buffer when a body is pending.
    fn fail(
        &mut self,
        error: io::Error,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.error = Some(error);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<B> Body for StoppableBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.stop.as_mut().poll(context).is_ready() {
            return self.fail(io::Error::other("the daemon stops"), context);
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => self.fail(io::Error::other(error), context),
            frame => frame.map_err(io::Error::other),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
