//! What a rung, or a whole object, says of itself.
//! Out of scope: when one changes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::meta::Timestamp;

/// Kubernetes' three-valued truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody could look, or nobody has looked yet.
    Unknown,
}

/// Why a condition stands as it does: one CamelCase word, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The plan is empty.
    Converged,
    /// Waits for the rung below, for the ground, or for its turn.
    Waiting,
    /// Actions are being taken.
    Converging,
    /// Something foreign stands in the way; the message names the remedy.
    Conflict,
    /// A conflicting writer keeps reverting the repairs.
    Contested,
    /// Actions ran and the plan did not become empty.
    NotConverging,
    /// An action failed; the message says which and how. Tried again with backoff.
    ActionFailed,
    /// Looking failed, so nothing is known.
    ObserveFailed,
    /// Nothing is known yet: this process has just started.
    NotObserved,
    /// The spec cannot be carried out on this host; waits for a new one.
    Invalid,
    /// No free /30 is left in the range.
    RangeExhausted,
    /// The VMM has ended again and again.
    CrashLoop,
    /// The guest is held where it is, as somebody wants.
    Paused,
    /// The guest was asked to power down.
    Stopping,
    /// It is down, and is to be: somebody stopped it, or it ended well and its restart policy leaves it.
    Stopped,
    /// What is asked for cannot be stored, and is refused.
    StateNotWritable,
    /// It ended badly, and its restart policy leaves it down.
    Failed,
    /// Being taken down.
    Terminating,
    /// The manifest this object came from can no longer be read; its last good edition stands.
    ManifestInvalid,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A condition without its type: that is the rung's or `Ready`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Whether it holds.
    pub status: Status,
    /// One word.
    pub reason: Reason,
    /// A sentence for people; empty when the reason says it all.
    pub message: String,
    /// When `status` last changed.
    pub since: Timestamp,
    /// The generation this was found true of; 0 when none has been seen.
    pub observed_generation: u64,
}

impl Condition {
    /// Whether this says "yes" about exactly that edition of the spec.
    pub fn is_true_at(&self, generation: u64) -> bool {
        self.status == Status::True && self.observed_generation == generation
    }
    /// Whether this says of exactly that edition of the spec that all is as somebody wants it: it holds, or it does not because
    /// the VM is to be paused or down.
    pub fn is_settled_at(&self, generation: u64) -> bool {
        let meant = match self.reason {
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
        (self.status == Status::True || meant) && self.observed_generation == generation
    }
}
