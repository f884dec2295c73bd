//! Conditions of a stage or of a whole object.
//! Out of scope: when a condition changes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::meta::Timestamp;

/// The status of a condition, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// Not observed yet, or the observation failed.
    Unknown,
}

/// The reason for the status of a condition: one CamelCase word, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The plan is empty.
    Converged,
    /// Waits for the previous stage, for the host network, or for its turn.
    Waiting,
    /// Actions are in progress.
    Converging,
    /// A foreign object prevents an action; the message names the remedy.
    Conflict,
    /// A conflicting writer keeps reverting the repairs.
    Contested,
    /// The actions succeeded, but the plan did not become empty.
    NotConverging,
    /// An action failed; the message contains the action and the error. Retried with backoff.
    ActionFailed,
    /// The observation failed, so the state is unknown.
    ObserveFailed,
    /// Not observed yet since the start of the daemon.
    NotObserved,
    /// The spec cannot be realized on this host; waits for a change of it.
    Invalid,
    /// The range has no free /30.
    RangeExhausted,
    /// The VMM exits repeatedly.
    CrashLoop,
    /// The guest is paused, as requested.
    Paused,
    /// The guest was requested to power down.
    Stopping,
    /// The VM is stopped as requested, or exited successfully and is not restarted because of its restart policy.
    Stopped,
    /// Changes cannot be stored, and are refused.
    StateNotWritable,
    /// The VMM failed and is not restarted because of its restart policy.
    Failed,
    /// The VM is being torn down.
    Terminating,
    /// The manifest of this object is invalid; the last valid spec stays in effect.
    ManifestInvalid,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A condition without its type, which is the stage or `Ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// The status.
    pub status: Status,
    /// The reason for the status.
    pub reason: Reason,
    /// A message for users; empty if the reason is sufficient.
    pub message: String,
    /// When `status` last changed.
    pub since: Timestamp,
    /// The generation of the spec that was observed; 0 if none was.
    pub observed_generation: u64,
}

impl Condition {
    /// Whether the status is `True` for this generation of the spec.
    pub fn is_true_at(&self, generation: u64) -> bool {
        self.status == Status::True && self.observed_generation == generation
    }
    /// Whether the desired state is reached for this generation of the spec: the status is `True`, or the VM is paused or stopped as
    /// requested.
    pub fn is_settled_at(&self, generation: u64) -> bool {
        let as_requested = match self.reason {
            Reason::Paused | Reason::Stopped => true,
            Reason::Converged
            | Reason::Waiting
            | Reason::Converging
            | Reason::Conflict
            | Reason::Contested
            | Reason::NotConverging
            | Reason::ActionFailed
            | Reason::ObserveFailed
            | Reason::NotObserved
            | Reason::Invalid
            | Reason::RangeExhausted
            | Reason::CrashLoop
            | Reason::Stopping
            | Reason::Failed
            | Reason::Terminating
            | Reason::ManifestInvalid
            | Reason::StateNotWritable => false,
        };
        (self.status == Status::True || as_requested) && self.observed_generation == generation
    }
}
