//! A guest of a few lines: it answers ARP and ping on the TAP, reports when its gateway answers, ends on request.
//! Out of scope: the VMM around it. Its parameters are those of `tests/guest`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::vsock;

/// `struct virtio_net_hdr_v1`, before each frame on a TAP that was opened with `IFF_VNET_HDR`.
const HEADER: usize = 12;
/// Between two looks at the power button.
const GLANCE: Duration = Duration::from_millis(10);

/// How a guest comes to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was asked, or wanted to.
    PowerOff,
    /// A triple fault.
    Crash,
}

/// What it is told, and what it is wired to.
pub struct Setup {
    pub tap: OwnedFd,
    pub mac: [u8; 6],
    /// The kernel's command line, and the initrd if it is text.
    pub words: String,
    /// The socket of its vsock device.
    pub vsock: Option<UnixListener>,
}

/// One that runs.
pub struct Guest {
    /// What has gone over its card.
    pub traffic: Arc<Traffic>,
    held: Arc<(Mutex<bool>, Condvar)>,
    button: Arc<AtomicBool>,
    unplugged: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

/// Frames and bytes, as the VMM sees them: sent is what the guest has sent.
#[derive(Default)]
pub struct Traffic {
    pub sent: Way,
    pub received: Way,
}

#[derive(Default)]
pub struct Way {
    pub frames: AtomicU64,
    pub bytes: AtomicU64,
}

impl Way {
    fn count(&self, frame: &[u8]) {
        let bytes = u64::try_from(frame.len()).expect("a frame");
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Guest {
    /// Boots it in a thread of this name. `end` hears of its end, in that thread, unless it was unplugged.
    pub fn boot(thread: &str, setup: Setup, end: impl Fn(End) + Send + 'static) -> Self {
        let (held, button) = (Arc::default(), Arc::default());
        let unplugged = Arc::default();
        let traffic = Arc::<Traffic>::default();
        let mut machine = Machine::new(
            setup,
            Arc::clone(&held),
            Arc::clone(&button),
            Arc::clone(&unplugged),
        );
        machine.traffic = Arc::clone(&traffic);
        let run = move || {
            if let Some(how) = machine.run() {
                // Its card is free before anybody hears of it.
                drop(machine);
                end(how);
            }
        };
        let started = std::thread::Builder::new()
            .name(thread.to_owned())
            .spawn(run);
        Self {
            traffic,
            held,
            button,
            unplugged,
            thread: started.expect("a thread"),
        }
    }

    /// Ends it without asking, held or not.
    pub fn unplug(self) {
        self.unplugged.store(true, Ordering::SeqCst);
        self.hold(false);
        self.thread.join().expect("a guest does not panic");
    }

    /// Holds it, or lets it go on.
    pub fn hold(&self, hold: bool) {
        *self.held.0.lock().expect("nobody panics") = hold;
        self.held.1.notify_all();
    }

    /// Presses its power button, or Ctrl-Alt-Del. One that is held finds out later.
    pub fn press(&self) {
        self.button.store(true, Ordering::SeqCst);
    }
}

/// Echoes the lines that come in on the serial port, if it is a pipe, as Firecracker has it.
pub fn listen() {
    let stdin = rustix::fs::fstat(std::io::stdin()).expect("a standard input");
    if rustix::fs::FileType::from_raw_mode(stdin.st_mode) != rustix::fs::FileType::Fifo {
        return;
    }
    std::thread::spawn(|| {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            print(&format!("heard: {line}\r\n"));
        }
    });
}

/// To the serial port, which is our standard output. A port does not fail, whatever becomes of the words.
pub fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Opens a TAP as VMMs do (`Documentation/networking/tuntap.rst`); one queue, and it must be there.
pub fn open_tap(name: &str) -> Result<OwnedFd, String> {
    let wrap = |error: std::io::Error| format!("Open tap device failed: {name}: {error}");
    // TUNSETIFF would make one.
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        None,
    );
    socket
        .and_then(|socket| rustix::net::netdevice::name_to_index(socket, name))
        .map_err(|error| wrap(error.into()))?;
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(wrap)?;
    // SAFETY: an ifreq of zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("16 bits");
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call is over.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    if done < 0 {
        return Err(wrap(std::io::Error::last_os_error()));
    }
    let size = i32::try_from(HEADER).expect("small");
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) };
    match done {
        0 => Ok(tap.into()),
        _ => Err(wrap(std::io::Error::last_os_error())),
    }
}

