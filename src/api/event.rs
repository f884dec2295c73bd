//! What happened, for people: one line a thing, repeated things counted.
//! Out of scope: raising and keeping them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::meta::Timestamp;

/// Kubernetes' two weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// One thing that happened, `count` times, last at `time`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it last happened.
    pub time: Timestamp,
    /// `vm/sandbox-1`, `hostgroup/sandbox`, `ground`, or `manifest/<file name>`.
    pub object: String,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// How often, in a row.
    pub count: u64,
    /// Its weight.
    #[serde(rename = "type")]
    pub kind: EventType,
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}
