//! How a VM's VMM is started and stopped.
//! Out of scope: doing it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// From its start to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The VMM's program, an absolute path. None: by its usual name in the daemon's `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// Firecracker's jailer, an absolute path. None: the one in the daemon's `PATH`, if it can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jailer: Option<PathBuf>,
    /// Words for the end of the kernel's command line: printable ASCII, at most [`MAX_CMDLINE`] bytes, never `ip=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// QEMU only.
    #[serde(default, skip_serializing_if = "Board::is_default")]
    pub board: Board,
    /// What follows when the VMM ends of itself. Taken over live.
    #[serde(default, skip_serializing_if = "Restart::is_default")]
    pub restart: Restart,
    /// How long a guest that was asked to power down is waited for. Taken over live.
    #[serde(default, skip_serializing_if = "Grace::is_default")]
    pub graceful_shutdown: Grace,
}

/// What follows when a VMM ends of itself: not because it was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It is started again, however it ended.
    #[default]
    Always,
    /// It is started again unless it ended with status 0. An end that nobody saw counts as a failure.
    OnFailure,
    /// It stays down.
    Never,
}

impl Restart {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        })
    }
}

/// How long a guest is waited for once it was asked to power down: 0s (it is not even asked) to 10m. Written as humantime writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grace(Duration);

impl Grace {
    /// The longest.
    pub const MAX: Duration = Duration::from_secs(600);

    /// So long.
    pub fn get(self) -> Duration {
        self.0
    }

    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self(Duration::from_secs(3))
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&humantime::format_duration(self.0).to_string())
    }
}

/// What is wrong with a text that was to be a [`Grace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time from 0s to 10m, such as 5s")]
pub struct InvalidGrace;

impl FromStr for Grace {
    type Err = InvalidGrace;
    fn from_str(text: &str) -> Result<Self, InvalidGrace> {
        let time = humantime::parse_duration(text).map_err(|_| InvalidGrace)?;
        (time <= Self::MAX)
            .then_some(Self(time))
            .ok_or(InvalidGrace)
    }
}

impl TryFrom<String> for Grace {
    type Error = InvalidGrace;
    fn try_from(text: String) -> Result<Self, InvalidGrace> {
        text.parse()
    }
}

impl From<Grace> for String {
    fn from(grace: Grace) -> Self {
        grace.to_string()
    }
}

/// The machine that QEMU makes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Board {
    /// `-M microvm`: virtio over MMIO, no firmware to speak of, boots fastest.
    #[default]
    Microvm,
    /// `-M q35`: virtio over PCI, a PC with a chipset of 2007.
    Q35,
}

impl Board {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Bytes of a user's kernel words. A kernel takes 2047 in all (x86, `COMMAND_LINE_SIZE`), ours and the VMM's among them.
pub const MAX_CMDLINE: usize = 1024;

impl Life {
    /// Nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
    /// Takes over what does not concern a VMM that runs.
    pub fn change_live_to(&mut self, other: &Self) {
        self.restart = other.restart;
        self.graceful_shutdown = other.graceful_shutdown;
    }
}
