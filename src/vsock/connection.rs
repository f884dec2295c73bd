//! One connection between a client on the host and a port of the guest: its credit, its buffer and its end.
//! Out of scope: ports of the host and the order in which connections send (`mux`).
//!
//! # Flow control
//! The guest may send as many bytes as fit into the buffer of the connection, which it knows from the credit in every packet (virtio 1.2,
//! "Buffer space management"). A guest that sends more is reset. In the other direction data stay in the client's socket until the guest
//! has space for them, so a client that is faster than the guest blocks.
//!
//! # Half-close
//! `SHUT_SEND` of a packet is `shutdown(2)` of the other side's socket for writing, and an end of file of a socket is `SHUT_SEND`. A
//! connection is over when both directions are; the receiver of a shutdown of both directions confirms it with a reset.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::packet::{Header, Op, SHUT_BOTH, SHUT_RECEIVE, SHUT_SEND};

/// How long a client may take to name a port, and the guest to accept or to end a connection.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long the guest may take to receive the last data of a client that is gone.
const LINGER: Duration = Duration::from_secs(60);

/// The progress of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client has not named a port yet.
    Command,
    /// The guest has not accepted the connection yet.
    Requested,
    /// Data are forwarded.
    Open,
    /// The client is gone; the guest has not confirmed it yet.
    Closing,
}

/// The packets that must be sent to the guest: one of each kind at most.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    request: bool,
    credit_update: bool,
    /// The flags of a shutdown; 0: none.
    shutdown: u32,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It continues.
    Kept,
    /// It is forgotten; the guest does not know it.
    Over,
    /// It is forgotten, and the guest must be notified.
    Reset,
}

/// A connection.
pub(super) struct Connection {
    pub(super) phase: Phase,
    pub(super) guest_port: u32,
    /// When the phase ends without an event; `None`: never.
    pub(super) deadline: Option<Instant>,
    /// Whether it is in the queue of connections that send.
    pub(super) queued: bool,
    /// `None`: closed.
    stream: Option<UnixStream>,
    pending: Pending,
    /// A read of the stream may succeed.
    readable: bool,
    /// Both directions of the stream are closed by the client.
    hung_up: bool,
    /// All data of the client are read.
    host_ended: bool,
    /// The directions that the guest has shut down.
    guest_ended: u32,
    /// Data of the guest that the client has not taken.
    to_host: VecDeque<u8>,
    /// Size of `to_host` in bytes.
    buf_alloc: u32,
    /// Bytes that were taken out of `to_host`, and the last value that was reported to the guest.
    fwd_cnt: u32,
    reported_fwd_cnt: u32,
    /// Bytes that were sent to the guest, the size of its buffer, and the bytes it has taken out of it.
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    /// The guest was asked for credit since the last data.
    has_asked: bool,
}

impl Connection {
    /// A client that has just connected. `buf_alloc`: the size of its buffer in bytes.
    pub(super) fn new(stream: UnixStream, buf_alloc: u32, now: Instant) -> Self {
        Self {
            phase: Phase::Command,
            guest_port: 0,
            deadline: Some(now + TIMEOUT),
            queued: false,
            stream: Some(stream),
            pending: Pending::default(),
            readable: false,
            hung_up: false,
            host_ended: false,
            guest_ended: 0,
            to_host: VecDeque::new(),
            buf_alloc,
            fwd_cnt: 0,
            reported_fwd_cnt: 0,
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            has_asked: false,
        }
    }

    /// The socket of the client.
    pub(super) fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// Requests a connection to this port of the guest.
    pub(super) fn request(&mut self, port: u32, now: Instant) {
        self.phase = Phase::Requested;
        self.guest_port = port;
        self.deadline = Some(now + TIMEOUT);
        self.pending.request = true;
    }

