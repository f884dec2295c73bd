//! Watches: the version of a response, the lines of a watch, and what a client watches.
//! Out of scope: the objects; the changes that are kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::event::{Event, ObjectRef};
use super::{Kind, Object, ObjectView, Problem};

/// A point in the sequence of changes of one run of the daemon. Opaque to clients, which compare and change nothing in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceVersion {
    /// The run of the daemon: random, so that no version of another run, or of another state directory, is valid.
    pub incarnation: u64,
    /// The number of the change.
    pub number: u64,
}

/// The error for a text that is not a [`ResourceVersion`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid resource version \"{0}\": expected one that sliced has sent")]
pub struct InvalidVersion(String);

/// The length of the incarnation as text: hexadecimal digits of 64 bits.
const INCARNATION_DIGITS: usize = 16;

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.incarnation, self.number)
    }
}

impl FromStr for ResourceVersion {
    type Err = InvalidVersion;
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let parsed = text.split_once('-').and_then(|(incarnation, number)| {
            let incarnation = u64::from_str_radix(incarnation, 16).ok()?;
            let version = Self {
                incarnation,
                number: number.parse().ok()?,
            };
            // A version has one spelling.
            (version.to_string() == text).then_some(version)
        });
        parsed.ok_or_else(|| {
            const LONGEST: usize = INCARNATION_DIGITS + 1 + 20;
            InvalidVersion(text.chars().take(LONGEST).collect())
        })
    }
}

impl TryFrom<String> for ResourceVersion {
    type Error = InvalidVersion;
    fn try_from(text: String) -> Result<Self, InvalidVersion> {
        text.parse()
    }
}

impl From<ResourceVersion> for String {
    fn from(version: ResourceVersion) -> Self {
        version.to_string()
    }
}

/// One line of `/v1/watch`. A client continues a watch from the last version that it has received, if
/// the list is complete: from [`WatchLine::Synced`] on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum WatchLine {
    /// The object exists or was created.
    Added {
        /// The version of the change; `None` for an object that existed when the watch began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource_version: Option<ResourceVersion>,
        /// The object.
        #[schema(value_type = ObjectView)]
        object: Object,
    },
    /// The spec or status of the object changed.
    Modified {
        /// The version of the change.
        resource_version: ResourceVersion,
        /// The object after the change.
        #[schema(value_type = ObjectView)]
        object: Object,
    },
    /// The object was removed.
    Deleted {
        /// The version of the change.
        resource_version: ResourceVersion,
        /// The last state of the object.
        #[schema(value_type = ObjectView)]
        object: Object,
    },
    /// An event.
    Event {
        /// The version of the change; `None` for an event that existed when the watch began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resource_version: Option<ResourceVersion>,
        /// The event.
        event: Event,
    },
    /// All objects and events that existed when the watch began have been sent.
    Synced {
        /// The version from which the watch can be continued.
        resource_version: ResourceVersion,
    },
    /// Many changes did not match: the watch can be continued from a newer version.
    Bookmark {
        /// That version.
        resource_version: ResourceVersion,
    },
    /// The last line of a watch that cannot continue, because the next changes are no longer kept: list again.
    Error {
        /// The status that a request with the same version receives: 410.
        code: u16,
        /// The cause.
        #[serde(flatten)]
        problem: Problem,
    },
}

/// What a client watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchFilter {
    /// The kinds of objects.
    pub kinds: Vec<Kind>,
    /// Events are sent, too.
    pub events: bool,
    /// Only this object and its events; `None`: all.
    pub object: Option<ObjectRef>,
}

/// A request for a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// The version after which the watch continues. `None`: the existing objects are sent first.
    pub since: Option<ResourceVersion>,
    /// What is watched.
    pub filter: WatchFilter,
    /// Lines of [`WatchLine`]. Otherwise the watch has no lines without an object except `SYNCED`, and ends instead of sending an error.
    pub versions: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_spelling_and_all_others_are_refused() {
        let version = ResourceVersion {
            incarnation: 0x0123_4567_89ab_cdef,
            number: 42,
        };
        let text = "0123456789abcdef-42";
        assert_eq!(version.to_string(), text);
        assert_eq!(text.parse(), Ok(version));
        for other in [
            "",
            "42",
            "-42",
            "0123456789abcdef-",
            "0123456789ABCDEF-42",
            "123456789abcdef-42",
            "0123456789abcdef-042",
            "0123456789abcdef-+42",
            "0123456789abcdef--42",
            "0123456789abcdef-18446744073709551616",
            "00123456789abcdef-42",
            "0123456789abcdef-42 ",
        ] {
            assert!(other.parse::<ResourceVersion>().is_err(), "{other:?}");
        }
        let long = "x".repeat(10_000).parse::<ResourceVersion>();
        assert!(long.unwrap_err().to_string().len() < 120);
    }
}
