//! The few words of QEMU's machine protocol that we speak (docs/interop/qmp-spec.txt).
//! Not here: when to say them.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::host::Error;

/// QEMU serves one client at a time: another one there makes us wait.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(10);

/// Presses the power button of the guest that process `pid` runs: a socket that another one listens on by now is not asked.
/// Returns when QEMU has taken the order, not when the guest is down.
pub(super) async fn power_down(socket: &Path, pid: u32) -> Result<(), Error> {
    let talk = async {
        let mut monitor = Monitor::open(socket).await?;
        if monitor.peer()? != Some(pid) {
            return Err(io::Error::other("another process listens there"));
        }
        monitor.order("qmp_capabilities").await?;
        monitor.order("system_powerdown").await
    };
    let answered = tokio::time::timeout(ANSWER_DEADLINE, talk).await;
    answered
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| Error::io("ask through", socket.display().to_string(), error))
}

/// Comes back when QEMU obeys, which it does once the machine is made and its kernel loaded (it greets before that, from a
/// thread of its own). Never, if it does not: bound it.
pub(super) async fn wait_until_up(socket: &Path) {
    let obeys = async || Monitor::open(socket).await?.order("qmp_capabilities").await;
    while obeys().await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
}

struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects and hears the greeting.
    async fn open(socket: &Path) -> io::Result<Self> {
        // Through a descriptor of its directory: a socket's path holds 107 bytes at most.
        let dir = std::fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
        let name = socket.file_name().unwrap_or_default();
        let short = Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name);
        let mut monitor = Self {
            stream: BufReader::new(UnixStream::connect(short).await?),
        };
        monitor.hear().await?;
        Ok(monitor)
    }

    /// Who listens (unix(7), SO_PEERCRED).
    fn peer(&self) -> io::Result<Option<u32>> {
        let peer = self.stream.get_ref().peer_cred()?;
        Ok(peer.pid().and_then(|pid| u32::try_from(pid).ok()))
    }

    /// Says one command and waits for its answer; events in between are passed over.
    async fn order(&mut self, command: &str) -> io::Result<()> {
        let text = format!("{{\"execute\":\"{command}\"}}\n");
        self.stream.get_mut().write_all(text.as_bytes()).await?;
        loop {
            let answer = self.hear().await?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(error.to_string()));
            }
        }
    }

    async fn hear(&mut self) -> io::Result<serde_json::Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    }
}
