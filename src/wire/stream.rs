//! The socket of a connection: of a Unix or of a TCP listener.
//! Out of scope: TLS ([`super::transport`]), what is written and read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A TCP peer that has vanished without a word (its host lost power, a firewall lost its state) is noticed after about two minutes.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;
/// How long data may be unconfirmed by the host of the peer (tcp(7), `TCP_USER_TIMEOUT`).
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// Of a Unix listener.
    Unix(UnixStream),
    /// Of a TCP listener.
    Tcp(TcpStream),
}

/// Calls a method that both types have.
macro_rules! each {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Unix($stream) => $call,
            Socket::Tcp($stream) => $call,
        }
    };
}

impl Socket {
    /// A TCP connection; its end is noticed even if its peer does not close it.
    pub(super) fn of_tcp(stream: TcpStream) -> io::Result<Self> {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_TIME)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        let options = SockRef::from(&stream);
        options.set_tcp_keepalive(&keepalive)?;
        options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        // A response is written at once; small messages of a shell must not wait for confirmations.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Writes without waiting.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, stream => stream.try_write(bytes))
    }

    /// Returns when the peer has closed the connection or its side of it, even while nobody reads what it has sent before.
    pub(super) async fn closed_by_peer(&self) {
        // EPOLLHUP and EPOLLRDHUP are reported to those that wait for priority data, for which the sockets are not registered; those that
        // wait for data would be woken by data.
        let _ = each!(self, stream => stream.ready(Interest::PRIORITY).await);
    }

    fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(each!(self, stream => stream.poll_read_ready(context)))?;
            let unfilled = buffer.initialize_unfilled();
            match each!(self, stream => stream.try_read(unfilled)) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_try_write(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&Self) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(each!(self, stream => stream.poll_write_ready(context)))?;
            match write(self) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

/// A handle of a socket, which reads and writes it. The socket is closed with its last handle.
#[derive(Clone, Debug)]
pub(super) struct SharedSocket(pub(super) Arc<Socket>);

impl AsyncRead for SharedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(context, buffer)
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0
            .poll_try_write(context, |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_try_write(
            context,
            |socket| each!(socket, stream => stream.try_write_vectored(slices)),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket has no buffer of its own to flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let how = rustix::net::Shutdown::Write;
        let result = each!(&*self.0, stream => rustix::net::shutdown(stream, how));
        Poll::Ready(result.map_err(io::Error::from))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn tcp_pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap());
        let (theirs, accepted) = tokio::join!(theirs, listener.accept());
        (
            Socket::of_tcp(accepted.unwrap().0).unwrap(),
            theirs.unwrap(),
        )
    }

    async fn is_open(socket: &Socket) -> bool {
        let short = Duration::from_millis(50);
        let closed = tokio::time::timeout(short, socket.closed_by_peer());
        closed.await.is_err()
    }

    async fn notices_a_peer_that_has_closed(local: Socket, mut theirs: impl AsyncWriteExt + Unpin) {
        assert!(is_open(&local).await);
        theirs.write_all(b"data").await.unwrap();
        each!(&local, stream => stream.readable().await.unwrap());
        assert!(is_open(&local).await, "it has sent data");
        drop(theirs);
        local.closed_by_peer().await;
        let mut buffer = [0; 8];
        let count = each!(&local, stream => stream.try_read(&mut buffer));
        assert_eq!(count.unwrap(), 4, "it can be read");
    }

    #[tokio::test]
    async fn a_peer_that_has_closed_is_noticed_while_its_data_is_not_read() {
        let (local, theirs) = UnixStream::pair().unwrap();
        notices_a_peer_that_has_closed(Socket::Unix(local), theirs).await;
        let (local, theirs) = tcp_pair().await;
        notices_a_peer_that_has_closed(local, theirs).await;
    }

    #[tokio::test]
    async fn urgent_data_does_not_end_a_connection() {
        let (local, theirs) = tcp_pair().await;
        SockRef::from(&theirs).send_out_of_band(b"!").unwrap();
        assert!(is_open(&local).await);
    }
}
