//! A bridge and TAPs in the test's own namespace, and the guest's end of each TAP.
//! Out of scope: tests.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use slicectl::host::bridge::{self, NewBridge};
use slicectl::host::link::{self, Change, State};
use slicectl::host::netns::Netns;
use slicectl::host::tap::{self, Framing, Owner};
use slicectl::host::{Error, Handle, Kind};

use test_support::guest_stack;

/// For what is a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

pub const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// A conversation with the kernel of the test, where nothing sends by itself.
pub async fn kernel() -> Handle {
    test_support::kernel::run(
        "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
         echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables
         echo 0 > /proc/sys/net/bridge/bridge-nf-call-ip6tables
         echo 0 > /proc/sys/net/bridge/bridge-nf-call-arptables",
    );
    Netns::current().unwrap().netlink().unwrap()
}

pub async fn index(handle: &Handle, name: &str) -> u32 {
    let found = link::get(handle, name).await.unwrap();
    found.expect(name).index
}

pub fn kind<T>(result: Result<T, Error>) -> Option<Kind> {
    result.err().map(|error| error.kind)
}

/// A bridge that is up, and its index.
pub async fn bridge(handle: &Handle, name: &str) -> u32 {
    let birth = NewBridge {
        name: name.into(),
        mac: BRIDGE_MAC,
        mtu: 1500,
        group: 0,
    };
    bridge::create(handle, &birth).await.unwrap();
    let index = index(handle, name).await;
    link::set(handle, index, &up()).await.unwrap();
    index
}

pub fn up() -> Change {
    Change {
        state: Some(State::Up),
        ..Change::default()
    }
}

/// A TAP that is up, and the guest's end of it.
pub struct Wire {
    pub index: u32,
    tap: File,
}

impl Wire {
    /// A TAP on its own, or a port of a bridge.
    pub async fn lay(handle: &Handle, name: &str, master: Option<u32>) -> Self {
        let owner = Owner { uid: 0, gid: None };
        let born = Change { master, ..up() };
        tap::create(name, owner, &born).unwrap();
        let tap = guest_stack::attach(name, Framing::Plain).unwrap();
        let index = index(handle, name).await;
        let this = Self { index, tap };
        this.until_it_carries(handle, name).await;
        this
    }

    /// A TAP's queue, and with it the port, starts a moment after somebody attaches.
    async fn until_it_carries(&self, handle: &Handle, name: &str) {
        let begin = Instant::now();
        let state = format!("/sys/class/net/{name}/operstate");
        while std::fs::read_to_string(&state).unwrap().trim() != "up" {
            assert!(begin.elapsed() < PATIENCE, "{name} is down");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The state is shown first, the queue and the bridge follow under the same lock (`linkwatch_do_dev`): take it, too.
        link::set(handle, self.index, &up()).await.unwrap();
    }

    /// `false`: the kernel does not take it (shorter than an Ethernet header).
    pub fn send(&self, frame: &[u8]) -> bool {
        (&self.tap).write_all(frame).is_ok()
    }

    /// What lies there, if anything.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 70_000];
        match (&self.tap).read(&mut buffer) {
            Ok(length) => Some(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("cannot read from the TAP: {error}"),
        }
    }

    /// Whether that frame comes before `last` does, which must come.
    #[track_caller]
    pub fn receives(&self, frame: &[u8], last: &[u8]) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut received = false;
        loop {
            match self.read() {
                Some(found) if found == last => return received,
                Some(found) => received |= found == frame,
                None => {
                    assert!(Instant::now() < until, "the last frame never came");
                    let mut fds = [PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN)];
                    let time = Timespec::try_from(Duration::from_millis(20)).unwrap();
                    let _ = poll(&mut fds, Some(&time));
                }
            }
        }
    }
}
