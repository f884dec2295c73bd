//! Client of the control socket of a running VMM, with one interface for all VMMs.
//! Out of scope: when requests are sent; reactions to responses.
//!
//! | VMM | socket | protocol |
//! |---|---|---|
//! | QEMU | `qmp.sock` | QMP (`qmp`) |
//! | Firecracker | `firecracker.sock` | HTTP (`rest`) |
//! | Cloud Hypervisor | `cloud-hypervisor.sock` | HTTP (`rest`) |
//!
//! Every request is bounded by [`DEADLINE`] and is sent only to the intended process: a socket on which another process listens is an
//! error.

mod pipe;
mod qmp;
mod rest;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::METRICS;
use crate::api::metrics::Counters;
use crate::api::vm::Hypervisor;
use crate::host::Error;

/// Deadline for a request and its response. QEMU serves one client at a time: another client delays the request.
const DEADLINE: Duration = Duration::from_secs(1);
/// First and longest interval between attempts while a VMM starts; each interval is twice the previous one.
const FIRST_RETRY: Duration = Duration::from_millis(1);
const LAST_RETRY: Duration = Duration::from_millis(8);

/// The control protocol of a VMM. Each has a different socket name, so the run directory identifies the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// QEMU's machine protocol.
    Qmp,
    /// Firecracker's API.
    Firecracker,
    /// Cloud Hypervisor's API.
    CloudHypervisor,
}

/// The state of a guest, as its VMM reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Not yet running.
    Starting,
    /// Running.
    Running,
    /// Paused, including its devices.
    Paused,
    /// It has ended, and the VMM has not yet.
    Ended,
}

/// A request to a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    PowerDown,
    Pause,
    Resume,
}

impl Control {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Qmp, Self::Firecracker, Self::CloudHypervisor];

    /// The protocol of this hypervisor.
    pub fn of(hypervisor: Hypervisor) -> Option<Self> {
        match hypervisor {
            Hypervisor::None => None,
            Hypervisor::Qemu => Some(Self::Qmp),
            Hypervisor::Firecracker => Some(Self::Firecracker),
            Hypervisor::CloudHypervisor => Some(Self::CloudHypervisor),
        }
    }

    /// The protocol of the socket in this run directory.
    pub fn in_dir(dir: &Path) -> Option<Self> {
        let exists = |control: &Self| dir.join(control.socket()).exists();
        Self::ALL.into_iter().find(exists)
    }

    /// The socket's name in the run directory.
    pub const fn socket(self) -> &'static str {
        match self {
            Self::Qmp => "qmp.sock",
            Self::Firecracker => "firecracker.sock",
            Self::CloudHypervisor => "cloud-hypervisor.sock",
        }
    }

    /// Requests the guest of process `pid` to power down, with the power button or, without one, with Ctrl-Alt-Del. A paused guest is
    /// resumed first, because it could not react. Returns when the VMM has accepted the request, not when the guest is down.
    pub async fn power_down(self, dir: &Path, pid: u32) -> Result<(), Error> {
        if self.state(dir, pid).await? == GuestState::Paused {
            self.resume(dir, pid).await?;
        }
        self.send(dir, pid, Command::PowerDown).await
    }

    /// Pauses the guest. It is no error if it is paused already.
    pub async fn pause(self, dir: &Path, pid: u32) -> Result<(), Error> {
        match self.state(dir, pid).await? {
            GuestState::Paused => Ok(()),
            _ => self.send(dir, pid, Command::Pause).await,
        }
    }

    /// Resumes the guest. It is no error if it runs already.
    pub async fn resume(self, dir: &Path, pid: u32) -> Result<(), Error> {
        match self.state(dir, pid).await? {
            GuestState::Running => Ok(()),
            _ => self.send(dir, pid, Command::Resume).await,
        }
    }

    /// The state of the guest.
    pub async fn state(self, dir: &Path, pid: u32) -> Result<GuestState, Error> {
        let request = async || match self {
            Self::Qmp => qmp::state(connect(&self.path(dir), pid).await?).await,
            Self::Firecracker => {
                rest::firecracker_state(connect(&self.path(dir), pid).await?).await
            }
            Self::CloudHypervisor => {
                rest::cloud_hypervisor_state(connect(&self.path(dir), pid).await?).await
            }
        };
        self.bounded(dir, request()).await
    }

    /// The counters of the VMM.
    pub async fn metrics(self, dir: &Path, pid: u32) -> Result<Counters, Error> {
        let request = async || {
            let connect = || async { connect(&self.path(dir), pid).await };
            match self {
                Self::Qmp => qmp::metrics(connect().await?).await,
                Self::Firecracker => {
                    let stream = connect().await?;
                    let lines = pipe::Lines::open(&dir.join(METRICS))?;
                    rest::firecracker_flush(stream).await?;
                    let mut counters = rest::counters(&lines.next().await?)?;
                    // The time of the report is not a counter.
                    counters.remove("utc_timestamp_ms");
                    Ok(counters)
                }
                Self::CloudHypervisor => rest::cloud_hypervisor_counters(connect().await?).await,
            }
        };
        self.bounded(dir, request()).await
    }

    /// Returns when process `pid` runs its guest. If it never does, this never returns: use a timeout.
    pub async fn wait_until_up(self, dir: &Path, pid: u32) {
        match self {
            // A request before that would cause a panic, instead of an error message about its configuration.
            Self::Firecracker => wait_for_thread(pid, "fc_vcpu").await,
            Self::Qmp | Self::CloudHypervisor => {}
        }
        let mut delay = FIRST_RETRY;
        while matches!(
            self.state(dir, pid).await,
            Err(_) | Ok(GuestState::Starting)
        ) {
            tokio::time::sleep(delay).await;
            delay = LAST_RETRY.min(delay * 2);
        }
    }

    async fn send(self, dir: &Path, pid: u32, command: Command) -> Result<(), Error> {
        let send = async || {
            let stream = connect(&self.path(dir), pid).await?;
            match self {
                Self::Qmp => qmp::send(stream, command).await,
                Self::Firecracker => rest::send_to_firecracker(stream, command).await,
                Self::CloudHypervisor => rest::send_to_cloud_hypervisor(stream, command).await,
            }
        };
        self.bounded(dir, send()).await
    }

    async fn bounded<T>(
        self,
        dir: &Path,
        talk: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Error> {
        let result = tokio::time::timeout(DEADLINE, talk).await;
        result
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| {
                Error::io(
                    "send a request to",
                    self.path(dir).display().to_string(),
                    error,
                )
            })
    }

    fn path(self, dir: &Path) -> std::path::PathBuf {
        dir.join(self.socket())
    }
}

