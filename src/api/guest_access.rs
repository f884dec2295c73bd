//! How the host can access a guest without a network: through its vsock device, with a program in the guest.
//! Out of scope: the device of each VMM; the protocol of the program.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::provision::Provision;

/// The access of the host to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestAccess {
    /// Whether the VM has a vsock device. A VM that an earlier version has stored has one.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub vsock: bool,
    /// Where `slice-agent` of the guest is from.
    #[serde(default, skip_serializing_if = "Agent::is_default")]
    pub agent: Agent,
    /// What the guest gets through its agent.
    #[serde(default, skip_serializing_if = "Provision::is_default")]
    pub provision: Provision,
}

/// Where the program in the guest is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Agent {
    /// From the image.
    #[default]
    Baked,
    /// From the host: an initrd with it is put before that of the user.
    Inject,
    /// There is none.
    None,
}

fn yes() -> bool {
    true
}

impl GuestAccess {
    /// Whether this is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Copies the settings from `other` that can change while a guest runs.
    pub fn apply_live_changes(&mut self, other: &Self) {
        self.provision.apply_live_changes(&other.provision);
    }
}

impl Default for GuestAccess {
    fn default() -> Self {
        Self {
            vsock: yes(),
            agent: Agent::default(),
            provision: Provision::default(),
        }
    }
}

impl Agent {
    /// Whether this is the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Baked => "baked",
            Self::Inject => "inject",
            Self::None => "none",
        })
    }
}
