//! A netlink socket that is never waited for.
//! Not here: what is said over it.
//!
//! # Why
//! rtnetlink answers within the call that asks (`netlink_rcv_skb`), and continues a listing within the call that reads: what
//! there is to read is there when the question has been sent. So nobody need be woken by a runtime for it, and a question
//! costs its system calls and no change of thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::task::{Context, Poll};

use bytes::BufMut;
use netlink_sys::{AsyncSocket, Socket, SocketAddr};

/// Answers [`Poll::Pending`] for "nothing there", and wakes nobody: who polls it looks again by themselves.
pub(super) struct AtOnce(Socket);

impl AtOnce {
    /// The same socket for a new conversation, with what is left of the old one read away.
    pub(super) fn anew(&self) -> io::Result<Self> {
        // SAFETY: a socket owns its descriptor, which is open as long as it lives.
        let ours = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let copy = ours.try_clone_to_owned()?;
        // SAFETY: the descriptor is a netlink socket's, and nobody else has it.
        let anew = Self(unsafe { Socket::from_raw_fd(copy.into_raw_fd()) });
        let mut rest = Vec::with_capacity(super::ANSWER);
        loop {
            rest.clear();
            match anew.0.recv(&mut rest, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(anew),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsyncSocket for AtOnce {
    fn socket_ref(&self) -> &Socket {
        &self.0
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.0
    }

    /// In the calling thread's namespace.
    fn new(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    fn poll_send(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        there(self.0.send(bytes, 0))
    }

    fn poll_send_to(
        &self,
        _: &mut Context<'_>,
        bytes: &[u8],
        to: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        there(self.0.send_to(bytes, to, 0))
    }

    fn poll_recv<B: BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        there(self.0.recv(buffer, 0).map(drop))
    }

    fn poll_recv_from<B: BufMut>(
        &self,
        _: &mut Context<'_>,
        buffer: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        there(self.0.recv_from(buffer, 0).map(|(_, from)| from))
    }

    fn poll_recv_from_full(&self, _: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        there(self.0.recv_from_full())
    }
}

fn there<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        // `netlink-proto` would make it a message that answers no question, and whoever asked would wait for ever.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Poll::Ready(Err(
            io::Error::other("the kernel lost a part of its answer"),
        )),
        result => Poll::Ready(result),
    }
}
