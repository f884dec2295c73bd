//! A netlink socket for requests, and the messages of a datagram; for rtnetlink and nfnetlink.
//! Out of scope: the content of messages; multicasts ([`crate::host::events`]).
//!
//! # Why no reactor
//! The kernel responds within the send call (`netlink_rcv_skb`), and continues a dump within the receive call: the response is
//! available when the request has been sent. So no task must be woken for it, and a request costs its system calls and no thread switch.
//! A response that is not available is lost or incomplete, and the caller waits for it only to be sure.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN};
use netlink_sys::SocketAddr;

/// `sizeof(struct nlmsghdr)` of linux/netlink.h: `u32 nlmsg_len; u16 nlmsg_type, nlmsg_flags; u32 nlmsg_seq, nlmsg_pid;`.
pub const HEADER: usize = 16;

/// The receive buffer, in bytes: the kernel never sends more than 32 KiB in one datagram (`netlink(7)`, `NLMSG_GOODSIZE`).
pub const DATAGRAM: usize = 64 * 1024;

/// The deadline of a response.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// The poll interval for a response that was not available immediately.
pub const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A socket in the network namespace of the thread that opened it. It receives messages of the kernel only.
pub struct Socket {
    socket: netlink_sys::Socket,
    /// The port ID, to which the kernel sends responses.
    port: u32,
    /// The number of the last request.
    sequence: u32,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        // Also binds it, and refuses messages of other processes (`netlink_connect`, `netlink_getsockbyportid`).
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut address = SocketAddr::new(0, 0);
        socket.get_address(&mut address)?;
        Ok(Self {
            socket,
            port: address.port_number(),
            sequence: 0,
        })
    }

    /// For options.
    pub fn inner(&self) -> &netlink_sys::Socket {
        &self.socket
    }

    /// The number of the next request.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a datagram of requests.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.send(datagram, 0).map(drop)
    }

    /// Receives a datagram into `buffer`, which has a capacity of at least one byte. False: none is available.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        buffer.clear();
        loop {
            return match self.socket.recv(buffer, libc::MSG_TRUNC) {
                Ok(length) if length > buffer.len() => Err(lost()),
                Ok(_) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The receive buffer of the socket was full.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Err(lost()),
                Err(error) => Err(error),
            };
        }
    }

    /// Like [`receive`](Self::receive), and waits for a datagram for at most [`TIMEOUT`]. Blocks.
    pub fn wait(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        if self.receive(buffer)? {
            return Ok(());
        }
        let until = Instant::now() + TIMEOUT;
        while !self.receive(buffer)? {
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Discards what was not read of earlier responses: the kernel starts no dump before the last one was read (`__netlink_dump_start`).
    pub fn discard(&self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let until = Instant::now() + TIMEOUT;
        while Instant::now() < until {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The messages of a datagram that respond to request `first` or a later one. The others are rests of earlier responses.
    pub fn responses<'d>(
        &self,
        datagram: &'d [u8],
        first: u32,
    ) -> impl Iterator<Item = io::Result<Message<'d>>> + use<'d> {
        let (port, number) = (self.port, self.sequence.wrapping_sub(first));
        messages(datagram).filter(move |message| match message {
            Ok(message) => message.port == port && message.sequence.wrapping_sub(first) <= number,
            Err(_) => true,
        })
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'d> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: that of the request.
    pub sequence: u32,
    /// `nlmsg_pid`: that of the requester.
    pub port: u32,
    /// The message with its header.
    pub whole: &'d [u8],
    /// The message without its header.
    pub body: &'d [u8],
}

/// What a message means for the response that it belongs to.
#[derive(Debug)]
pub enum Part<'d> {
    /// An object.
    Object(Message<'d>),
    /// The response is complete: the kernel's result.
    End(io::Result<()>),
}

impl<'d> Message<'d> {
    /// `NLMSG_DONE` ends a dump, `NLMSG_ERROR` any other response; both contain a negative errno, or 0. `None`: no content. An error: a part
    /// of the response is missing.
    pub fn part(self) -> io::Result<Option<Part<'d>>> {
        match self.kind {
            NLMSG_NOOP => Ok(None),
            NLMSG_OVERRUN => Err(lost()),
            NLMSG_DONE | NLMSG_ERROR => {
                match self.body.first_chunk().map(|c| i32::from_ne_bytes(*c)) {
                    Some(0) => Ok(Some(Part::End(Ok(())))),
                    Some(code) => {
                        let error = io::Error::from_raw_os_error(code.wrapping_abs());
                        Ok(Some(Part::End(Err(error))))
                    }
                    None => Err(lost()),
                }
            }
            _ => Ok(Some(Part::Object(self))),
        }
    }
}

/// Splits a datagram. A message that does not fit into it is an error.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = split(&mut datagram);
        if message.is_none() {
            datagram = &[];
        }
        Some(message.ok_or_else(lost))
    })
}

