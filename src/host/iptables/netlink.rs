//! nfnetlink messages, used by nf_tables and conntrack, in the calling thread's network namespace.
//! Out of scope: the meaning of the messages.
//!
//! # Why
//! `netlink-packet-*` does not support nf_tables, and a tool needs a process; headers and attributes are few lines of code.
//! Format: linux/netlink.h, linux/netfilter/nfnetlink.h.

use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::uapi::{NFT_MSG_GETGEN, NFTA_GEN_ID, NFTABLES};
use crate::host::Error;
use crate::host::netlink::socket::{self, HEADER, Part, Socket};

pub use netlink_packet_core::NLM_F_CREATE as CREATE;
pub use netlink_packet_core::NLM_F_EXCL as EXCLUSIVE;

/// `NFNL_SUBSYS_CTNETLINK << 8`.
pub const CONNTRACK: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
/// `NFNL_SUBSYS_CTNETLINK_TIMEOUT << 8`.
pub const TIMEOUTS: u16 = (libc::NFNL_SUBSYS_CTNETLINK_TIMEOUT as u16) << 8;

const NFNL_MSG_BATCH_BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
const NFNL_MSG_BATCH_END: u16 = libc::NFNL_MSG_BATCH_END as u16;

/// `sizeof(struct nfgenmsg)` of linux/netfilter/nfnetlink.h: `u8 nfgen_family, version; __be16 res_id;`.
const GENERIC_HEADER: usize = 4;
/// In bytes: the kernel fills dump messages up to the reader's buffer size, at most 32 KiB (`netlink_dump`).
const BUFFER: usize = 32 * 1024;

/// A message under construction.
pub struct Message(Vec<u8>);

impl Message {
    /// `kind` is subsystem and message type; `family` is AF_INET or AF_INET6.
    pub fn new(kind: u16, flags: u16, family: u8) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
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
pub const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// Iterates over attributes: type without flags, and value. Stops at malformed data.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_ne(bytes.get(0..2)?));
        let kind = u16_ne(bytes.get(2..4)?) & libc::NLA_TYPE_MASK as u16;
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

/// A socket of the network namespace that the calling thread was in when it was opened.
pub struct Netfilter {
    socket: Socket,
    /// A batch whose response, which only an error has, was not read.
    unread: Option<u32>,
    buffer: Vec<u8>,
}

impl Netfilter {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_NETFILTER);
        Ok(Self {
            socket: socket.map_err(|e| Error::io("open", "a netfilter socket", e))?,
            unread: None,
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
        let sequence = self.socket.next_sequence();
        let first = self.unread.take().unwrap_or(sequence);
        self.socket.send(message.finish(NLM_F_DUMP, sequence))?;
        let mut interrupted = false;
        loop {
            for message in self.receive(first)? {
                let message = message?;
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.part()? {
                    Some(Part::End(result)) => {
                        return match (result, interrupted) {
                            (Ok(()), true) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                            (result, _) => result,
                        };
                    }
                    Some(Part::Object(message)) if each(message.body).is_break() => return Ok(()),
                    Some(Part::Object(_)) | None => {}
                }
            }
        }
    }

    /// Requests a change and waits for the response.
    pub fn request(&mut self, mut message: Message) -> io::Result<()> {
        let sequence = self.socket.next_sequence();
        self.socket.send(message.finish(NLM_F_ACK, sequence))?;
        self.wait_for_ack(sequence, sequence)
    }

    /// Requests one object and returns its attributes.
    pub fn get(&mut self, mut message: Message) -> io::Result<Vec<u8>> {
        let sequence = self.socket.next_sequence();
        let first = self.unread.take().unwrap_or(sequence);
        self.socket.send(message.finish(0, sequence))?;
        loop {
            for message in self.receive(first)? {
                match message?.part()? {
                    Some(Part::End(result)) => result?,
                    Some(Part::Object(message)) if message.sequence == sequence => {
                        let attributes = message.body.get(GENERIC_HEADER..).unwrap_or(&[]).to_vec();
                        return Ok(attributes);
                    }
                    Some(Part::Object(_)) | None => {}
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
        let begin = self.socket.next_sequence();
        let end = self.socket.next_sequence();
        let mut bytes = batch_marker(NFNL_MSG_BATCH_BEGIN).finish(0, begin).to_vec();
        bytes.extend(batch_marker(NFNL_MSG_BATCH_END).finish(0, end));
        // The batch is processed when this returns. The kernel responds to an error only, which the next request receives.
        self.socket.send(&bytes)?;
        self.unread = Some(begin);
        Ok(id)
    }

    /// The current `base_seq`, independent of a commit in progress.
    pub fn base_seq(&mut self) -> io::Result<u32> {
        let response = self.get(Message::new(NFT_MSG_GETGEN, 0, libc::AF_UNSPEC as u8))?;
        let id = attr(&response, NFTA_GEN_ID).and_then(be32);
        id.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Requests several changes as one transaction (nf_tables only), and waits for the response.
    pub fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let begin = self.socket.next_sequence();
        let mut bytes = batch_marker(NFNL_MSG_BATCH_BEGIN).finish(0, begin).to_vec();
        let count = messages.len();
        let mut last = begin;
        for (index, mut message) in messages.into_iter().enumerate() {
            last = self.socket.next_sequence();
            let flags = if index + 1 == count { NLM_F_ACK } else { 0 };
            bytes.extend(message.finish(flags, last));
        }
        let end = self.socket.next_sequence();
        bytes.extend(batch_marker(NFNL_MSG_BATCH_END).finish(0, end));
        self.socket.send(&bytes)?;
        self.wait_for_ack(begin, last)
    }

    /// Returns the first error, or the response to message `sequence`.
    fn wait_for_ack(&mut self, first: u32, sequence: u32) -> io::Result<()> {
        let first = self.unread.take().unwrap_or(first);
        loop {
            for message in self.receive(first)? {
                let message = message?;
                if let Some(Part::End(result)) = message.part()? {
                    result?;
                    if message.sequence == sequence {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The messages of the next datagram that respond to request `first` or a later one. The kernel responds within the send call, so
    /// that waiting only occurs if the response was lost.
    fn receive(
        &mut self,
        first: u32,
    ) -> io::Result<impl Iterator<Item = io::Result<socket::Message<'_>>>> {
        self.socket.wait(&mut self.buffer)?;
        Ok(self.socket.responses(&self.buffer, first))
    }
}

/// The message that begins or ends a batch.
fn batch_marker(kind: u16) -> Message {
    let mut message = Message::new(kind, 0, libc::AF_UNSPEC as u8);
    // The subsystem the batch is for, big-endian, in nfgenmsg's res_id.
    message.0[HEADER + 2..].copy_from_slice(&(NFTABLES >> 8).to_be_bytes());
    message
}
