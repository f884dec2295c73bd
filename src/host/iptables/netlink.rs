//! nfnetlink messages, used by nf_tables and conntrack, in the calling thread's network namespace.
//! Out of scope: the meaning of the messages.
//!
//! # Why
//! `netlink-packet-*` does not support nf_tables, and a tool needs a process; headers and attributes are few lines of code.
//! Format: linux/netlink.h, linux/netfilter/nfnetlink.h.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::sockopt::Timeout;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::host::Error;

/// `NFNL_SUBSYS_NFTABLES << 8`.
pub const NFTABLES: u16 = 10 << 8;
/// `NFNL_SUBSYS_CTNETLINK << 8`.
pub const CONNTRACK: u16 = 1 << 8;

/// `NFNL_SUBSYS_CTNETLINK_TIMEOUT << 8`.
pub const TIMEOUTS: u16 = 8 << 8;

/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub const EXCLUSIVE: u16 = 0x200;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const GETGEN: u16 = NFTABLES | 16;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// In bytes: the kernel fills dump messages up to the reader's buffer size, at most 32 KiB (`netlink_dump`).
const BUFFER: usize = 32 * 1024;
/// The kernel responds within the send call, so that a timeout only occurs if the response was lost (ENOBUFS, a full receive buffer).
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A message under construction.
pub struct Message(Vec<u8>);

impl Message {
    /// `kind` is subsystem and message type; `family` is AF_INET or AF_INET6.
    pub fn new(kind: u16, flags: u16, family: u8) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend([family, 0, 0, 0]);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        push_attr(&mut self.0, kind, value);
        self
    }

    /// Adds a NUL-terminated string attribute.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.attr(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn finish(&mut self, flags: u16, sequence: u32) -> &[u8] {
        let length = self.0.len() as u32;
        let flags = u16_ne(&self.0[6..8]) | flags;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// Appends an attribute to `bytes`, for nested attributes.