/// Returns when process `pid` has a thread with a name that starts with `name` (proc(5), `comm`).
async fn wait_for_thread(pid: u32, name: &str) {
    let exists = || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        let mut threads = threads.into_iter().flatten().flatten();
        threads.any(|thread| {
            let comm = std::fs::read_to_string(thread.path().join("comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        })
    };
    let mut delay = FIRST_RETRY;
    while !exists() {
        tokio::time::sleep(delay).await;
        delay = LAST_RETRY.min(delay * 2);
    }
}

/// Connects to the socket of process `pid` (unix(7), SO_PEERCRED). Symbolic links, which the VMM may have created, are not followed.
async fn connect(socket: &Path, pid: u32) -> io::Result<UnixStream> {
    // Connects through a descriptor, so that the checked file is used, and because the path of a socket has at most 107 bytes.
    let found = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(socket)?;
    if !found.metadata()?.file_type().is_socket() {
        return Err(io::Error::other("it is not a socket"));
    }
    let path = Path::new("/proc/self/fd").join(found.as_raw_fd().to_string());
    let stream = UnixStream::connect(path).await?;
    let peer = stream.peer_cred()?.pid();
    match peer.and_then(|peer| u32::try_from(peer).ok()) == Some(pid) {
        true => Ok(stream),
        false => Err(io::Error::other("another process listens on it")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Misbehaves as a server: sends nothing, sends slowly, never ends, sends too much, closes early.
    async fn misbehave(mut stream: UnixStream, how: &str) {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        let endless = vec![b'9'; 64 << 10];
        match how {
            "nothing" => {}
            "drip" => {
                for byte in "{\"QMP\": {}}\n".bytes().chain(head.bytes()) {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
            "endless head" => while stream.write_all(&endless).await.is_ok() {},
            "endless body" => {
                let _ = stream.write_all(format!("{head}\r\n[").as_bytes()).await;
                while stream.write_all(&endless).await.is_ok() {}
            }
            "huge" => {
                let length = format!("{head}content-length: 99999999999\r\n\r\n{{");
                let _ = stream.write_all(length.as_bytes()).await;
                while stream.write_all(&endless).await.is_ok() {}
            }
            "closed" => return,
            how => panic!("{how}"),
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn a_misbehaving_server_causes_an_error_within_the_deadline() {
        let hows = [
            "nothing",
            "drip",
            "endless head",
            "endless body",
            "huge",
            "closed",
        ];
        let trial = async |control: Control, how: &'static str| {
            let dir = tempfile::tempdir().unwrap();
            let listener = tokio::net::UnixListener::bind(control.path(dir.path())).unwrap();
            let server = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(misbehave(stream, how));
                }
            });
            let us = std::process::id();
            let began = crate::clock::monotonic();
            let result = control.state(dir.path(), us).await;
            let took = crate::clock::monotonic().duration_since(began);
            assert!(result.is_err(), "{control:?}, {how}: {result:?}");
            assert!(took < 3 * DEADLINE, "{control:?}, {how}: {took:?}");
            server.abort();
        };
        let trials = hows
            .iter()
            .flat_map(|how| Control::ALL.map(|control| trial(control, how)));
        futures::future::join_all(trials).await;
    }

    #[tokio::test]
    async fn a_socket_is_not_connected_to_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let (far, near) = (dir.path().join("far"), dir.path().join("near"));
        let listener = tokio::net::UnixListener::bind(&far).unwrap();
        std::os::unix::fs::symlink(&far, &near).unwrap();
        let us = std::process::id();
        assert!(connect(&far, us).await.is_ok());
        listener.accept().await.unwrap();
        assert!(connect(&near, us).await.is_err(), "through a link");
        let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(nobody.is_err(), "no connection attempt");
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(connect(&dir.path().join("file"), us).await.is_err());
    }
}
