//! rtnetlink requests, with a check that each response is complete.
//! Out of scope: the messages (see `link`, `addr`, `route`, `neigh`).
//!
//! # Why not the connection of `rtnetlink`
//! Its request methods treat the end of the stream as the end of the response, so a connection that breaks in the middle
//! looks like a short list. Here an object that was not read must not be considered absent: a response without the kernel's DONE or ACK
//! is an error. And it needs a separate task, which would have to be woken for every request and to wake the caller. So only the messages
//! are built with `rtnetlink`, and a request is a send and a receive call of the caller, see [`socket`].

pub(in crate::host) mod socket;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, NlasIterator, ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkHeader, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::sync::{Mutex, MutexGuard};
use tracing::debug;

use self::socket::{DATAGRAM, POLL_INTERVAL, Part, Socket, TIMEOUT};
use super::{Error, rtnl};

/// The number of attempts of a dump that is interrupted by changes, before it fails with `Busy`.
const DUMP_ATTEMPTS: usize = 50;

/// The pause between two attempts: while hundreds of links are being created, most dumps are interrupted.
const DUMP_PAUSE: Duration = Duration::from_millis(2);

/// The number of datagrams after which the deadline of a response is checked.
const CLOCK_INTERVAL: u32 = 64;

thread_local! {
    /// The datagram that is being read: there are thousands of sockets, and each would need a buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(DATAGRAM));
}

/// An rtnetlink handle for one namespace. Cheap to clone; its sockets close with the last clone.
#[derive(Clone)]
pub struct Handle {
    sockets: Arc<[Mutex<Line>]>,
}

