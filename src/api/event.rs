//! Events for users. Consecutive equal events are counted.
//! Out of scope: recording and storing events.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::meta::Timestamp;

/// The type of an event, as in Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventType {
    /// Normal operation.
    Normal,
    /// May need attention.
    Warning,
}

/// An event that happened `count` times, the last time at `time`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The time of the last occurrence.
    pub time: Timestamp,
    /// The object: `vm/sandbox-1`, `hostgroup/sandbox`, `ground` (the host network), or `manifest/<file name>`.
    pub object: String,
    /// The reason, one CamelCase word.
    pub reason: String,
    /// The message for users.
    pub message: String,
    /// The number of consecutive occurrences.
    pub count: u64,
    /// The type.
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
