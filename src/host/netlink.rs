//! Talking to the kernel over rtnetlink: ask, and know that the answer was whole.
//! Out of scope: what is asked (see `link`, `addr`, `route`, `neigh`).
//!
//! # Why
//! `rtnetlink`'s own verbs take the end of the stream for the end of the answer, so a connection that breaks half way
//! looks like a short list. To us unseen is not absent: this [`Handle`] has the kernel's own DONE and ACK forwarded, and
//! an answer without them is an error.
//!
//! Whoever asks drives the connection, instead of a task that would have to be woken for every question and to wake the asker.

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

/// How often a dump that the world changed under is begun again before we say `Busy`.
const DUMP_ROUNDS: usize = 50;

/// Between two rounds: while hundreds of links are being made, a quiet moment has to be waited for.
const DUMP_PAUSE: Duration = Duration::from_millis(2);

/// Before an answer is looked for again that was not there at once.
const LATE: Duration = Duration::from_millis(1);

/// How often it is looked for: some 5 s.
const LATEST: usize = 5000;

/// A socket's answers fit: the kernel never packs more than 32 KiB into one datagram (`netlink(7)`, `NLMSG_GOODSIZE`).
const ANSWER: usize = 64 * 1024;

/// A conversation with one namespace's rtnetlink. Cheap to clone; its sockets close with the last clone.
#[derive(Clone)]
pub struct Handle {
    lines: Arc<[Mutex<Line>]>,
}

/// A socket: one question at a time. The kernel has one listing under way a socket, and answers EBUSY to a second one
/// (`__netlink_dump_start`).
struct Line {
    asker: rtnetlink::Handle,
    connection: Connection,
    /// The last question was answered to the end, so that what is read next belongs to the next one.
    sound: bool,
}

type Connection = rtnetlink::proto::Connection<RouteNetlinkMessage, AtOnce>;

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Opens sockets in the calling thread's namespace: as many as there will be who ask at the same time.
    pub(super) fn open(sockets: NonZeroUsize) -> io::Result<Self> {
        let lines = (0..sockets.get()).map(|_| Line::open().map(Mutex::new));
        Ok(Self {
            lines: lines.collect::<io::Result<_>>()?,
        })
    }

    /// Asks for a change and waits until the kernel has made it. `flags` beside REQUEST and ACK.
    pub(super) async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for one thing.
    pub(super) async fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.ask(message, NLM_F_ACK).await?.pop())
    }

    /// Asks for one thing of those that the kernel tells to a group, and to who asked only with ECHO (`rtnetlink_send`).
    pub(super) async fn get_echoed(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.ask(message, NLM_F_ACK | NLM_F_ECHO).await?.pop())
    }

    /// Asks for all things of a sort, again if they changed while we listened.
    pub(super) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ROUNDS {
            match self.ask(message.clone(), NLM_F_DUMP).await {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {
                    tokio::time::sleep(DUMP_PAUSE).await;
                }
                answer => return answer,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Asks for all things of a sort on one link: they fit one datagram, so that the answer is one moment's, whatever
    /// changes on other links meanwhile. (The kernel counts all changes of a sort in one counter, `inet_base_seq`.)
    pub(super) async fn dump_of_one(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let (answer, _) = self.ask_for_all(message, NLM_F_DUMP).await?;
        Ok(answer)
    }

    async fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        match self.ask_for_all(message, flags).await? {
            (answer, Wholeness::OneMoment) => Ok(answer),
            (_, Wholeness::Torn) => Err(io::Error::from_raw_os_error(libc::EINTR)),
        }
    }

    /// One that nobody uses; if there is none, the first, in turn.
    async fn free_line(&self) -> MutexGuard<'_, Line> {
        match self.lines.iter().find_map(|line| line.try_lock().ok()) {
            Some(free) => free,
            None => self.lines[0].lock().await,
        }
    }

    async fn ask_for_all(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, Wholeness)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut line = self.free_line().await;
        line.ready()?;
        line.sound = false;
        let answer = line.ask(request).await;
        line.sound = answer.is_ok();
        answer?
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
            asker,
            connection,
            sound: true,
        }
    }

    /// After an answer that was not whole, or that nobody waited for to the end, a conversation begins anew.
    fn ready(&mut self) -> io::Result<()> {
        if !self.sound {
            *self = Self::over(self.connection.socket_mut().anew()?);
        }
        Ok(())
    }

    /// The kernel's answer, be it a refusal. Fails when it is not whole.
    async fn ask(&mut self, request: NetlinkMessage<RouteNetlinkMessage>) -> io::Result<Answer> {
        let Self {
            asker, connection, ..
        } = self;
        let mut answers = asker
            .request(request)
            .map_err(|_| broken("the netlink connection is gone"))?;
        let mut answer = Vec::new();
        let mut whole = Wholeness::OneMoment;
        while let Some(part) = next(connection, &mut answers).await? {
            if part.header.flags & NLM_F_DUMP_INTR != 0 {
                whole = Wholeness::Torn;
            }
            match part.payload {
                NetlinkPayload::InnerMessage(inner) => answer.push(inner),
                NetlinkPayload::Done(done) if done.code == 0 => return Ok(Ok((answer, whole))),
                NetlinkPayload::Done(done) => {
                    return Ok(Err(io::Error::from_raw_os_error(done.code.abs())));
                }
                NetlinkPayload::Error(ack) if ack.code.is_none() => {
                    return Ok(Ok((answer, whole)));
                }
                NetlinkPayload::Error(error) => return Ok(Err(error.to_io())),
                _ => return Err(broken("the kernel lost a part of its answer")),
            }
        }
        Err(broken(
            "the netlink connection broke before the answer was whole",
        ))
    }
}