/// A socket, for one request at a time. The kernel supports one dump at a time per socket, and returns EBUSY for a second one
/// (`__netlink_dump_start`).
struct Line {
    socket: Socket,
    /// The last response was read completely, so that the next message belongs to the next request.
    in_sync: bool,
}

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
        self.request_consistent(message, NLM_F_ACK | flags)
            .await
            .map(drop)
    }

    /// Requests one object.
    pub(super) async fn get(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self.request_consistent(message, NLM_F_ACK).await?.pop())
    }

    /// Requests one object of a type for which the kernel sends the response to a multicast group, and to the requester only with ECHO
    /// (`rtnetlink_send`).
    pub(super) async fn get_echoed(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        Ok(self
            .request_consistent(message, NLM_F_ACK | NLM_F_ECHO)
            .await?
            .pop())
    }

    /// Requests all objects of a type; repeats the request if they changed meanwhile.
    pub(super) async fn dump(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.request_consistent(message.clone(), NLM_F_DUMP).await {
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

    async fn request_consistent(
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
        let mut line = self.idle_socket().await;
        let mut response = line.send(message, flags)?;
        let answer = loop {
            match line.advance(&mut response)? {
                Some(answer) => break answer,
                None => tokio::time::sleep(POLL_INTERVAL).await,
            }
        };
        line.in_sync = true;
        answer
    }
}

/// The requested objects, or the kernel's error.
type Answer = io::Result<(Vec<RouteNetlinkMessage>, Consistency)>;

/// A response that is being read.
struct Response {
    sequence: u32,
    datagrams: u32,
    /// The deadline, from the first time that the clock was read: a response is usually available at once and short.
    until: Option<Instant>,
    objects: Vec<RouteNetlinkMessage>,
    consistency: Consistency,
}

impl Line {
    fn open() -> io::Result<Self> {
        let socket = Socket::open(NETLINK_ROUTE)?;
        socket.inner().set_netlink_get_strict_chk(true)?;
        Ok(Self {
            socket,
            in_sync: true,
        })
    }

    /// Sends a request. Until its response was read completely, the socket is out of sync.
    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Response> {
        if !self.in_sync {
            self.socket.discard()?;
        }
        let sequence = self.socket.next_sequence();
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.in_sync = false;
        {
            let _guard = rtnl::lock_for_messages(&bytes);
            self.socket.send(&bytes)?;
        }
        Ok(Response {
            sequence,
            datagrams: 0,
            until: None,
            objects: Vec::new(),
            consistency: Consistency::Consistent,
        })
    }

    /// Reads what is available. `None`: the response is not complete. Fails if a part of it is missing.
    fn advance(&self, response: &mut Response) -> io::Result<Option<Answer>> {
        BUFFER.with_borrow_mut(|buffer| {
            while self.socket.receive(buffer)? {
                response.datagrams += 1;
                if response.datagrams.is_multiple_of(CLOCK_INTERVAL) {
                    response.check_deadline()?;
                }
                for message in self.socket.responses(buffer, response.sequence) {
                    if let Some(answer) = response.take(message?)? {
                        return Ok(Some(answer));
                    }
                }
            }
            response.check_deadline().map(|()| None)
        })
    }
}

impl Response {
    fn check_deadline(&mut self) -> io::Result<()> {
        let now = Instant::now();
        match now < *self.until.get_or_insert(now + TIMEOUT) {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Adds a message. The answer, if it is the last one.
    fn take(&mut self, message: socket::Message<'_>) -> io::Result<Option<Answer>> {
        if message.flags & NLM_F_DUMP_INTR != 0 {
            self.consistency = Consistency::Inconsistent;
        }
        match message.part()? {
            None => {}
            Some(Part::End(result)) => {
                let objects = std::mem::take(&mut self.objects);
                return Ok(Some(result.map(|()| (objects, self.consistency))));
            }
            Some(Part::Object(message)) => self.objects.push(object(&message)?),
        }
        Ok(None)
    }
}

/// Decodes an object. One that cannot be decoded is an error: omitted, it would count as absent.
fn object(message: &socket::Message<'_>) -> io::Result<RouteNetlinkMessage> {
    let invalid = |reason: String| {
        let why = format!("cannot decode a message of type {}: {reason}", message.kind);
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    match NetlinkMessage::deserialize(message.whole) {
        Ok(NetlinkMessage {
            payload: NetlinkPayload::InnerMessage(object),
            ..
        }) => Ok(object),
        Ok(_) => Err(invalid("unexpected payload".to_owned())),
        Err(error) if message.kind == libc::RTM_NEWLINK => {
            let link = partial_link(message.body).map_err(|_| invalid(error.to_string()))?;
            debug!(%error, index = link.header.index, "cannot decode an attribute of a link");
            Ok(RouteNetlinkMessage::NewLink(link))
        }
        Err(error) => Err(invalid(error.to_string())),
    }
}

/// The size of `struct ifinfomsg`, in bytes (linux/rtnetlink.h).
const LINK_HEADER_LEN: usize = 16;

/// A link without the attributes that cannot be decoded: one foreign link with an attribute of a newer kernel must not make all other links
/// unreadable. A link of ours that lacks one differs from the desired state, except for the master: links without one are converged, so
/// a master that cannot be decoded is an error.
fn partial_link(body: &[u8]) -> Result<LinkMessage, DecodeError> {
    let mut link = LinkMessage::default();
    link.header = LinkHeader::parse(body)?;
    let family = link.header.interface_family;
    for attribute in NlasIterator::new(body.get(LINK_HEADER_LEN..).unwrap_or_default()) {
        let attribute = attribute?;
        match LinkAttribute::parse_with_param(&attribute, family) {
            Ok(decoded) => link.attributes.push(decoded),
            Err(error) if attribute.kind() == libc::IFLA_MASTER => return Err(error),
            Err(_) => {}
        }
    }
    Ok(link)
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
    let mut line = Line::open()?;
    let mut response = line.send(message, NLM_F_ACK | flags)?;
    loop {
        match line.advance(&mut response)? {
            Some(answer) => return answer.map(drop),
            None => std::thread::sleep(POLL_INTERVAL),
        }
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
        let line = handle.sockets[0].lock().await;
        line.socket.inner().set_rx_buf_sz(bytes).expect("a size");
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
            set_receive_buffer(&handle, DATAGRAM as i32).await;
            let found = handle.get(loopback()).await.expect("an answer");
            assert!(found.is_some());
        }
    }
    #[tokio::test]
    async fn after_a_request_that_was_cancelled_the_next_one_gets_its_own_response() {
        let handle = Handle::open(NonZeroUsize::MIN).expect("a socket");
        for _ in 0..3 {
            // The ACK does not fit, so the response is never complete.
            set_receive_buffer(&handle, 1).await;
            let request = handle.get(loopback());
            let _ = tokio::time::timeout(Duration::from_millis(1), request).await;
            set_receive_buffer(&handle, DATAGRAM as i32).await;
            let mut absent = LinkMessage::default();
            absent.header.index = i32::MAX as u32;
            let absent = handle.get(RouteNetlinkMessage::GetLink(absent)).await;
            assert_eq!(absent.unwrap_err().raw_os_error(), Some(libc::ENODEV));
            let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
            assert!(!handle.dump(all).await.expect("a list").is_empty());
        }
    }

    /// A response to request 7, read message by message.
    fn read(messages: &[(u16, u16, &[u8])]) -> io::Result<Option<Answer>> {
        let mut response = Response {
            sequence: 7,
            datagrams: 0,
            until: None,
            objects: Vec::new(),
            consistency: Consistency::Consistent,
        };
        for (kind, flags, body) in messages {
            let mut bytes = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(7_u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(*body);
            for message in socket::messages(&bytes) {
                if let Some(answer) = response.take(message?)? {
                    return Ok(Some(answer));
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn a_response_is_complete_inconsistent_or_refused_and_never_short() {
        let link = (libc::RTM_NEWLINK, 0, &[0; 16][..]);
        let interrupted = (libc::RTM_NEWLINK, NLM_F_DUMP_INTR, &[0; 16][..]);
        let (done, ack) = ((3, 0, &[0; 4][..]), (2, 0, &[0; 20][..]));
        let errno = (-libc::EPERM).to_ne_bytes();
        let refused = (2, 0, &errno[..]);
        let failed = (3, 0, &errno[..]);
        // IFLA_IFNAME "a", and IFLA_MTU with one byte in place of four.
        let name_and_mtu = [6, 0, 3, 0, b'a', 0, 0, 0, 5, 0, 4, 0, 9, 0, 0, 0];
        let bad_link = [&[0; 16][..], &name_and_mtu].concat();
        // IFLA_MASTER with one byte.
        let bad_master = [&[0; 16][..], &[5, 0, 10, 0, 9, 0, 0, 0]].concat();
        // IFA_ADDRESS with one byte.
        let bad_address = [&[2, 24, 0, 0, 1, 0, 0, 0][..], &[5, 0, 1, 0, 9, 0, 0, 0]].concat();
        let outcome = |messages: &[(u16, u16, &[u8])]| match read(messages) {
            Ok(None) => "incomplete".to_owned(),
            Ok(Some(Ok((objects, consistency)))) => format!("{} {consistency:?}", objects.len()),
            Ok(Some(Err(error))) => format!("{:?}", error.raw_os_error()),
            Err(_) => "lost".to_owned(),
        };
        for (messages, expected) in [
            (&[link, link, done][..], "2 Consistent"),
            (&[link, interrupted, done], "2 Inconsistent"),
            (&[link, (3, NLM_F_DUMP_INTR, &[0; 4])], "1 Inconsistent"),
            (&[link, ack], "1 Consistent"),
            (&[ack], "0 Consistent"),
            (&[done], "0 Consistent"),
            (&[link, link], "incomplete"),
            (&[], "incomplete"),
            (&[link, refused], "Some(1)"),
            (&[link, failed], "Some(1)"),
            (&[link, (4, 0, &[])], "lost"),
            (&[link, (3, 0, &[])], "lost"),
            // What cannot be decoded is not omitted, except for attributes of a link.
            (&[link, (libc::RTM_NEWLINK, 0, &[0; 3]), done], "lost"),
            (
                &[link, (libc::RTM_NEWLINK, 0, &bad_link), done],
                "2 Consistent",
            ),
            // The desired state of many links is to have no master.
            (&[link, (libc::RTM_NEWLINK, 0, &bad_master), done], "lost"),
            (&[link, (libc::RTM_NEWROUTE, 0, &[0; 3]), done], "lost"),
            (&[link, (libc::RTM_NEWADDR, 0, &bad_address), done], "lost"),
        ] {
            assert_eq!(outcome(messages), expected, "{messages:?}");
        }
    }

    #[test]
    fn a_link_keeps_the_attributes_that_can_be_decoded() {
        let name_and_mtu = [6, 0, 3, 0, b'a', 0, 0, 0, 5, 0, 4, 0, 9, 0, 0, 0];
        let mut header = [0; 16];
        header[4] = 7;
        let link = partial_link(&[&header[..], &name_and_mtu].concat()).expect("a link");
        assert_eq!(link.header.index, 7);
        assert_eq!(link.attributes, [LinkAttribute::IfName("a".to_owned())]);
    }

    #[test]
    fn a_response_that_does_not_end_is_a_timeout() {
        let mut line = Line::open().expect("a socket");
        let mut response = line.send(loopback(), NLM_F_ACK).expect("sent");
        // Of another request, so that it never ends.
        response.sequence = line.socket.next_sequence();
        assert!(line.advance(&mut response).expect("in time").is_none());
        response.until = Some(Instant::now());
        let error = line.advance(&mut response).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // The same if datagrams keep coming.
        let mut response = line.send(loopback(), NLM_F_ACK).expect("sent");
        (response.until, response.datagrams) = (Some(Instant::now()), CLOCK_INTERVAL - 1);
        let error = line.advance(&mut response).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!line.in_sync);
    }
}
