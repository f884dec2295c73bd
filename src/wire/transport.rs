//! What HTTP is spoken on: a socket, or TLS on a socket.
//! Out of scope: certificates (`api_server`), HTTP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::server::TlsStream;

use super::guarded::MonitoredStream;
use super::stream::SharedSocket;

/// A connection of a client.
pub(super) enum Transport {
    /// Not encrypted.
    Plain(MonitoredStream),
    /// TLS.
    Tls(Box<TlsStream<MonitoredStream>>),
}

impl Transport {
    /// The socket. It must not be written if there is TLS on it.
    pub(super) fn socket(&self) -> &SharedSocket {
        match self {
            Self::Plain(stream) => stream.socket(),
            Self::Tls(stream) => stream.get_ref().0.socket(),
        }
    }
}

impl Transport {
    /// The certificates of the client, if it has sent any.
    pub(super) fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.peer_certificates(),
        }
    }
}

/// The inner stream as an object.
macro_rules! inner {
    ($this:expr) => {
        match $this.get_mut() {
            Self::Plain(stream) => Pin::new(stream) as Pin<&mut (dyn Stream + Send)>,
            Self::Tls(stream) => Pin::new(stream.as_mut()) as Pin<&mut (dyn Stream + Send)>,
        }
    };
}

trait Stream: AsyncRead + AsyncWrite {}

impl<S: AsyncRead + AsyncWrite> Stream for S {}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        inner!(self).poll_read(context, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        inner!(self).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inner!(self).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        inner!(self).poll_shutdown(context)
    }
}
