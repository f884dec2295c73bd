//! Change notifications of the kernel: rtnetlink and nftables multicasts of every namespace that has an nsid here.
//! Out of scope: the desired state.
//!
//! # Why
//! Two sockets for all namespaces (`NETLINK_LISTEN_ALL_NSID`, `netlink(7)`), not two for each: the kernel adds the
//! sender's namespace to each message, as the ID (nsid) that the receiving namespace has for it. There is one for each namespace with
//! the other end of a veth, see [`super::link::Link::peer_nsid`].
//!
//! An event states *that* something changed, never the new value, which must be read. The legacy iptables back end sends no events; a
//! periodic resync detects its changes.

mod read;

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::rule::Generation;
use super::{Error, async_fd};

/// `NETLINK_ROUTE`, which is 0: rustix calls it the default protocol.
const ROUTE: Option<Protocol> = None;
const NETFILTER: Option<Protocol> = Some(netlink::NETFILTER);

/// `enum rtnetlink_groups` of `include/uapi/linux/rtnetlink.h`: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR,
/// IPV4_NETCONF, and IPV4_RULE; IPV6_ROUTE and IPV6_NETCONF.
const ROUTE_GROUPS: u32 = groups(&[1, 3, 4, 5, 7, 8, 9, 11, 24, 25]);

/// `NFNLGRP_NFTABLES` of `include/uapi/linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = groups(&[7]);

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the last message of every transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Receive buffer for events while the daemon is busy: some thousand links created at once.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Messages come in datagrams of at most 32 KiB.
const MAX_DATAGRAM: usize = 64 * 1024;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The namespace's ID in the listening namespace; `None` for the listening namespace itself.
    pub nsid: Option<i32>,
    /// The changed object.
    pub kind: What,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A link was created, changed or deleted.
    Link(LinkChange),
    /// An address.
    Addr {
        /// The link it is on.
        index: u32,
    },
    /// An IPv4 route of any table.
    Route {
        /// The outgoing link, if there is one.
        index: Option<u32>,
        /// The destination; `None`: the message could not be decoded.
        dst: Option<Ipv4Network>,
    },
    /// A policy routing rule for IPv4.
    RoutingRule,
    /// A permanent neighbour. Entries learned by ARP are not reported.
    Neigh {
        /// The link it is on.
        index: u32,
        /// Its address; `None`: it is a forwarding entry of a bridge, or an IPv6 neighbour.
        ip: Option<Ipv4Addr>,
    },
    /// An IPv6 setting or route: a link has a route while IPv6 is enabled on it, and no other message reports this.
    Ipv6 {
        /// The link.
        index: u32,
    },
    /// A traffic control filter or qdisc of a link.
    Filter {
        /// The link.
        index: u32,
    },
    /// A setting of one link or of all links, including `ip_forward`.
    Netconf {
        /// The link; `None`: a setting of all links, or the default for new links.
        index: Option<u32>,
    },
    /// nftables rules, including those of iptables-nft; one event per transaction.
    Rules {
        /// The generation after the transaction.
        generation: Generation,
    },
    /// Notifications were lost: read everything in every namespace.
    Overrun,
}

/// A change of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    /// Its current name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its current MAC.
    pub mac: Option<[u8; 6]>,
    /// Whether it was deleted.
    pub deleted: bool,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// The ID of the namespace of its other end; also `None` if that end was deleted first.
    pub peer_nsid: Option<i32>,
}

/// The stream of events.
#[derive(Debug)]
pub struct Events {
    route: Listener,
    rules: Listener,
    buffer: Vec<u8>,
    pending: VecDeque<Event>,
}

impl Events {
    /// Starts listening in the calling thread's namespace and in all namespaces that have an nsid there. Must be called within a
    /// tokio runtime.
    pub fn listen() -> Result<Self, Error> {
        Self::open().map_err(|e| Error::io("subscribe to", "kernel events", e))
    }

    fn open() -> io::Result<Self> {
        let route = Listener::open(ROUTE, ROUTE_GROUPS)?;
        let rules = Listener::open(NETFILTER, NFTABLES_GROUP)?;
        filter_by_type(rules.socket.as_fd(), NEW_GENERATION)?;
        Ok(Self {
            route,
            rules,
            buffer: vec![0; MAX_DATAGRAM],
            pending: VecDeque::new(),
        })
    }

