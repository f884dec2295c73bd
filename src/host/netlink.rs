//! rtnetlink requests, with a check that each response is complete.
//! Out of scope: the messages (see `link`, `addr`, `route`, `neigh`).
//!
//! # Why
//! The request methods of `rtnetlink` treat the end of the stream as the end of the response, so a connection that breaks in the middle
//! looks like a short list. Here an object that was not read must not be considered absent: this [`Handle`] forwards the kernel's
//! DONE and ACK messages, and a response without them is an error.
//!
//! The caller drives the connection, instead of a separate task that would have to be woken for every request and to wake the caller.

mod at_once;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, protocols::NETLINK_ROUTE};

use rustix::net::sockopt::Timeout;
use tokio::sync::{Mutex, MutexGuard};

use self::at_once::AtOnce;
use super::{Error, Kind};

/// The number of attempts of a dump that is interrupted by changes, before it fails with `Busy`.
const DUMP_ATTEMPTS: usize = 50;

/// The pause between two attempts: while hundreds of links are being created, most dumps are interrupted.
const DUMP_PAUSE: Duration = Duration::from_millis(2);

/// The poll interval for a response that was not available immediately.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The maximum number of polls: about 5 s.
const MAX_POLLS: usize = 5000;

/// The receive buffer, in bytes: the kernel never sends more than 32 KiB in one datagram (`netlink(7)`, `NLMSG_GOODSIZE`).
const ANSWER: usize = 64 * 1024;

/// An rtnetlink handle for one namespace. Cheap to clone; its sockets close with the last clone.
#[derive(Clone)]
pub struct Handle {
    sockets: Arc<[Mutex<Line>]>,
}

/// A socket, for one request at a time. The kernel supports one dump at a time per socket, and returns EBUSY for a second one
/// (`__netlink_dump_start`).
struct Line {
    handle: rtnetlink::Handle,
    connection: Connection,
    /// The last response was read completely, so that the next message belongs to the next request.
    in_sync: bool,
}

type Connection = rtnetlink::proto::Connection<RouteNetlinkMessage, AtOnce>;

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Opens sockets in the calling thread's namespace, one for each concurrent request.
    pub(super) fn open(sockets: NonZeroUsize) -> io::Result<Self> {
        let lines = (0..sockets.get()).map(|_| Line::open().map(Mutex::new));
        Ok(Self {
            sockets: lines.collect::<io::Result<_>>()?,
        })
    }

    /// Requests a change and waits until the kernel has made it. `flags` are added to REQUEST and ACK.
    pub(super) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Requests one object.
    pub(super) async fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.ask(message, NLM_F_ACK).await?.pop())
    }

    /// Requests one object of a type for which the kernel sends the response to a multicast group, and to the requester only with ECHO
    /// (`rtnetlink_send`).
    pub(super) async fn get_echoed(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.ask(message, NLM_F_ACK | NLM_F_ECHO).await?.pop())
    }

    /// Requests all objects of a type; repeats the request if they changed meanwhile.
    pub(super) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.ask(message.clone(), NLM_F_DUMP).await {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {
                    tokio::time::sleep(DUMP_PAUSE).await;
                }
                answer => return answer,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Requests all objects of a type on one link: they fit in one datagram, so that the response is consistent even if
    /// other links change meanwhile. (The kernel has one counter for all changes of a type, `inet_base_seq`.)
    pub(super) async fn dump_single_link(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let (answer, _) = self.request(message, NLM_F_DUMP).await?;
        Ok(answer)
    }

    async fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        match self.request(message, flags).await? {
            (answer, Consistency::Consistent) => Ok(answer),
            (_, Consistency::Inconsistent) => Err(io::Error::from_raw_os_error(libc::EINTR)),
        }
    }

    /// A socket that is not in use; if there is none, waits for the first one.
    async fn idle_socket(&self) -> MutexGuard<'_, Line> {
        match self
            .sockets
            .iter()
            .find_map(|socket| socket.try_lock().ok())
        {
            Some(free) => free,
            None => self.sockets[0].lock().await,
        }
    }

    async fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, Consistency)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut socket = self.idle_socket().await;
        socket.ready()?;
        socket.in_sync = false;
        let response = socket.ask(request).await;
        socket.in_sync = response.is_ok();
        response?
    }
}

impl Line {
    fn open() -> io::Result<Self> {
        let socket = AtOnce::new(NETLINK_ROUTE)?;
        socket.socket_ref().set_netlink_get_strict_chk(true)?;
        Ok(Self::over(socket))
    }

    fn over(socket: AtOnce) -> Self {
        let (mut connection, asker, _unsolicited) = rtnetlink::from_socket(socket);
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        Self {
            handle: asker,
            connection,
            in_sync: true,
        }
    }

    /// Resets the socket after a response that was incomplete or not read to the end.
    fn ready(&mut self) -> io::Result<()> {
        if !self.in_sync {
            *self = Self::over(self.connection.socket_mut().reset()?);
        }
        Ok(())
    }

