//! The pipeline: the stages of a VM, their order, and the status of a stage of one VM.
//! Out of scope: acquiring and releasing a stage.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::condition::{Condition, Reason, Status};
use super::meta::Timestamp;

/// A stage of the pipeline of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// The VM's address.
    Lease,
    /// The namespace, TAP, veth, addresses and routes.
    Net,
    /// The rules of the namespace, then its forwarding switch (`ip_forward`).
    Firewall,
    /// The VMM process.
    Vmm,
}

/// The stages in the order in which a VM is brought up; it is torn down in reverse order.
pub const STAGES: [Stage; 4] = [Stage::Lease, Stage::Net, Stage::Firewall, Stage::Vmm];

impl Stage {
    /// The finalizer that is displayed while the stage is acquired.
    pub fn finalizer(self) -> String {
        format!("slice/{}", self.to_string().to_lowercase())
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lease => "Lease",
            Self::Net => "Net",
            Self::Firewall => "Firewall",
            Self::Vmm => "Vmm",
        })
    }
}

/// The status of one stage of one VM: finalizer, condition and observed generation, in one record with one writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageStatus {
    /// The stage is acquired: it may have objects on the host. Durable before the host is changed.
    #[serde(rename = "held")]
    pub acquired: bool,
    /// The result of the last observation.
    pub condition: Condition,
    /// The checkpoint of the stage: what it records about the converged state (firewall: the digest of the rules that the flows were evaluated against).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "mark")]
    pub checkpoint: Option<String>,
}

impl StageStatus {
    /// The status of a stage that was never acquired.
    pub fn initial(now: Timestamp) -> Self {
        Self {
            acquired: false,
            condition: Condition {
                status: Status::Unknown,
                reason: Reason::Waiting,
                message: String::new(),
                since: now,
                observed_generation: 0,
            },
            checkpoint: None,
        }
    }
}