    /// Waits for the next event. Cancel safe.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let (ready, protocol) = tokio::select! {
                ready = self.route.socket.readable() => (ready, self.route.protocol),
                ready = self.rules.socket.readable() => (ready, self.rules.protocol),
            };
            let fail = |e| Error::io("receive", "kernel events", e);
            let mut ready = ready.map_err(fail)?;
            match ready.try_io(|socket| receive_events(socket, protocol, &mut self.buffer)) {
                Ok(received) => self.pending.extend(received.map_err(fail)?),
                Err(_would_block) => {}
            }
        }
    }
}

#[derive(Debug)]
struct Listener {
    socket: AsyncFd<Arc<OwnedFd>>,
    protocol: Option<Protocol>,
}

impl Listener {
    /// Opens a socket and binds it: that assigns a port (0 is the kernel's, which does not receive its own multicasts) and joins the groups.
    fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let (kind, flags) = (
            SocketType::RAW,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        );
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, kind, flags, protocol)?;
        // RCVBUFFORCE exceeds the limit but needs CAP_NET_ADMIN; otherwise as much as the limit allows.
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))?;
        let all = (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID);
        set_option(socket.as_fd(), all, &libc::c_int::from(true))?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        let socket = async_fd::register(Arc::new(socket), Interest::READABLE)?;
        Ok(Self { socket, protocol })
    }
}

/// The mask of multicast groups with these numbers, for bind(2): the first group is the lowest bit.
const fn groups(numbers: &[u32]) -> u32 {
    let (mut mask, mut at) = (0, 0);
    while at < numbers.len() {
        mask |= 1 << (numbers[at] - 1);
        at += 1;
    }
    mask
}

/// Makes the kernel discard all datagrams that do not begin with a message of this type, so that a new rule set causes one
/// wake-up and not one for each rule.
fn filter_by_type(socket: BorrowedFd<'_>, kind: u16) -> io::Result<()> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The filter reads in network byte order, netlink writes in native byte order.
    let expected = u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, expected),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as libc::c_ushort,
        filter: steps.as_mut_ptr(),
    };
    let attach = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    set_option(socket, attach, &program)
}

/// setsockopt(2), for options that rustix does not have.
fn set_option<T>(
    socket: BorrowedFd<'_>,
    (level, name): (libc::c_int, libc::c_int),
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points to a T, and `length` is its size. The kernel only reads it and, if it is a `sock_fprog`, the instructions, which
    // are in the frame of the caller; it returns EFAULT for what it cannot read.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The events of one datagram; `WouldBlock` when there is none.
fn receive_events(
    socket: &impl AsRawFd,
    protocol: Option<Protocol>,
    buffer: &mut [u8],
) -> io::Result<Vec<Event>> {
    let overrun = || {
        vec![Event {
            nsid: None,
            kind: What::Overrun,
        }]
    };
    match receive(socket, buffer) {
        Ok(Datagram::Complete { length, nsid }) => Ok(read_all(protocol, &buffer[..length], nsid)),
        Ok(Datagram::Truncated) => Ok(overrun()),
        Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(overrun()),
        Err(e) => Err(e),
    }
}

/// Receives a datagram with its control messages. `rustix::net::recvmsg` returns only those of Unix sockets.
fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // Aligned as control messages must be.
    let mut control = [0_u64; 16];
    // SAFETY: a msghdr of zeroes is valid. It points to `part`, which points to `buffer`, and to `control`, with their lengths; they outlive
    // the call.
    let (message, length) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        (message, length)
    };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Ok(Datagram::Truncated);
    }
    Ok(Datagram::Complete {
        length,
        nsid: nsid(&message),
    })
}

enum Datagram {
    Complete { length: usize, nsid: Option<i32> },
    Truncated,
}

/// The ID of the sender's namespace; the kernel sends none for the receiving namespace.
fn nsid(message: &libc::msghdr) -> Option<i32> {
    // SAFETY: `message` was filled by recvmsg, and its control buffer is still there; each header that the macros yield
    // lies within it, and a NETLINK_LISTEN_ALL_NSID header is followed by an int.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            if (found.cmsg_level, found.cmsg_type)
                == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID)
            {
                return Some(libc::CMSG_DATA(header).cast::<i32>().read_unaligned());
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn read_all(protocol: Option<Protocol>, mut bytes: &[u8], nsid: Option<i32>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while let Some((message, rest)) = split(bytes) {
        bytes = rest;
        let kind = match protocol {
            NETFILTER => read::generation(message),
            _ => read::change(message),
        };
        let event = kind.map(|what| Event { nsid, kind: what });
        if event.as_ref() != events.last() {
            events.extend(event);
        }
    }
    events
}

/// The first message of a datagram, and the rest.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((message, &bytes[next..]))
}