    /// The kernel's response, which may be an error. Fails if it is incomplete.
    async fn ask(&mut self, request: NetlinkMessage<RouteNetlinkMessage>) -> io::Result<Answer> {
        let Self {
            handle: asker,
            connection,
            ..
        } = self;
        let mut responses = asker
            .request(request)
            .map_err(|_| broken("the netlink connection is closed"))?;
        let mut answer = Vec::new();
        let mut consistency = Consistency::Consistent;
        while let Some(part) = next(connection, &mut responses).await? {
            if part.header.flags & NLM_F_DUMP_INTR != 0 {
                consistency = Consistency::Inconsistent;
            }
            match part.payload {
                NetlinkPayload::InnerMessage(inner) => answer.push(inner),
                NetlinkPayload::Done(done) if done.code == 0 => {
                    return Ok(Ok((answer, consistency)));
                }
                NetlinkPayload::Done(done) => {
                    return Ok(Err(io::Error::from_raw_os_error(done.code.abs())));
                }
                NetlinkPayload::Error(ack) if ack.code.is_none() => {
                    return Ok(Ok((answer, consistency)));
                }
                NetlinkPayload::Error(error) => return Ok(Err(error.to_io())),
                _ => return Err(broken("a part of the kernel's response was lost")),
            }
        }
        Err(broken(
            "the netlink connection closed before the response was complete",
        ))
    }
}

/// The requested objects, or the kernel's error.
type Answer = io::Result<(Vec<RouteNetlinkMessage>, Consistency)>;

/// The next message of a response. `None`: the connection is closed.
async fn next<T>(
    connection: &mut Connection,
    responses: &mut (impl Stream<Item = T> + Unpin),
) -> io::Result<Option<T>> {
    for _ in 0..MAX_POLLS {
        if let Some(part) = responses.next().now_or_never() {
            return Ok(part);
        }
        drive(connection).await;
        match responses.next().now_or_never() {
            Some(part) => return Ok(part),
            None if connection.should_shut_down() => return Ok(None),
            None => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Sends queued requests and reads available messages.
async fn drive(connection: &mut Connection) {
    std::future::poll_fn(|context| {
        connection.poll_requests(context);
        connection.poll_send_messages(context);
        connection.poll_read_messages(context);
        connection.forward_unsolicited_messages();
        connection.forward_responses();
        Poll::Ready(())
    })
    .await;
}

/// Whether a response of several datagrams is a consistent snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consistency {
    Consistent,
    /// Objects changed during the dump (`NLM_F_DUMP_INTR`).
    Inconsistent,
}

/// Requests a change over a new socket in the calling thread's namespace, without a runtime. Blocks.
pub(super) fn change_blocking(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    // SAFETY: the socket owns its descriptor, which is open as long as it lives.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    rustix::net::sockopt::set_socket_timeout(
        fd,
        Timeout::Recv,
        Some(POLL_INTERVAL * MAX_POLLS as u32),
    )?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut buffer = bytes::BytesMut::with_capacity(ANSWER);
    socket.recv(&mut buffer, 0)?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer)
        .map_err(io::Error::other)?
        .payload
    {
        NetlinkPayload::Error(answer) if answer.code.is_none() => Ok(()),
        NetlinkPayload::Error(answer) => Err(answer.to_io()),
        _ => Err(broken("unexpected response of the kernel to a change")),
    }
}

/// The error for a response with an unexpected message type.
pub(super) fn unexpected(operation: &'static str, object: impl Into<String>) -> Error {
    Error::other(
        operation,
        object,
        "unexpected message type in the kernel's response",
    )
}

/// Converts `ENODEV` and similar errors to `None`; returns any other error.
pub(super) fn absent_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::Absent => Ok(None),
        Err(error) => Err(error),
    }
}

fn broken(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, message)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    fn loopback() -> RouteNetlinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 1;
        RouteNetlinkMessage::GetLink(message)
    }

    async fn set_receive_buffer(handle: &Handle, bytes: i32) {
        let mut line = handle.sockets[0].lock().await;
        let socket = line.connection.socket_mut().socket_ref();
        socket.set_rx_buf_sz(bytes).expect("a size");
    }

    #[tokio::test]
    async fn a_request_with_a_lost_response_fails_soon_and_the_next_one_succeeds() {
        let handle = Handle::open(NonZeroUsize::MIN).expect("a socket");
        handle.get(loopback()).await.expect("an answer");
        for _ in 0..2 {
            // The kernel's minimum size holds the response, but not its ACK.
            set_receive_buffer(&handle, 1).await;
            let response = tokio::time::timeout(Duration::from_secs(2), handle.get(loopback()));
            let lost = response.await.expect("it ends");
            lost.expect_err("a part was lost");
            set_receive_buffer(&handle, ANSWER as i32).await;
            let found = handle.get(loopback()).await.expect("an answer");
            assert!(found.is_some());
        }
    }
}
