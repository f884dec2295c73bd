//! The ladder: what is built for a VM, in which order, and each rung's page about one VM.
//! Out of scope: taking and leaving one.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::condition::{Condition, Reason, Status};
use super::meta::Timestamp;

/// One step of building a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rung {
    /// An address block.
    Lease,
    /// Namespace, TAP, veth, addresses, routes.
    Net,
    /// The namespace's rules, then its gate (`ip_forward`).
    Firewall,
    /// The VMM process.
    Vmm,
}

/// Climbed to build, descended to take down.
pub const LADDER: [Rung; 4] = [Rung::Lease, Rung::Net, Rung::Firewall, Rung::Vmm];

impl Rung {
    /// The finalizer a person sees while the rung is held.
    pub fn finalizer(self) -> String {
        format!("slice/{}", self.to_string().to_lowercase())
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lease => "Lease",
            Self::Net => "Net",
            Self::Firewall => "Firewall",
            Self::Vmm => "Vmm",
        })
    }
}

/// Finalizer, condition and observed generation of one rung of one VM, in one record with one writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungPage {
    /// The rung may have something on the host. Durable before the host is touched.
    pub held: bool,
    /// What was last found.
    pub condition: Condition,
    /// What the rung wants to remember of the converged state (the firewall: the digest whose flows were judged).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

impl RungPage {
    /// A rung that nobody has climbed.
    pub fn blank(now: Timestamp) -> Self {
        Self {
            held: false,
            condition: Condition {
                status: Status::Unknown,
                reason: Reason::Waiting,
                message: String::new(),
                since: now,
                observed_generation: 0,
            },
            mark: None,
        }
    }
}
