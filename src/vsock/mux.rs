//! All connections of one guest: clients on the host in, packets for the guest out, and back.
//! Out of scope: one connection (`connection`); the queues and the memory of the guest (`device`).
//!
//! # Protocol of clients
//! A client connects to the Unix socket and writes `CONNECT <port>\n`. When the guest has accepted the connection it reads
//! `OK <port of the host>\n`, and all bytes after that are the guest's. A client that is not accepted is closed without a reply. Firecracker and
//! Cloud Hypervisor have the same protocol (docs/vsock.md of Firecracker).
//!
//! # What a guest can cause
//! Only connections of clients exist. A connection that the guest requests is refused with a reset and leaves nothing. Resets wait in a
//! bounded queue: while it is full, no packet of the guest is read.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::net::RecvFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::connection::{Connection, Fate, Phase};
use super::packet::{GUEST_CID, HOST_CID, Header, Op, STREAM};

/// The maximum number of connections. Further clients are closed.
pub const MAX_CONNECTIONS: usize = 1024;
/// Up to this number of connections, each has the large buffer: all buffers together have 76 MiB at most.
const LARGE_BUFFERS: usize = 64;
const LARGE_BUFFER: u32 = 256 << 10;
const SMALL_BUFFER: u32 = 64 << 10;
/// The maximum number of resets for connections that do not exist.
const MAX_RESETS: usize = 256;
/// The maximum length of the line with the port: `CONNECT 4294967295\n`.
const MAX_COMMAND: usize = 32;
/// The first and the last port of the host that connections have. Guests see them as the port of their peer.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// The data of events of the listener and the timer. Those of a connection are its port.
const LISTENER: u64 = 1 << 32;
const TIMER: u64 = LISTENER + 1;
/// Interval between checks of deadlines, while any connection has one.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// The maximum number of events that are read at once.
const EVENTS: usize = 64;

/// The connections of a guest.
pub struct Mux {
    epoll: OwnedFd,
    timer: OwnedFd,
    timer_runs: bool,
    listener: UnixListener,
    /// By port of the host.
    connections: HashMap<u32, Connection>,
    last_port: u32,
    /// Connections with packets for the guest, in the order in which they send.
    senders: VecDeque<u32>,
    resets: VecDeque<Header>,
}

