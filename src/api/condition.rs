//! Conditions of a stage or of a whole object.
//! Out of scope: when a condition changes.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::meta::Timestamp;

/// The status of a condition, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// Not observed yet, or the observation failed.
    Unknown,
}

/// The reason for the status of a condition: one CamelCase word, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
    /// The agent of the guest answers.
    Answering,
    /// The agent of the guest does not answer; the message contains the cause.
    NotAnswering,
    /// The VM has no guest access, as requested.
    Disabled,
    /// The agent answers, and the userdata has not ended yet.
    UserdataRunning,
    /// The agent answers, and the userdata has failed; the message contains its exit status.
    UserdataFailed,
    /// The agent answers, and the guest has not got all that it is to get; the message contains the cause.
    NotProvisioned,
    /// The manifest of this object is invalid; the last valid spec stays in effect.
    ManifestInvalid,
}

impl Reason {
    /// Whether an object with this reason cannot become ready without a change by the user: of its spec, or of a file or program on the
    /// host. False if another VM, another program or time may help, and for what the user has requested.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Invalid | Self::Failed => true,
            // Other programs remove conflicting objects, and stop to revert repairs.
            Self::Conflict | Self::Contested => false,
            // Other VMs release addresses.
            Self::RangeExhausted => false,
            // Retried with backoff.
            Self::NotConverging | Self::ActionFailed | Self::ObserveFailed | Self::CrashLoop => {
                false
            }
            // In progress.
            Self::Waiting
            | Self::Converging
            | Self::NotObserved
            | Self::Stopping
            | Self::Terminating => false,
            // As requested; the next request changes it.
            Self::Paused | Self::Stopped | Self::Disabled => false,
            // The object itself is reconciled nevertheless.
            Self::Converged
            | Self::StateNotWritable
            | Self::ManifestInvalid
            | Self::Answering
            | Self::NotAnswering
            | Self::UserdataRunning
            | Self::UserdataFailed
            | Self::NotProvisioned => false,
        }
    }
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
            | Reason::StateNotWritable
            | Reason::Answering
            | Reason::NotAnswering
            | Reason::Disabled
            | Reason::UserdataRunning
            | Reason::UserdataFailed
            | Reason::NotProvisioned => false,
        };
        (self.status == Status::True || as_requested) && self.observed_generation == generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_waited_for_unless_only_the_user_can_help() {
        let all = [
            (Reason::Converged, false),
            (Reason::Waiting, false),
            (Reason::Converging, false),
            (Reason::Conflict, false),
            (Reason::Contested, false),
            (Reason::NotConverging, false),
            (Reason::ActionFailed, false),
            (Reason::ObserveFailed, false),
            (Reason::NotObserved, false),
            (Reason::Invalid, true),
            (Reason::RangeExhausted, false),
            (Reason::CrashLoop, false),
            (Reason::Paused, false),
            (Reason::Stopping, false),
            (Reason::Stopped, false),
            (Reason::StateNotWritable, false),
            (Reason::Failed, true),
            (Reason::Terminating, false),
            (Reason::ManifestInvalid, false),
        ];
        for (reason, is_terminal) in all {
            assert_eq!(reason.is_terminal(), is_terminal, "{reason}");
        }
    }
}
