//! A guest: the test itself, at the other end of a real TAP.
//! Out of scope: what lies behind the TAP (`lab`).

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slicectl::host::tap::{self, Framing};
use slicectl::host::{self, netns::Netns};

use super::frames::{self, Ip};

/// What a probe is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Udp(u16),
    /// A SYN.
    Tcp(u16),
    /// An echo request.
    Ping,
}

/// Attaches to a TAP of this namespace. A child that another test forks has a copy of the descriptor of the guest before until its
/// exec (O_CLOEXEC), and a TAP without queues takes one descriptor at a time (EBUSY).
pub fn attach(tap: &str, framing: Framing) -> Result<File, host::Error> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match tap::attach(tap, framing) {
            Err(error) if error.kind == host::Kind::Busy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            attached => return attached,
        }
    }
}

/// Attached to a VM's TAP.
pub struct Guest {
    tap: File,
    framing: Framing,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub gateway_mac: [u8; 6],
}

impl Guest {
    /// Opens `tap0` of the namespace and asks for the gateway's MAC, as a guest would.
    pub fn attach(netns: &Path, framing: Framing, mac: [u8; 6], ip: Ipv4Addr) -> Self {
        Self::attach_via(netns, framing, mac, ip, Ipv4Addr::from(u32::from(ip) - 1))
    }

    /// The same, where the gateway is not the address before the guest's.
    pub fn attach_via(
        netns: &Path,
        framing: Framing,
        mac: [u8; 6],
        ip: Ipv4Addr,
        gateway: Ipv4Addr,
    ) -> Self {
        let netns = Netns::open(netns).expect("the VM's namespace");
        let tap = netns.run_here(|| attach("tap0", framing)).expect("tap0");
        let mut guest = Self {
            tap,
            framing,
            mac,
            ip,
            gateway,
            gateway_mac: frames::BROADCAST,
        };
        // The kernel starts a TAP's queue a moment after it is attached to; a guest asks again, too.
        let found = (0..50).find_map(|_| guest.resolve(guest.gateway));
        guest.gateway_mac = found.expect("the gateway answers ARP");
        guest
    }

    /// Opens a TAP of this namespace and asks nobody anything.
    pub fn on_tap(tap: &str, mac: [u8; 6], ip: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        Self {
            tap: attach(tap, Framing::Plain).expect("the TAP"),
            framing: Framing::Plain,
            mac,
            ip,
            gateway,
            gateway_mac: frames::BROADCAST,
        }
    }

    /// [`Self::on_tap`], and asks for the gateway's MAC.
    pub fn join(tap: &str, mac: [u8; 6], ip: Ipv4Addr, gateway: Ipv4Addr) -> Self {
        let mut guest = Self::on_tap(tap, mac, ip, gateway);
        let found = (0..50).find_map(|_| guest.resolve(gateway));
        guest.gateway_mac = found.expect("the gateway answers ARP");
        guest
    }

    /// Who has this address? `None`: nobody says.
    pub fn resolve(&self, address: Ipv4Addr) -> Option<[u8; 6]> {
        self.send(&frames::who_has(self.mac, self.ip, address));
        let answer = |frame: &[u8]| {
            frame.get(12..14) == Some(&[8, 6])
                && frame.get(20..22) == Some(&[0, 2])
                && frame.get(28..32) == Some(&address.octets())
        };
        let frame = self.receive(Duration::from_millis(100), answer)?;
        frame[22..28].try_into().ok()
    }

    /// One frame as it is. A TAP that is down takes none (EIO): while a VM's path is made anew, its gate is still shut.
    pub fn send(&self, frame: &[u8]) {
        let head: &[u8] = match self.framing {
            Framing::Plain => &[],
            Framing::VnetHdr => &[0; 10],
        };
        let whole = [head, frame].concat();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match (&self.tap).write_all(&whole) {
                Err(e) if e.raw_os_error() == Some(libc::EIO) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                sent => return sent.expect("a frame sent"),
            }
        }
    }

    /// Gives the TAP another MAC through its descriptor, as a VMM could (`SIOCSIFHWADDR`); what the kernel answers.
    pub fn change_mac(&self, mac: [u8; 6]) -> std::io::Result<()> {
        // SAFETY: an ifreq of zeroes is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let mut address = libc::sockaddr {
            sa_family: libc::ARPHRD_ETHER,
            sa_data: [0; 14],
        };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_hwaddr = address;
        // SAFETY: the request is read and written by the call, through which it lives.
        let answer = unsafe {
            libc::ioctl(
                self.tap.as_raw_fd(),
                libc::SIOCSIFHWADDR as libc::Ioctl,
                &raw mut request,
            )
        };
        match answer {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// One packet to the gateway.
    pub fn send_ip(&self, packet: &Ip) {
        let frame = frames::ethernet(self.gateway_mac, self.mac, 0x0800, &packet.bytes());
        self.send(&frame);
    }

    /// One packet to a neighbour on the same wire.
    pub fn send_ip_to(&self, mac: [u8; 6], packet: &Ip) {
        self.send(&frames::ethernet(mac, self.mac, 0x0800, &packet.bytes()));
    }

    /// A probe with a number, from a source port or echo identity of its own.
    pub fn probe(&self, id: u32, destination: Ipv4Addr, kind: Kind) {
        self.send_ip(&self.packet(id, destination, kind));
    }

    /// The packet of [`Self::probe`], to be made odd first.
    pub fn packet(&self, id: u32, destination: Ipv4Addr, kind: Kind) -> Ip {
        let own = 2000 + (id % 50_000) as u16;
        let data = frames::mark(id);
        let (protocol, payload) = match kind {
            Kind::Udp(port) => (frames::UDP, frames::udp(own, port, &data)),
            Kind::Tcp(port) => {
                let segment = frames::syn(self.ip, destination, own, port, &data);
                (frames::TCP, segment)
            }
            Kind::Ping => (frames::ICMP, frames::echo(own, &data)),
        };
        Ip::new(self.ip, destination, protocol, payload)
    }

    /// The first frame that `wanted` likes, and that comes in time. Others are lost.
    pub fn receive(&self, patience: Duration, desired: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        loop {
            match self.read() {
                Some(frame) if desired(&frame) => return Some(frame),
                Some(_) => {}
                None => {
                    let left = until.checked_duration_since(Instant::now())?;
                    self.wait(left);
                }
            }
        }
    }

    /// An IPv4 packet that `wanted` likes.
    pub fn receive_packet(
        &self,
        patience: Duration,
        desired: impl Fn(&frames::Seen) -> bool,
    ) -> Option<frames::Seen> {
        let frame = self.receive(patience, |frame| {
            frames::read(frame).is_some_and(|s| desired(&s))
        });
        frames::read(&frame?)
    }

    /// What lies there, if anything.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 70_000];
        match (&self.tap).read(&mut buffer) {
            Ok(length) => {
                let head = match self.framing {
                    Framing::Plain => 0,
                    Framing::VnetHdr => 10,
                };
                Some(buffer[head..length].to_vec())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot read from the TAP: {error}"),
        }
    }

    /// Until there is something to read, or time is up.
    pub fn wait(&self, patience: Duration) {
        let mut fds = [PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN)];
        let time = Timespec::try_from(patience).expect("a time");
        let _ = poll(&mut fds, Some(&time));
    }
}
