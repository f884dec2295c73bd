//! Listening sockets and connections: vsock(7) and Unix sockets behave alike.
//! Out of scope: what is sent.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::super::async_fd::register;

/// The backlog: a VMM closes a connection that the guest does not queue.
const BACKLOG: i32 = 1024;

/// `VMADDR_CID_ANY` of vsock(7).
const CID_ANY: u32 = u32::MAX;

/// A socket that listens.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens on a port of vsock.
    ///
    /// # Errors
    /// The kernel has no vsock, or the port is in use.
    pub fn vsock(port: u32) -> io::Result<Self> {
        Self::new(Domain::VSOCK, &SockAddr::vsock(CID_ANY, port))
    }

    /// Listens on a Unix socket with the permissions 0600. A socket of an earlier agent is replaced.
    ///
    /// # Errors
    /// The path cannot be used.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let address = SockAddr::unix(path)?;
        if let Ok(metadata) = path.symlink_metadata()
            && std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type())
        {
            std::fs::remove_file(path)?;
        }
        // A socket without access for others from the start: bind(2) applies the umask.
        let umask = rustix::process::umask(rustix::fs::Mode::from_bits_retain(0o177));
        let listener = Self::new(Domain::UNIX, &address);
        rustix::process::umask(umask);
        listener
    }

    fn new(domain: Domain, address: &SockAddr) -> io::Result<Self> {
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?;
        Ok(Self(register(socket.into(), Interest::READABLE)?))
    }

    /// The next connection.
    ///
    /// # Errors
    /// There are no more descriptors or no memory.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |listener: &OwnedFd| Ok(accept_with(listener, flags)?);
        self.0.async_io(Interest::READABLE, accept).await
    }
}

/// A connection; copies are the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    /// The place among the connections.
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// A connection that was accepted, and its place among all, which it leaves when its last copy is dropped.
    ///
    /// # Errors
    /// The descriptor cannot be registered.
    pub fn new(socket: OwnedFd, permit: OwnedSemaphorePermit) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(Self(Arc::new(Shared {
            socket: register(socket, interest)?,
            _permit: permit,
        })))
    }

    /// Waits until the peer has left, even if there is data that has not been read: `EPOLLRDHUP` or `EPOLLHUP`.
    pub async fn hangup(&self) {
        loop {
            // Of all states, tokio wakes for `PRIORITY` only if there is urgent data, which these sockets do not have, or if the peer has
            // closed its side.
            match self.0.socket.ready(Interest::PRIORITY).await {
                Ok(mut guard) if !guard.ready().is_read_closed() => guard.clear_ready(),
                _ => return,
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.socket.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let read =
                guard.try_io(|socket| Ok(recv(socket, &mut *unfilled, RecvFlags::empty())?.0));
            if let Ok(result) = read {
                buffer.advance(result?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.socket.poll_write_ready(context))?;
            let sent = guard.try_io(|socket| Ok(send(socket, bytes, SendFlags::NOSIGNAL)?));
            if let Ok(result) = sent {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.0.socket.get_ref(), Shutdown::Write)?))
    }
}
