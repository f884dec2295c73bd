//! What a guest gets from its host, and the state of its userdata.
//! Out of scope: when it is sent; what the agent does with it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The maximum size of the body of `PUT /provision`, in bytes: 64 secrets of 1 MiB do not fit, and the host has a lower limit.
pub const PROVISION_LIMIT: usize = 16 << 20;

/// What the guest gets. Its debug output has no values.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provision {
    /// Identifies all of it; [`super::Health`] repeats it when the guest has it.
    pub generation: String,
    /// The host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Lines of `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// All secrets of the guest: others are removed.
    pub secrets: Vec<Secret>,
    /// The userdata in base64, if the guest has not run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userdata: Option<String>,
    /// There is userdata, and it is sent later.
    pub userdata_pending: bool,
}

impl fmt::Debug for Provision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provision {}", self.generation)
    }
}

/// A secret. Its debug output has no value.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Secret {
    /// The name, which is that of its file.
    pub name: String,
    /// The value in base64.
    pub data: String,
    /// The permissions of the file, at most `0o777`.
    pub permissions: u32,
    /// The owner of the file.
    pub uid: u32,
    /// The group of the file.
    pub gid: u32,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}", self.name)
    }
}

/// The response to [`Provision`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provisioned {
    /// What could not be done, one sentence each. If there are any, the guest has not got all.
    pub problems: Vec<String>,
    /// The state of the userdata.
    pub userdata: UserdataStatus,
}

/// The state of the userdata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct UserdataStatus {
    /// The state.
    pub state: UserdataState,
    /// The exit status; 128 and the number of the signal if a signal ended it. Absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// The state of the userdata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum UserdataState {
    /// There is none.
    #[default]
    None,
    /// It has not been sent yet.
    Pending,
    /// It runs.
    Running,
    /// It has exited with status 0, or another program has run it.
    Succeeded,
    /// It has failed; without an exit status, the guest or the agent ended while it ran.
    Failed,
}

impl UserdataState {
    /// Whether it has ended.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The query of `userdata/logs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::IntoParams), into_params(parameter_in = Query))]
#[serde(default)]
pub struct UserdataLogsQuery {
    /// Whether further output is sent until the userdata has ended.
    pub follow: bool,
    /// The number of last lines; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
}