pub fn push_attr(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((value.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// `NLA_F_NESTED`.
pub const NESTED: u16 = 0x8000;

/// Iterates over attributes: type without flags, and value. Stops at malformed data.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_ne(bytes.get(0..2)?));
        let kind = u16_ne(bytes.get(2..4)?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A big-endian number, as used by nf_tables and conntrack.
pub fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// A NUL-terminated string. Invalid UTF-8 is replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u16_ne(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

fn u32_ne(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A socket of the network namespace that the calling thread was in when it was opened.
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netfilter {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let socket = Socket::new(NETLINK_NETFILTER)?;
            // SAFETY: the socket owns its descriptor, which is open as long as it lives.
            let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
            for timeout in [Timeout::Recv, Timeout::Send] {
                rustix::net::sockopt::set_socket_timeout(fd, timeout, Some(RESPONSE_TIMEOUT))?;
            }
            // Also binds it (`netlink_connect`).
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|e| Error::io("open", "a netfilter socket", e))?,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Requests a dump and passes the attributes of each message to `each`. [`Busy`](crate::host::Kind::Busy): the list changed
    /// during the dump and may be inconsistent.
    pub fn dump(
        &mut self,
        object: &'static str,
        message: Message,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        self.dump_until(object, message, |attributes| {
            each(attributes);
            ControlFlow::Continue(())
        })
    }

    /// The same, until `each` returns `Break`. The kernel generates a dump as it is read, so an unread rest costs nothing; but it starts no
    /// other dump on the same socket before: a new socket is opened.
    pub fn dump_until(
        &mut self,
        object: &'static str,
        message: Message,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut stopped = false;
        let listed = self.list(message, |body| {
            let found = each(body.get(GENERIC_HEADER..).unwrap_or(&[]));
            stopped = found.is_break();
            found
        });
        listed.map_err(|e| Error::io("list", object, e))?;
        if stopped {
            self.socket = Self::open()?.socket;
        }
        Ok(())
    }

    fn list(
        &mut self,
        mut message: Message,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.sequence += 1;
        self.send(message.finish(DUMP, self.sequence))?;
        let mut interrupted = false;
        loop {
            for (header, body) in self.receive()? {
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match header.kind {
                    DONE | ERROR => {
                        check_error(body)?;
                        return match interrupted {
                            false => Ok(()),
                            true => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                        };
                    }
                    _ if each(body).is_break() => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// Requests a change and waits for the response.
    pub fn request(&mut self, mut message: Message) -> io::Result<()> {
        self.sequence += 1;
        self.send(message.finish(ACK, self.sequence))?;
        self.wait_for_ack(self.sequence)
    }

    /// Requests one object and returns its attributes.
    pub fn get(&mut self, mut message: Message) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(message.finish(0, sequence))?;
        loop {
            for (header, body) in self.receive()? {
                match header.kind {
                    ERROR => check_error(body)?,
                    _ if header.sequence == sequence => {
                        return Ok(body.get(GENERIC_HEADER..).unwrap_or(&[]).to_vec());
                    }
                    _ => {}
                }
            }
        }
    }

    /// The number of the last nf_tables transaction that is completely in force (`base_seq`).
    ///
    /// # Why
    /// A commit first increments the number, then activates its rules, then removes the old ones from the lists (`nf_tables_commit`). A
    /// dump in between has the new number with the old rules or with none: of two tables with the same name, a rule dump contains the first
    /// only, with rules that are no longer in force (`nf_tables_dump_rules`). A commit holds a mutex, and an empty batch
    /// waits for that mutex and changes nothing.
    pub fn generation(&mut self) -> io::Result<u32> {
        let id = self.base_seq()?;
        self.sequence += 2;
        let mut bytes = batch_marker(BATCH_BEGIN)
            .finish(0, self.sequence - 1)
            .to_vec();
        bytes.extend(batch_marker(BATCH_END).finish(0, self.sequence));
        // The batch is processed when this returns. The kernel sends no response.
        self.send(&bytes)?;
        Ok(id)
    }

    /// The current `base_seq`, independent of a commit in progress.
    pub fn base_seq(&mut self) -> io::Result<u32> {
        let response = self.get(Message::new(GETGEN, 0, libc::AF_UNSPEC as u8))?;
        let id = attr(&response, 1).and_then(be32);
        id.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Requests several changes as one transaction (nf_tables only), and waits for the response.
    pub fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        self.sequence += 1;
        let mut bytes = batch_marker(BATCH_BEGIN).finish(0, self.sequence).to_vec();
        let last = self.sequence + messages.len() as u32;
        for mut message in messages {
            self.sequence += 1;
            let flags = if self.sequence == last { ACK } else { 0 };
            bytes.extend(message.finish(flags, self.sequence));
        }
        self.sequence += 1;
        bytes.extend(batch_marker(BATCH_END).finish(0, self.sequence));
        self.send(&bytes)?;
        self.wait_for_ack(last)
    }

    /// Returns the first error, or the response to message `sequence`.
    fn wait_for_ack(&mut self, sequence: u32) -> io::Result<()> {
        loop {
            for (header, body) in self.receive()? {
                if header.kind == ERROR {
                    check_error(body)?;
                    if header.sequence == sequence {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, 0).map(drop)
    }

    fn receive(&mut self) -> io::Result<impl Iterator<Item = (Header, &[u8])>> {
        self.buffer.clear();
        while let Err(error) = self.socket.recv(&mut self.buffer, 0) {
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                // SO_RCVTIMEO; must not be confused with EAGAIN for a list that changed.
                io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                _ => return Err(error),
            }
        }
        Ok(messages(&self.buffer))
    }
}

/// The message that begins or ends a batch.
fn batch_marker(kind: u16) -> Message {
    let mut message = Message::new(kind, 0, libc::AF_UNSPEC as u8);
    // The subsystem the batch is for, big-endian, in nfgenmsg's res_id.
    message.0[HEADER + 2..].copy_from_slice(&(NFTABLES >> 8).to_be_bytes());
    message
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER)?;
        let length = u32_ne(head) as usize;
        let header = Header {
            kind: u16_ne(&head[4..]),
            flags: u16_ne(&head[6..]),
            sequence: u32_ne(&head[8..]),
        };
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((header, body))
    })
}

/// `NLMSG_ERROR` and `NLMSG_DONE` contain a negative errno, or 0.
fn check_error(body: &[u8]) -> io::Result<()> {
    match body.get(..4).map_or(0, |code| u32_ne(code) as i32) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}