impl Mux {
    /// Serves clients of this socket.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let mux = Self {
            epoll,
            timer,
            timer_runs: false,
            listener,
            connections: HashMap::new(),
            last_port: LAST_PORT,
            senders: VecDeque::new(),
            resets: VecDeque::new(),
        };
        let readable = epoll::EventFlags::IN;
        mux.register(mux.listener.as_fd(), LISTENER, readable)?;
        mux.register(mux.timer.as_fd(), TIMER, readable)?;
        Ok(mux)
    }

    fn register(&self, fd: BorrowedFd<'_>, data: u64, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(data);
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    /// The descriptor that is readable while [`Self::on_events`] has work to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// The number of connections.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Handles what has happened to sockets and deadlines. Does not block.
    pub fn on_events(&mut self, now: Instant) {
        let mut events = Vec::with_capacity(EVENTS);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, buffer, Some(&Timespec::default())).is_err() {
            return;
        }
        for event in events {
            let flags = event.flags;
            match event.data.u64() {
                LISTENER => self.accept(now),
                TIMER => self.expire(now),
                port => {
                    let ends = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
                    let reads = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
                    let (readable, hung_up) = (flags.intersects(reads), flags.intersects(ends));
                    self.on_socket(port as u32, readable, hung_up, now);
                }
            }
        }
    }

    /// Accepts one client; for further ones the event occurs again.
    fn accept(&mut self, now: Instant) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if self.connections.len() >= MAX_CONNECTIONS || stream.set_nonblocking(true).is_err() {
            return;
        }
        let buffer = match self.connections.len() < LARGE_BUFFERS {
            true => LARGE_BUFFER,
            false => SMALL_BUFFER,
        };
        let port = self.free_port();
        // Edge-triggered: a connection that cannot use an event now remembers it.
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        if self.register(stream.as_fd(), port.into(), flags).is_ok() {
            let connection = Connection::new(stream, buffer, now);
            self.connections.insert(port, connection);
            self.start_timer();
        }
    }

    /// A port that no connection has: there are more ports than connections.
    fn free_port(&mut self) -> u32 {
        loop {
            self.last_port = match self.last_port {
                LAST_PORT => FIRST_PORT,
                port => port + 1,
            };
            if !self.connections.contains_key(&self.last_port) {
                return self.last_port;
            }
        }
    }

    fn on_socket(&mut self, port: u32, readable: bool, hung_up: bool, now: Instant) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        let fate = match connection.on_event(readable, hung_up, now) {
            Fate::Kept if connection.phase == Phase::Command => {
                match connection.stream().map(read_command) {
                    Some(Command::Connect(guest_port)) => {
                        connection.request(guest_port, now);
                        Fate::Kept
                    }
                    Some(Command::Incomplete) if !hung_up => Fate::Kept,
                    _ => Fate::Over,
                }
            }
            fate => fate,
        };
        self.settle(port, fate);
    }

    /// Forgets the connection if it is over, or lets it send.
    fn settle(&mut self, port: u32, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        match fate {
            Fate::Kept if connection.wants_to_send() && !connection.queued => {
                connection.queued = true;
                self.senders.push_back(port);
            }
            Fate::Kept => {}
            Fate::Over | Fate::Reset => {
                if fate == Fate::Reset {
                    let guest_port = connection.guest_port;
                    self.reset(port, guest_port);
                }
                self.connections.remove(&port);
                self.senders.retain(|sender| *sender != port);
            }
        }
    }

    /// A guest that takes no packets does not get more resets; it gets one for each packet that it sends later.
    fn reset(&mut self, host_port: u32, guest_port: u32) {
        if self.resets.len() < 2 * MAX_RESETS {
            let reset = Header::to_guest(host_port, guest_port, Op::Reset);
            self.resets.push_back(reset);
        }
    }

    /// Ends the connections after their deadline.
    fn expire(&mut self, now: Instant) {
        // An error: it has been read already.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.timer_runs = false;
        let expired: Vec<(u32, Fate)> = self
            .connections
            .iter()
            .filter(|(_, it)| it.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(port, it)| (*port, it.abort()))
            .collect();
        for (port, fate) in expired {
            self.settle(port, fate);
        }
        if self.connections.values().any(|it| it.deadline.is_some()) {
            self.start_timer();
        }
    }

    fn start_timer(&mut self) {
        if self.timer_runs {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: TICK,
        };
        let flags = TimerfdTimerFlags::empty();
        self.timer_runs = rustix::time::timerfd_settime(&self.timer, flags, &once).is_ok();
    }

    /// Whether a packet of the guest may be read: there is space for a reset.
    pub fn can_receive(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Handles a packet of the guest. `data` are as many bytes as its header says.
    pub fn receive(&mut self, header: &Header, data: &[u8], now: Instant) {
        if (header.src_cid, header.dst_cid) != (GUEST_CID, HOST_CID) {
            return;
        }
        let (port, guest_port) = (header.dst_port, header.src_port);
        let connection = self.connections.get_mut(&port);
        let known =
            connection.filter(|it| it.phase != Phase::Command && it.guest_port == guest_port);
        match known {
            Some(connection) if header.kind == STREAM => {
                let fate = connection.receive(header, data, port, now);
                let has_deadline = connection.deadline.is_some();
                self.settle(port, fate);
                if has_deadline {
                    self.start_timer();
                }
            }
            // A reset is not answered.
            _ if header.op == Op::Reset => {}
            _ => self.reset(port, guest_port),
        }
    }

    /// Whether [`Self::next_packet`] may return a packet.
    pub fn wants_to_send(&self) -> bool {
        !self.resets.is_empty() || !self.senders.is_empty()
    }

    /// The next packet for the guest; its data is written into `buffer`, which is not empty. Connections take turns.
    pub fn next_packet(&mut self, buffer: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(port) = self.senders.pop_front() {
            let Some(connection) = self.connections.get_mut(&port) else {
                continue;
            };
            connection.queued = false;
            let packet = connection.next_packet(port, buffer, now);
            let has_deadline = connection.deadline.is_some();
            self.settle(port, Fate::Kept);
            if has_deadline {
                self.start_timer();
            }
            if packet.is_some() {
                return packet;
            }
        }
        None
    }
}

/// The first line of a client.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    /// A connection to this port.
    Connect(u32),
    /// It has not been written completely.
    Incomplete,
    /// It is not a valid line.
    Invalid,
}

/// Reads the line and no byte after it: those are for the guest.
fn read_command(stream: &UnixStream) -> Command {
    let mut bytes = [0; MAX_COMMAND];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let count = match rustix::net::recv(stream, &mut bytes, flags) {
        Ok((0, _)) => return Command::Invalid,
        Ok((count, _)) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Command::Incomplete,
        Err(_) => return Command::Invalid,
    };
    let Some(end) = bytes[..count].iter().position(|byte| *byte == b'\n') else {
        return match count == MAX_COMMAND {
            true => Command::Invalid,
            false => Command::Incomplete,
        };
    };
    let line = std::str::from_utf8(&bytes[..end]).ok();
    let port = line
        .and_then(|line| line.strip_prefix("CONNECT "))
        .and_then(|port| port.trim_end_matches('\r').parse().ok());
    let read = rustix::net::recv(stream, &mut bytes[..=end], RecvFlags::DONTWAIT);
    match (port, read) {
        (Some(port), Ok(_)) => Command::Connect(port),
        _ => Command::Invalid,
    }
}
