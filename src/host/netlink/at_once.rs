//! A netlink socket that is never registered with a reactor.
//! Out of scope: the messages that are sent over it.
//!
//! # Why
//! rtnetlink responds within the send call (`netlink_rcv_skb`), and continues a dump within the receive call: the
//! response is available when the request has been sent. So the runtime need not wake a task for it, and a request
//! costs its system calls and no thread switch. After the end of a response there is nothing to read until the next request, and
//! a caller that reads once more, as `netlink-proto` does, gets that result without a system call.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::BufMut;
use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{AsyncSocket, Socket, SocketAddr};

use crate::host::rtnl;

/// Returns [`Poll::Pending`] if there is nothing to read, without registering a waker: the caller polls again by itself.
pub(super) struct AtOnce {
    socket: Socket,
    /// The last response was read completely.
    response_complete: AtomicBool,
}

thread_local! {
    /// The buffer for a datagram before it is copied to the caller.
    static DATAGRAM: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(super::ANSWER));
}

impl AtOnce {
    fn over(socket: Socket) -> Self {
        Self {
            socket,
            response_complete: AtomicBool::new(false),
        }
    }

    /// Sends a request and records that its response is outstanding.
    fn ask<T>(&self, send: impl FnOnce(&Socket) -> io::Result<T>) -> Poll<io::Result<T>> {
        self.response_complete.store(false, Ordering::Relaxed);
        there(send(&self.socket))
    }

    fn receive(&self, buffer: &mut impl BufMut) -> Poll<io::Result<SocketAddr>> {
        if self.response_complete.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        there(DATAGRAM.with_borrow_mut(|datagram| {
            datagram.clear();
            let (_, from) = self.socket.recv_from(datagram, 0)?;
            self.response_complete
                .store(ends(datagram), Ordering::Relaxed);
            buffer.put_slice(datagram);
            Ok(from)
        }))
    }

    /// The same socket for a new connection; discards unread messages.
    pub(super) fn reset(&self) -> io::Result<Self> {
        // SAFETY: a socket owns its descriptor, which is open as long as it lives.
        let borrowed = unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) };
        let copy = borrowed.try_clone_to_owned()?;
        // SAFETY: the descriptor is a netlink socket and has no other owner.
        let socket = Self::over(unsafe { Socket::from_raw_fd(copy.into_raw_fd()) });
        let mut rest = Vec::with_capacity(super::ANSWER);
        loop {
            rest.clear();
            match socket.socket.recv(&mut rest, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(socket),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsyncSocket for AtOnce {
    fn socket_ref(&self) -> &Socket {
        &self.socket
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// In the calling thread's namespace.
    fn new(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        Ok(Self::over(socket))
    }

    fn poll_send(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.ask(|socket| {
            let _guard = rtnl::lock_for_messages(bytes);
            socket.send(bytes, 0)
        })
    }

    fn poll_send_to(
        &self,
        _: &mut Context<'_>,
        bytes: &[u8],
        to: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.ask(|socket| {
            let _guard = rtnl::lock_for_messages(bytes);
            socket.send_to(bytes, to, 0)
        })
    }

    fn poll_recv<B: BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.receive(buffer).map_ok(drop)
    }

    fn poll_recv_from<B: BufMut>(
        &self,
        _: &mut Context<'_>,
        buffer: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        self.receive(buffer)
    }

    fn poll_recv_from_full(&self, _: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let mut datagram = Vec::with_capacity(super::ANSWER);
        self.receive(&mut datagram).map_ok(|from| (datagram, from))
    }
}

/// Whether the last message of a datagram ends a response: every request has `NLM_F_ACK` or `NLM_F_DUMP`.
fn ends(mut datagram: &[u8]) -> bool {
    let mut last = None;
    while let Some(header) = datagram.first_chunk::<8>() {
        let [a, b, c, d, kind @ .., _, _] = *header;
        last = Some(u16::from_ne_bytes(kind));
        // A message is at least as long as its header of 16 bytes.
        let length = (u32::from_ne_bytes([a, b, c, d]) as usize).max(16);
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    matches!(last, Some(NLMSG_DONE | NLMSG_ERROR))
}

fn there<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        // `netlink-proto` would forward it as an unsolicited message, and the requester would wait indefinitely.
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Poll::Ready(Err(
            io::Error::other("a part of the kernel's response was lost"),
        )),
        result => Poll::Ready(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: usize) -> Vec<u8> {
        let length = (16 + body) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize((length as usize).next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_response_ends_with_its_done_or_ack() {
        let (link, ack, done) = (message(16, 30), message(2, 20), message(3, 4));
        for (datagram, expected) in [
            (vec![], false),
            (link.clone(), false),
            (ack.clone(), true),
            (done.clone(), true),
            ([link.clone(), link.clone()].concat(), false),
            ([link.clone(), done.clone()].concat(), true),
            ([link.clone(), ack.clone()].concat(), true),
            ([done, link.clone()].concat(), false),
            (link[..12].to_vec(), false),
            (vec![0; 7], false),
            (vec![0; 64], false),
            ([vec![255; 4], ack[4..].to_vec()].concat(), true),
        ] {
            assert_eq!(ends(&datagram), expected, "{datagram:?}");
        }
    }
}