fn split<'d>(datagram: &mut &'d [u8]) -> Option<Message<'d>> {
    let [
        l0,
        l1,
        l2,
        l3,
        k0,
        k1,
        f0,
        f1,
        s0,
        s1,
        s2,
        s3,
        p0,
        p1,
        p2,
        p3,
    ] = *datagram.first_chunk::<HEADER>()?;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let whole = datagram.get(..length)?;
    let message = Message {
        kind: u16::from_ne_bytes([k0, k1]),
        flags: u16::from_ne_bytes([f0, f1]),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        port: u32::from_ne_bytes([p0, p1, p2, p3]),
        whole,
        body: whole.get(HEADER..)?,
    };
    let next = length.next_multiple_of(usize::from(NLMSG_ALIGNTO));
    *datagram = datagram.get(next..).unwrap_or_default();
    Some(message)
}

fn lost() -> io::Error {
    io::Error::other("a part of the kernel's response was lost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, port: u32, body: &[u8]) -> Vec<u8> {
        let length = HEADER + body.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(port.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    fn kinds(datagram: &[u8]) -> Vec<Option<u16>> {
        messages(datagram)
            .map(|message| message.ok().map(|message| message.kind))
            .collect()
    }

    #[test]
    fn a_datagram_is_split_and_a_truncated_message_is_an_error() {
        let (link, done) = (message(16, 1, 1, &[0; 30]), message(3, 1, 1, &[0; 4]));
        for (datagram, expected) in [
            (vec![], vec![]),
            (link.clone(), vec![Some(16)]),
            (
                [link.clone(), done.clone()].concat(),
                vec![Some(16), Some(3)],
            ),
            // The kernel does not pad the last message.
            (link[..46].to_vec(), vec![Some(16)]),
            (
                [done.clone(), link[..45].to_vec()].concat(),
                vec![Some(3), None],
            ),
            (link[..12].to_vec(), vec![None]),
            (vec![0; 7], vec![None]),
            // A length of 0 must not be read again and again.
            (vec![0; 64], vec![None]),
            ([vec![255; 4], link[4..].to_vec()].concat(), vec![None]),
        ] {
            assert_eq!(kinds(&datagram), expected, "{datagram:?}");
        }
    }

    #[test]
    fn rests_of_earlier_responses_and_messages_for_other_sockets_are_ignored() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        let port = socket.port;
        assert_ne!(port, 0);
        let first = socket.next_sequence();
        for request in 2..=4 {
            assert_eq!(socket.next_sequence(), request);
        }
        let bytes = [
            message(16, 1, port, &[]),
            message(17, 2, port, &[]),
            message(18, 2, port + 1, &[]),
            message(19, 4, port, &[]),
            message(20, 5, port, &[]),
            message(21, 0, port, &[]),
        ]
        .concat();
        let kinds = |first| -> Vec<u16> {
            let found = socket.responses(&bytes, first);
            found.map(|message| message.unwrap().kind).collect()
        };
        assert_eq!(kinds(first), [16, 17, 19]);
        assert_eq!(kinds(2), [17, 19]);
        assert_eq!(kinds(4), [19]);
    }

    #[test]
    fn a_response_ends_with_its_done_or_ack() {
        let part = |kind, body: &[u8]| {
            let bytes = message(kind, 1, 1, body);
            let message = messages(&bytes).next().unwrap().unwrap();
            match message.part() {
                Ok(None) => "nothing".to_owned(),
                Ok(Some(Part::Object(_))) => "object".to_owned(),
                Ok(Some(Part::End(Ok(())))) => "end".to_owned(),
                Ok(Some(Part::End(Err(error)))) => format!("{:?}", error.raw_os_error()),
                Err(_) => "lost".to_owned(),
            }
        };
        let errno = (-libc::ENODEV).to_ne_bytes();
        for (kind, body, expected) in [
            (16, &[][..], "object"),
            (1, &[], "nothing"),
            (2, &[0; 20], "end"),
            (3, &[0; 4], "end"),
            (2, &errno, "Some(19)"),
            (3, &errno, "Some(19)"),
            (2, &[0; 3], "lost"),
            (3, &[], "lost"),
            (4, &[], "lost"),
        ] {
            assert_eq!(part(kind, body), expected, "{kind}");
        }
    }
}
