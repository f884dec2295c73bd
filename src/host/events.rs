//! What the kernel reports about changes: rtnetlink and nftables multicasts of every namespace we can see.
//! Out of scope: the desired state.
//!
//! # Why
//! Two sockets for all namespaces (`NETLINK_LISTEN_ALL_NSID`, `netlink(7)`), not two for each: the kernel names the
//! sender's namespace beside each message, by the number (nsid) that ours has for it. It has one for each namespace that a
//! veth leads to, see [`super::link::Link::peer_nsid`].
//!
//! An event states *that* something changed, never the new value: that is read. The legacy iptables back end sends no events; a slow
//! periodic read detects its changes.

mod read;

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use ipnetwork::Ipv4Network;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;
use super::rule::Generation;

/// `enum rtnetlink_groups` of `include/uapi/linux/rtnetlink.h`: LINK, NEIGH, TC, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR,
/// IPV4_NETCONF, and IPV4_RULE; IPV6_ROUTE and IPV6_NETCONF.
const ROUTE_GROUPS: [libc::c_int; 10] = [1, 3, 4, 5, 7, 8, 9, 11, 24, 25];

/// `NFNLGRP_NFTABLES` of `include/uapi/linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: [libc::c_int; 1] = [7];

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`: the last message of every transaction.
const NEW_GENERATION: u16 = 10 << 8 | 15;

/// Room for what happens while we are busy: some thousand links made at once.
const BACKLOG: libc::c_int = 16 << 20;

/// Messages come in datagrams of at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where: our number for the namespace; `None` for the one we listen in.
    pub nsid: Option<i32>,
    /// What.
    pub what: What,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A link was made, changed or deleted.
    Link(LinkChange),
    /// An address.
    Addr {
        /// The link it is on.
        index: u32,
    },
    /// An IPv4 route of any table.
    Route {
        /// The link it leads over, if it leads over one.
        index: Option<u32>,
        /// What it leads to; none: not to be read.
        dst: Option<Ipv4Network>,
    },
    /// A rule of policy routing for IPv4.
    RoutingRule,
    /// A permanent neighbour. What ARP learns and forgets is left out.
    Neigh {
        /// The link it is on.
        index: u32,
        /// Its address; none: it is a forwarding entry of a bridge, or one of IPv6.
        ip: Option<Ipv4Addr>,
    },
    /// A setting or a route of IPv6: a link has a route while IPv6 is enabled on it, which no other message reports.
    Ipv6 {
        /// The link.
        index: u32,
    },
    /// A filter of a link's frames, or what such filters hang on.
    Filter {
        /// The link.
        index: u32,
    },
    /// A setting of a link or of all, `ip_forward` among them.
    Netconf {
        /// The link; none: a setting of all links, or what new links start with.
        index: Option<u32>,
    },
    /// nftables rules, those of iptables-nft among them; one event for a transaction.
    Rules {
        /// What the transaction left behind.
        generation: Generation,
    },
    /// Notifications were lost: read everything in every namespace.
    Overrun,
}

/// What became of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    /// Its name, now.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC, now.
    pub mac: Option<[u8; 6]>,
    /// Whether it is gone.
    pub deleted: bool,
    /// It is a bridge.
    pub bridge: bool,
    /// What it is a port of.
    pub master: Option<u32>,
    /// Our number for the namespace of its other end; `None`, too, when that end went first.
    pub peer_nsid: Option<i32>,
}

/// The stream of events.
#[derive(Debug)]
pub struct Events {
    route: AsyncFd<Listener>,
    rules: AsyncFd<Listener>,
    buffer: Vec<u8>,
    waiting: VecDeque<Event>,
}

impl Events {
    /// Listens in the calling thread's namespace and all that it has numbers for, from now on. Must be called within a
    /// tokio runtime.
    pub fn listen() -> Result<Self, Error> {
        Self::open().map_err(|e| Error::io("listen to", "the kernel's events", e))
    }

    fn open() -> io::Result<Self> {
        let route = Listener::open(libc::NETLINK_ROUTE, &ROUTE_GROUPS)?;
        let rules = Listener::open(libc::NETLINK_NETFILTER, &NFTABLES_GROUP)?;
        rules.keep_only(NEW_GENERATION)?;
        let register = |listener| {
            // SAFETY: a listener owns its descriptor, always answers the same one, and closes it only when dropped.
            unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }
        };
        Ok(Self {
            route: register(route)?,
            rules: register(rules)?,
            buffer: vec![0; DATAGRAM],
            waiting: VecDeque::new(),
        })
    }

    /// Waits for the next event. Nothing is lost when the wait is dropped.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            let source = tokio::select! {
                ready = self.route.readable() => ready,
                ready = self.rules.readable() => ready,
            };
            let fail = |e| Error::io("hear", "the kernel's events", e);
            let mut ready = source.map_err(fail)?;
            match ready.try_io(|listener| listener.get_ref().hear(&mut self.buffer)) {
                Ok(heard) => self.waiting.extend(heard.map_err(fail)?),
                Err(_would_block) => {}
            }
        }
    }
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    protocol: libc::c_int,
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener {
    fn open(protocol: libc::c_int, groups: &[libc::c_int]) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes no memory of ours.
        let number = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let this = Self { socket, protocol };
        // Above the limit of plain users where we may; else as much as they may.
        this.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BACKLOG)
            .or_else(|_| this.option(libc::SOL_SOCKET, libc::SO_RCVBUF, &BACKLOG))?;
        let everywhere: libc::c_int = 1;
        this.option(
            libc::SOL_NETLINK,
            libc::NETLINK_LISTEN_ALL_NSID,
            &everywhere,
        )?;
        // First: to bind is to leave all groups but those named in the address.
        this.bind()?;
        for group in groups {
            this.option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group)?;
        }
        Ok(this)
    }

    /// Takes a port. Without one we would count as the kernel itself, which is not sent what it sends.
    fn bind(&self) -> io::Result<()> {
        // SAFETY: a sockaddr_nl of zeroes is valid: any port.
        let mut any: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        any.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = size_of_val(&any) as libc::socklen_t;
        // SAFETY: `any` lives through the call, and `length` is its size.
        match unsafe { libc::bind(self.as_raw_fd(), (&raw const any).cast(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Has the kernel throw away all datagrams but those that begin with a message of this type: a new rule set is one
    /// wake-up and not one for each of its rules.
    fn keep_only(&self, kind: u16) -> io::Result<()> {
        let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        // The filter reads in network order what netlink writes in the machine's own.
        let wanted = u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
        let mut steps = [
            step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, wanted),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: steps.len() as libc::c_ushort,
            filter: steps.as_mut_ptr(),
        };
        self.option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn option<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        let length = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is a T that lives through the call, and `length` is its size.
        let answer = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                length,
            )
        };
        match answer {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// One datagram's events; `WouldBlock` when there is none.
    fn hear(&self, buffer: &mut [u8]) -> io::Result<Vec<Event>> {
        let overrun = || {
            vec![Event {
                nsid: None,
                what: What::Overrun,
            }]
        };
        match self.receive(buffer) {
            Ok(Datagram::Whole { length, nsid }) => {
                Ok(read_all(self.protocol, &buffer[..length], nsid))
            }
            Ok(Datagram::Cut) => Ok(overrun()),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(overrun()),
            Err(e) => Err(e),
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // Aligned as control messages must be.
        let mut control = [0_u64; 16];
        // SAFETY: a msghdr of zeroes is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the message points to `part` and `control`, whose lengths it tells, and they outlive the call.
        let length = unsafe { libc::recvmsg(self.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        if message.msg_flags & libc::MSG_TRUNC != 0 {
            return Ok(Datagram::Cut);
        }
        Ok(Datagram::Whole {
            length,
            nsid: nsid(&message),
        })
    }
}

enum Datagram {
    Whole { length: usize, nsid: Option<i32> },
    Cut,
}

/// The sender's namespace; the kernel names none when it is our own.
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

fn read_all(protocol: libc::c_int, mut bytes: &[u8], nsid: Option<i32>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while let Some((message, rest)) = split(bytes) {
        bytes = rest;
        let what = match protocol {
            libc::NETLINK_NETFILTER => read::generation(message),
            _ => read::change(message),
        };
        let event = what.map(|what| Event { nsid, what });
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
