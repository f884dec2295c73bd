//! How a VM's VMM is started and stopped.
//! Out of scope: starting and stopping it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Settings for the start and the end of a VMM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lifecycle {
    /// The VMM's program, an absolute path; `None` for its default name in the daemon's `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub program: Option<PathBuf>,
    /// Firecracker's jailer, an absolute path; `None` for the one in the daemon's `PATH`, if it is usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub jailer: Option<PathBuf>,
    /// Parameters appended to the kernel command line: printable ASCII, at most [`MAX_CMDLINE`] bytes, without `ip=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The machine type; QEMU only.
    #[serde(default, skip_serializing_if = "MachineType::is_default")]
    #[serde(rename = "board")]
    pub machine: MachineType,
    /// The restart policy. Changes live.
    #[serde(default, skip_serializing_if = "Restart::is_default")]
    pub restart: Restart,
    /// How long the daemon waits for a guest that was requested to power down. Changes live.
    #[serde(default, skip_serializing_if = "GracePeriod::is_default")]
    pub graceful_shutdown: GracePeriod,
}

/// The restart policy: what happens when a VMM exits without being stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// The VMM is started again, for any exit status.
    #[default]
    Always,
    /// The VMM is started again unless its exit status was 0. An exit that was not observed counts as a failure.
    OnFailure,
    /// The VMM is not started again.
    Never,
}

/// What happens when a VMM exits without being stopped.
///
/// `delete_on_exit` is for work that runs once: it is never started a second time because the daemon missed its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitPolicy {
    /// Whether the VMM is started again.
    pub restart: Restart,
    /// The VM is deleted if its guest has powered off or rebooted, or if it is unknown how the VMM exited. `restart` decides about a VMM
    /// that failed or was killed, and about a guest that panicked.
    pub delete_on_exit: bool,
}

impl From<Restart> for ExitPolicy {
    fn from(restart: Restart) -> Self {
        Self {
            restart,
            delete_on_exit: false,
        }
    }
}

impl Restart {
    /// Whether this is the default.
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

/// How long the daemon waits for a guest that was requested to power down: from 0s (no request is made) to 10m, in humantime format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GracePeriod(Duration);

impl GracePeriod {
    /// The maximum.
    pub const MAX: Duration = Duration::from_secs(600);

    /// The duration.
    pub fn get(self) -> Duration {
        self.0
    }

    /// Whether this is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for GracePeriod {
    fn default() -> Self {
        Self(Duration::from_secs(3))
    }
}

impl fmt::Display for GracePeriod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&humantime::format_duration(self.0).to_string())
    }
}

/// The error for a text that is not a valid [`GracePeriod`]; its message is the expected format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time from 0s to 10m, such as 5s")]
pub struct InvalidGracePeriod;

impl FromStr for GracePeriod {
    type Err = InvalidGracePeriod;
    fn from_str(text: &str) -> Result<Self, InvalidGracePeriod> {
        let time = humantime::parse_duration(text).map_err(|_| InvalidGracePeriod)?;
        (time <= Self::MAX)
            .then_some(Self(time))
            .ok_or(InvalidGracePeriod)
    }
}

impl TryFrom<String> for GracePeriod {
    type Error = InvalidGracePeriod;
    fn try_from(text: String) -> Result<Self, InvalidGracePeriod> {
        text.parse()
    }
}

impl From<GracePeriod> for String {
    fn from(grace: GracePeriod) -> Self {
        grace.to_string()
    }
}

/// The machine type of QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MachineType {
    /// `-M microvm`: virtio over MMIO, minimal firmware, the fastest boot.
    #[default]
    Microvm,
    /// `-M q35`: virtio over PCI, an Intel Q35 chipset.
    Q35,
}

impl MachineType {
    /// Whether this is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The maximum length of a user's kernel parameters in bytes. A kernel accepts 2047 in total (x86, `COMMAND_LINE_SIZE`), including those
/// of the daemon and of the VMM.
pub const MAX_CMDLINE: usize = 1024;

impl Lifecycle {
    /// Whether this is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
    /// Copies the settings from `other` that can change while the VMM runs.
    pub fn apply_live_changes(&mut self, other: &Self) {
        self.restart = other.restart;
        self.graceful_shutdown = other.graceful_shutdown;
    }
}