struct Machine {
    tap: File,
    mac: [u8; 6],
    held: Arc<(Mutex<bool>, Condvar)>,
    button: Arc<AtomicBool>,
    unplugged: Arc<AtomicBool>,
    name: String,
    ip: Ipv4Addr,
    gateway: Ipv4Addr,
    gateway_mac: Option<[u8; 6]>,
    ready: bool,
    tiny: Vec<String>,
    traffic: Arc<Traffic>,
    vsock: Option<UnixListener>,
}

impl Machine {
    fn new(
        setup: Setup,
        held: Arc<(Mutex<bool>, Condvar)>,
        button: Arc<AtomicBool>,
        unplugged: Arc<AtomicBool>,
    ) -> Self {
        let word = |key: &str| {
            let words = setup.words.split_whitespace();
            let found = words.filter_map(|word| word.strip_prefix(key));
            found.map(str::to_owned).collect::<Vec<_>>()
        };
        let ip = word("ip=");
        let fields: Vec<&str> = ip.first().map_or(Vec::new(), |ip| ip.split(':').collect());
        let field = |nth: usize| fields.get(nth).copied().unwrap_or_default();
        let address = |nth| field(nth).parse().unwrap_or(Ipv4Addr::UNSPECIFIED);
        Self {
            // SAFETY: this descriptor is ours alone, and given away here.
            tap: unsafe { File::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(setup.tap)) },
            mac: setup.mac,
            held,
            button,
            unplugged,
            name: match field(4) {
                "" => "tiny".to_owned(),
                name => name.to_owned(),
            },
            ip: address(0),
            gateway: address(2),
            gateway_mac: None,
            ready: false,
            tiny: word("tiny="),
            traffic: Arc::default(),
            vsock: setup.vsock,
        }
    }

    fn has_option(&self, word: &str) -> bool {
        self.tiny.iter().any(|told| told == word)
    }

    /// None: it was unplugged.
    fn run(&mut self) -> Option<End> {
        print(&format!("tiny: {} starts\r\n", self.name));
        if self.has_option("crash") {
            print(&format!("tiny: {} crashes\r\n", self.name));
            return Some(End::Crash);
        }
        if let Some(listener) = &self.vsock {
            vsock::serve(listener);
            if self.has_option("dial") {
                vsock::dial(listener);
            }
        }
        let mut next_ping = Instant::now();
        loop {
            self.wait_while_held();
            if self.unplugged.load(Ordering::SeqCst) {
                return None;
            }
            if self.receive() {
                continue;
            }
            if self.has_option("flood") {
                print(&format!(
                    "tiny: {} floods\r\n",
                    "again and again ".repeat(8)
                ));
            }
            if self.button.swap(false, Ordering::SeqCst) {
                if !self.has_option("deaf") {
                    print(&format!("tiny: {} powers off\r\n", self.name));
                    return Some(End::PowerOff);
                }
                print(&format!("tiny: {} ignores the button\r\n", self.name));
            }
            if self.has_option("off") && self.ready {
                print(&format!("tiny: {} powers off by itself\r\n", self.name));
                return Some(End::PowerOff);
            }
            if Instant::now() >= next_ping {
                next_ping = Instant::now() + Duration::from_secs(1);
                self.call_gateway();
            }
        }
    }

    fn wait_while_held(&self) {
        let held = self.held.0.lock().expect("nobody panics");
        drop(self.held.1.wait_while(held, |held| *held));
    }

    /// Whether there was a frame.
    fn receive(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.tap, PollFlags::IN)];
        let glance = match self.has_option("flood") {
            true => Duration::ZERO,
            false => GLANCE,
        };
        let glance = Timespec::try_from(glance).expect("short");
        if !matches!(poll(&mut fds, Some(&glance)), Ok(1)) {
            return false;
        }
        let mut frame = [0; HEADER + 65536];
        let Ok(length) = self.tap.read(&mut frame) else {
            std::thread::sleep(GLANCE);
            return false;
        };
        let held = *self.held.0.lock().expect("nobody panics");
        if !held && let Some(frame) = frame.get(HEADER..length) {
            self.traffic.received.count(frame);
            self.handle_frame(frame);
        }
        true
    }

    fn handle_frame(&mut self, frame: &[u8]) {
        match frame.get(12..14) {
            Some([0x08, 0x06]) if frame.len() >= 42 => self.receive_arp(frame),
            Some([0x08, 0x00]) if frame.len() >= 42 => self.receive_ping(frame),
            _ => {}
        }
    }

    /// RFC 826.
    fn receive_arp(&mut self, frame: &[u8]) {
        let (sender_mac, sender, target) = (&frame[22..28], &frame[28..32], &frame[38..42]);
        let sender_mac: [u8; 6] = sender_mac.try_into().expect("six");
        if frame[20..22] == [0, 2] && sender == self.gateway.octets() {
            self.gateway_mac = Some(sender_mac);
            self.call_gateway();
        }
        if frame[20..22] == [0, 1] && target == self.ip.octets() {
            let answer = self.arp(2, sender_mac, sender);
            self.send(&answer);
        }
    }

    fn arp(&self, operation: u8, to_mac: [u8; 6], to: &[u8]) -> Vec<u8> {
        let mut frame = match operation {
            1 => vec![0xff; 6],
            _ => to_mac.to_vec(),
        };
        frame.extend(self.mac);
        frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
        frame.extend(self.mac);
        frame.extend(self.ip.octets());
        frame.extend(to_mac);
        frame.extend(to);
        frame
    }

    /// RFC 792; options are not looked for.
    fn receive_ping(&mut self, frame: &[u8]) {
        let icmp = frame[14] == 0x45 && frame[23] == 1 && frame[30..34] == self.ip.octets();
        if !icmp {
            return;
        }
        if frame[34] == 0 && frame[26..30] == self.gateway.octets() && !self.ready {
            self.ready = true;
            print(&format!("ready {} {}\r\n", self.name, self.ip));
        }
        if frame[34] != 8 {
            return;
        }
        let mut answer = frame.to_vec();
        answer[..6].copy_from_slice(&frame[6..12]);
        answer[6..12].copy_from_slice(&self.mac);
        answer[26..30].copy_from_slice(&frame[30..34]);
        answer[30..34].copy_from_slice(&frame[26..30]);
        answer[34] = 0;
        // Addresses that change places leave the header's sum as it was; the type was 8 and is 0 (RFC 1624).
        let length = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let end = (14 + length).min(answer.len());
        answer[36..38].copy_from_slice(&[0, 0]);
        let sum = checksum(&answer[34..end]);
        answer[36..38].copy_from_slice(&sum);
        self.send(&answer);
    }

    fn call_gateway(&mut self) {
        if self.gateway.is_unspecified() {
            return;
        }
        let gateway = self.gateway.octets();
        let frame = match self.gateway_mac {
            None => self.arp(1, [0; 6], &gateway),
            Some(mac) => self.ping(mac),
        };
        self.send(&frame);
    }

    fn ping(&self, to: [u8; 6]) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0];
        header.extend(self.ip.octets());
        header.extend(self.gateway.octets());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        let mut icmp = vec![8, 0, 0, 0, 0x74, 0x19, 0, 1];
        icmp.extend(b"tinytiny");
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum);
        let mut frame = to.to_vec();
        frame.extend(self.mac);
        frame.extend([0x08, 0x00]);
        frame.extend(header);
        frame.extend(icmp);
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; HEADER];
        bytes.extend(frame);
        // A frame that does not go out is a frame lost.
        if self.tap.write(&bytes).is_ok() {
            self.traffic.sent.count(frame);
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let sum = u16::try_from(sum).expect("folded");
    (!sum).to_be_bytes()
}