    /// An event of the client's socket: it is readable, it hung up.
    pub(super) fn on_event(&mut self, readable: bool, hung_up: bool, now: Instant) -> Fate {
        self.readable |= readable || hung_up;
        if hung_up && !self.hung_up {
            self.hung_up = true;
            self.deadline = Some(now + LINGER);
        }
        match self.phase {
            Phase::Command | Phase::Closing => Fate::Kept,
            Phase::Requested if self.hung_up => self.abort(),
            Phase::Requested => Fate::Kept,
            Phase::Open => {
                self.flush();
                self.end(now)
            }
        }
    }

    /// Ends the connection without the guest's consent: it is reset, if the guest knows it.
    pub(super) fn abort(&self) -> Fate {
        match self.phase == Phase::Command || self.pending.request {
            true => Fate::Over,
            false => Fate::Reset,
        }
    }

    /// A packet of the guest for this connection. `host_port`: its port of the host.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        data: &[u8],
        host_port: u32,
        now: Instant,
    ) -> Fate {
        (self.guest_buf_alloc, self.guest_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        match (header.op, self.phase) {
            (Op::Reset, _) => self.on_reset(),
            (Op::Response, Phase::Requested) if !self.pending.request => self.open(host_port),
            (Op::Data, Phase::Open) if self.guest_ended & SHUT_SEND == 0 => self.take(data),
            (Op::Shutdown, Phase::Open | Phase::Closing) => {
                self.guest_ended |= header.flags & SHUT_BOTH;
                if self.guest_ended & SHUT_RECEIVE != 0 {
                    self.shut(Shutdown::Read);
                }
                self.flush();
                self.end(now)
            }
            (Op::CreditRequest, Phase::Open) => {
                self.pending.credit_update = true;
                Fate::Kept
            }
            (Op::CreditUpdate, Phase::Open | Phase::Closing) => Fate::Kept,
            // The client is gone: they are for nobody.
            (Op::Data | Op::CreditRequest, Phase::Closing) => Fate::Kept,
            _ => self.abort(),
        }
    }

    /// After a shutdown the guest's last data are still for the client; without one they are discarded, as TCP does.
    fn on_reset(&mut self) -> Fate {
        if self.guest_ended & SHUT_SEND == 0 || self.to_host.is_empty() {
            return Fate::Over;
        }
        self.guest_ended = SHUT_BOTH;
        Fate::Kept
    }

    /// The reply for the client is short: one that does not fit into its empty socket is not read by anybody.
    fn open(&mut self, host_port: u32) -> Fate {
        self.phase = Phase::Open;
        self.deadline = None;
        let reply = format!("OK {host_port}\n");
        match self
            .stream
            .as_ref()
            .map(|mut it| it.write(reply.as_bytes()))
        {
            Some(Ok(written)) if written == reply.len() => Fate::Kept,
            _ => self.abort(),
        }
    }

    /// Data of the guest.
    fn take(&mut self, data: &[u8]) -> Fate {
        let free = (self.buf_alloc as usize).saturating_sub(self.to_host.len());
        if data.len() > free {
            return self.abort();
        }
        let mut rest = data;
        if self.to_host.is_empty() {
            let written = self.write(data);
            rest = &data[written..];
        }
        self.to_host.extend(rest);
        self.credit();
        Fate::Kept
    }

    /// Writes as much to the client as it takes. Returns the number of bytes. Data for a client that is gone are discarded.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut written = 0;
        while written < data.len() {
            let Some(mut stream) = self.stream.as_ref() else {
                written = data.len();
                break;
            };
            match stream.write(&data[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.hung_up = true;
                    written = data.len();
                }
            }
        }
        self.fwd_cnt = self.fwd_cnt.wrapping_add(written as u32);
        written
    }

    /// Writes buffered data to the client.
    fn flush(&mut self) {
        while !self.to_host.is_empty() {
            let mut buffered = std::mem::take(&mut self.to_host);
            let (first, _) = buffered.as_slices();
            let written = self.write(first);
            let is_blocked = written < first.len();
            buffered.drain(..written);
            self.to_host = buffered;
            if is_blocked {
                break;
            }
        }
        if self.to_host.is_empty() {
            // A connection that is idle holds no memory.
            self.to_host = VecDeque::new();
            if self.guest_ended & SHUT_SEND != 0 {
                self.shut(Shutdown::Write);
            }
        }
        self.credit();
    }

    /// Reports free space to the guest when the guest may wait for it.
    fn credit(&mut self) {
        let unreported = self.fwd_cnt.wrapping_sub(self.reported_fwd_cnt);
        if self.phase == Phase::Open && unreported >= self.buf_alloc / 4 {
            self.pending.credit_update = true;
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            // Fails only if the client is gone.
            let _ = stream.shutdown(how);
        }
    }

    /// Closes the client's socket when both directions are over.
    fn end(&mut self, now: Instant) -> Fate {
        let guest_sent_all = self.guest_ended & SHUT_SEND != 0 && self.to_host.is_empty();
        let client_sent_all = self.host_ended || self.guest_ended & SHUT_RECEIVE != 0;
        let client_is_done = client_sent_all && (guest_sent_all || self.hung_up);
        if self.guest_ended == SHUT_BOTH && guest_sent_all {
            // The reset confirms the shutdown.
            return Fate::Reset;
        }
        if client_is_done && self.phase == Phase::Open {
            self.stream = None;
            self.to_host = VecDeque::new();
            self.phase = Phase::Closing;
            self.deadline = Some(now + TIMEOUT);
            self.pending.shutdown = SHUT_BOTH;
        }
        Fate::Kept
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn wants_to_send(&self) -> bool {
        let pending = self.pending;
        pending.request || pending.credit_update || pending.shutdown != 0 || self.may_read()
    }

    fn may_read(&self) -> bool {
        let credit = self.free_at_guest() > 0 || !self.has_asked;
        let open = self.phase == Phase::Open && self.guest_ended & SHUT_RECEIVE == 0;
        open && self.readable && !self.host_ended && credit && self.stream.is_some()
    }

    /// Free space in the guest's buffer. A guest that reports more space used than it has gets nothing.
    fn free_at_guest(&self) -> u32 {
        let used = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(used)
    }

    /// The next packet for the guest; its data is written into `buffer`, which is not empty. `None`: there is none now.
    pub(super) fn next_packet(
        &mut self,
        host_port: u32,
        buffer: &mut [u8],
        now: Instant,
    ) -> Option<Header> {
        let header = self.choose(buffer, now)?;
        self.pending.credit_update = false;
        self.reported_fwd_cnt = self.fwd_cnt;
        Some(Header {
            src_port: host_port,
            dst_port: self.guest_port,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..header
        })
    }

    fn choose(&mut self, buffer: &mut [u8], now: Instant) -> Option<Header> {
        let packet = |op| Some(Header::to_guest(0, 0, op));
        if std::mem::take(&mut self.pending.request) {
            return packet(Op::Request);
        }
        if self.may_read() {
            if self.free_at_guest() == 0 {
                self.has_asked = true;
                return packet(Op::CreditRequest);
            }
            if let Some(len) = self.read(buffer) {
                let header = Header::to_guest(0, 0, Op::Data);
                return Some(Header { len, ..header });
            }
            // A guest that has ended both directions is answered at its shutdown: here the connection never ends with a reset.
            self.end(now);
        }
        match std::mem::take(&mut self.pending.shutdown) {
            0 if self.pending.credit_update => packet(Op::CreditUpdate),
            0 => None,
            flags => packet(Op::Shutdown).map(|header| Header { flags, ..header }),
        }
    }

    /// Reads data of the client. `None`: there are none now, or it sends no more.
    fn read(&mut self, buffer: &mut [u8]) -> Option<u32> {
        let most = buffer.len().min(self.free_at_guest() as usize);
        loop {
            match self.stream.as_ref()?.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.host_ended = true;
                    self.pending.shutdown = SHUT_SEND;
                    return None;
                }
                Ok(count) => {
                    let count = count as u32;
                    self.sent = self.sent.wrapping_add(count);
                    self.has_asked = false;
                    return Some(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(_) => {
                    self.host_ended = true;
                    self.hung_up = true;
                    return None;
                }
            }
        }
    }
}