/// What was asked for, or the kernel's refusal.
type Answer = io::Result<(Vec<RouteNetlinkMessage>, Wholeness)>;

/// The next part of an answer. `None`: the connection is shut.
async fn next<T>(
    connection: &mut Connection,
    answers: &mut (impl Stream<Item = T> + Unpin),
) -> io::Result<Option<T>> {
    for _ in 0..LATEST {
        if let Some(part) = answers.next().now_or_never() {
            return Ok(part);
        }
        drive(connection).await;
        match answers.next().now_or_never() {
            Some(part) => return Ok(part),
            None if connection.should_shut_down() => return Ok(None),
            None => tokio::time::sleep(LATE).await,
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Sends what is to be sent, and reads what is there.
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

/// Whether an answer of several datagrams tells of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wholeness {
    OneMoment,
    /// The world changed while it was told.
    Torn,
}

/// Asks for a change over a socket opened for it in the calling thread's namespace, without a runtime. Blocks.
pub(super) fn change_here(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE)?;
    // SAFETY: the socket owns its descriptor, which is open as long as it lives.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    rustix::net::sockopt::set_socket_timeout(fd, Timeout::Recv, Some(LATE * LATEST as u32))?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut buffer = bytes::BytesMut::with_capacity(ANSWER);
    socket.recv(&mut buffer, 0)?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer)
        .map_err(io::Error::other)?
        .payload
    {
        NetlinkPayload::Error(answer) if answer.code.is_none() => Ok(()),
        NetlinkPayload::Error(answer) => Err(answer.to_io()),
        _ => Err(broken("the kernel answered a change with something else")),
    }
}

/// An answer of a sort that was not asked for.
pub(super) fn unexpected(doing: &'static str, thing: impl Into<String>) -> Error {
    Error::other(doing, thing, "the kernel answered with something else")
}

/// `ENODEV` and its like as `None`; every other failure stays one.
pub(super) fn absent_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::Absent => Ok(None),
        Err(error) => Err(error),
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, why)
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

    async fn set_room(handle: &Handle, bytes: i32) {
        let mut line = handle.lines[0].lock().await;
        let socket = line.connection.socket_mut().socket_ref();
        socket.set_rx_buf_sz(bytes).expect("a size");
    }

    #[tokio::test]
    async fn a_question_whose_answer_was_lost_fails_soon_and_the_next_one_is_answered() {
        let handle = Handle::open(NonZeroUsize::MIN).expect("a socket");
        handle.get(loopback()).await.expect("an answer");
        for _ in 0..2 {
            // The kernel's least holds the answer, but not its ACK.
            set_room(&handle, 1).await;
            let asked = tokio::time::timeout(Duration::from_secs(2), handle.get(loopback()));
            let lost = asked.await.expect("it ends");
            lost.expect_err("a part was lost");
            set_room(&handle, ANSWER as i32).await;
            let found = handle.get(loopback()).await.expect("an answer");
            assert!(found.is_some());
        }
    }
}
