//! Listening sockets and connections: vsock(7) and Unix sockets behave alike.
//! Out of scope: what is sent.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
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
    /// Also a vsock connection: read(2), writev(2) and shutdown(2) are those of any stream socket. Unlike `AsyncFd`, it reads to memory
    /// that was not initialised, and hyper reads to new memory each time.
    socket: UnixStream,
    /// The place among the connections.
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// A connection that was accepted, and its place among all, which it leaves when its last copy is dropped.
    ///
    /// # Errors
    /// The descriptor cannot be registered.
    pub fn new(socket: OwnedFd, permit: OwnedSemaphorePermit) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            socket: UnixStream::from_std(socket.into())?,
            _permit: permit,
        })))
    }

    /// Waits until the peer has left, even if there is data that has not been read: `EPOLLRDHUP` or `EPOLLHUP`.
    pub async fn hangup(&self) {
        // Urgent data does not exist on these sockets: `PRIORITY` is only ready when the peer has closed its side.
        let _ = self.0.socket.ready(Interest::PRIORITY).await;
    }

    /// Calls `call` whenever the socket is ready, until it does not block.
    fn poll_try<T>(
        &self,
        context: &mut Context<'_>,
        ready: impl Fn(&UnixStream, &mut Context<'_>) -> Poll<io::Result<()>>,
        mut call: impl FnMut(&UnixStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(ready(&self.0.socket, context))?;
            match call(&self.0.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
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
        let read = |socket: &UnixStream| socket.try_read_buf(buffer).map(drop);
        self.poll_try(context, UnixStream::poll_read_ready, read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = |socket: &UnixStream| socket.try_write(bytes);
        self.poll_try(context, UnixStream::poll_write_ready, write)
    }

    /// Without it, hyper copies a body to a buffer of its own before each write.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = |socket: &UnixStream| socket.try_write_vectored(buffers);
        self.poll_try(context, UnixStream::poll_write_ready, write)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(&self.0.socket, Shutdown::Write)?))
    }
}
