//! Talking with a running VMM through its control socket: one way for all of them.
//! Not here: when, and what follows.
//!
//! | VMM | socket | protocol |
//! |---|---|---|
//! | QEMU | `qmp.sock` | QMP (`qmp`) |
//! | Firecracker | `firecracker.sock` | HTTP (`rest`) |
//! | Cloud Hypervisor | `cloud-hypervisor.sock` | HTTP (`rest`) |
//!
//! Every order is bounded by [`DEADLINE`], and goes to the process that is meant: a socket that another one listens on by now
//! is not asked.

mod qmp;
mod rest;

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::api::vm::Hypervisor;
use crate::host::Error;

/// For one order and its answer. QEMU serves one client at a time: another one there makes us wait.
const DEADLINE: Duration = Duration::from_secs(1);
/// Between two attempts at a VMM that is starting.
const RETRY: Duration = Duration::from_millis(5);

/// How a VMM is talked with. Each has a socket name of its own, so a run directory tells which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// QEMU's machine protocol.
    Qmp,
    /// Firecracker's API.
    Firecracker,
    /// Cloud Hypervisor's API.
    CloudHypervisor,
}

/// What a guest is doing, as its VMM says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Not yet running.
    Starting,
    /// Running.
    Running,
    /// Held; its devices, too.
    Paused,
    /// It has ended, and the VMM has not (yet).
    Ended,
}

/// What a guest can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    PowerDown,
    Pause,
    Resume,
}

impl Control {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Qmp, Self::Firecracker, Self::CloudHypervisor];

    /// The one of this hypervisor.
    pub fn of(hypervisor: Hypervisor) -> Option<Self> {
        match hypervisor {
            Hypervisor::None => None,
            Hypervisor::Qemu => Some(Self::Qmp),
            Hypervisor::Firecracker => Some(Self::Firecracker),
            Hypervisor::CloudHypervisor => Some(Self::CloudHypervisor),
        }
    }

    /// The one whose socket is in this run directory.
    pub fn in_dir(dir: &Path) -> Option<Self> {
        let there = |control: &Self| dir.join(control.socket()).exists();
        Self::ALL.into_iter().find(there)
    }

    /// The socket's name in the run directory.
    pub const fn socket(self) -> &'static str {
        match self {
            Self::Qmp => "qmp.sock",
            Self::Firecracker => "firecracker.sock",
            Self::CloudHypervisor => "cloud-hypervisor.sock",
        }
    }

    /// Asks the guest that process `pid` runs to power down: the power button, or Ctrl-Alt-Del where there is none. A paused
    /// guest is resumed first, it would not hear. Returns when the VMM has taken the order, not when the guest is down.
    pub async fn power_down(self, dir: &Path, pid: u32) -> Result<(), Error> {
        if self.state(dir, pid).await? == GuestState::Paused {
            self.resume(dir, pid).await?;
        }
        self.order(dir, pid, Order::PowerDown).await
    }

    /// Holds the guest. One that is held already is no error.
    pub async fn pause(self, dir: &Path, pid: u32) -> Result<(), Error> {
        match self.state(dir, pid).await? {
            GuestState::Paused => Ok(()),
            _ => self.order(dir, pid, Order::Pause).await,
        }
    }

    /// Lets the guest go on. One that runs already is no error.
    pub async fn resume(self, dir: &Path, pid: u32) -> Result<(), Error> {
        match self.state(dir, pid).await? {
            GuestState::Running => Ok(()),
            _ => self.order(dir, pid, Order::Resume).await,
        }
    }

    /// What the guest is doing.
    pub async fn state(self, dir: &Path, pid: u32) -> Result<GuestState, Error> {
        let ask = async || match self {
            Self::Qmp => qmp::state(connect(&self.path(dir), pid).await?).await,
            Self::Firecracker => {
                rest::firecracker_state(connect(&self.path(dir), pid).await?).await
            }
            Self::CloudHypervisor => {
                rest::cloud_hypervisor_state(connect(&self.path(dir), pid).await?).await
            }
        };
        self.bounded(dir, ask()).await
    }

    /// Comes back when process `pid` runs its guest. Never, if it does not: bound it.
    pub async fn wait_until_up(self, dir: &Path, pid: u32) {
        match self {
            // Asked before, it would panic instead of telling what is wrong with its configuration.
            Self::Firecracker => wait_for_thread(pid, "fc_vcpu").await,
            Self::Qmp | Self::CloudHypervisor => {}
        }
        while matches!(
            self.state(dir, pid).await,
            Err(_) | Ok(GuestState::Starting)
        ) {
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn order(self, dir: &Path, pid: u32, order: Order) -> Result<(), Error> {
        let tell = async || {
            let stream = connect(&self.path(dir), pid).await?;
            match self {
                Self::Qmp => qmp::order(stream, order).await,
                Self::Firecracker => rest::firecracker_order(stream, order).await,
                Self::CloudHypervisor => rest::cloud_hypervisor_order(stream, order).await,
            }
        };
        self.bounded(dir, tell()).await
    }

    async fn bounded<T>(
        self,
        dir: &Path,
        talk: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Error> {
        let answered = tokio::time::timeout(DEADLINE, talk).await;
        answered
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| Error::io("ask through", self.path(dir).display().to_string(), error))
    }

    fn path(self, dir: &Path) -> std::path::PathBuf {
        dir.join(self.socket())
    }
}

/// Comes back when process `pid` has a thread whose name starts so (proc(5), `comm`).
async fn wait_for_thread(pid: u32, name: &str) {
    let there = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        let mut threads = threads.into_iter().flatten().flatten();
        threads.any(|thread| {
            let comm = std::fs::read_to_string(thread.path().join("comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        })
    };
    while !there() {
        tokio::time::sleep(RETRY).await;
    }
}

/// Connects to this very process (unix(7), SO_PEERCRED).
async fn connect(socket: &Path, pid: u32) -> io::Result<UnixStream> {
    // Through a descriptor of its directory: a socket's path holds 107 bytes at most.
    let dir = std::fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    let stream = UnixStream::connect(short).await?;
    let peer = stream.peer_cred()?.pid();
    match peer.and_then(|peer| u32::try_from(peer).ok()) == Some(pid) {
        true => Ok(stream),
        false => Err(io::Error::other("another process listens there")),
    }
}
