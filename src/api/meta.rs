//! The identity of an object: name, uid and generation.
//! Out of scope: the assignment of names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A point in time, UTC, in RFC 3339 format in responses.
pub type Timestamp = jiff::Timestamp;

/// An RFC 1123 label: 1 to 63 characters of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The error for a text that is not a valid [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid name \"{found}\": {why}")]
pub struct InvalidName {
    found: String,
    why: &'static str,
}

impl Name {
    /// Checks `text` against RFC 1123, section 2.1, restricted to lower case as in Kubernetes.
    ///
    /// # Errors
    /// The text is not a valid label.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let found = text.into();
        let reason = match found.as_bytes() {
            [] => Some("it is empty"),
            bytes if bytes.len() > 63 => Some("it is longer than 63 characters"),
            bytes
                if !bytes
                    .iter()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) =>
            {
                Some("use a-z, 0-9 and \"-\"")
            }
            [b'-', ..] | [.., b'-'] => Some("it must start and end with a letter or a digit"),
            _ => None,
        };
        match reason {
            None => Ok(Self(found)),
            Some(why) => Err(InvalidName { found, why }),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl InvalidName {
    /// The reason, without the text.
    pub fn why(&self) -> &'static str {
        self.why
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl FromStr for Name {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The uid of an object; objects that have the same name one after another have different uids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(pub uuid::Uuid);

impl Uid {
    /// A random uid (UUID version 4).
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Uid {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// The metadata of every object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Unique among the existing objects of its kind.
    pub name: Name,
    /// Unique among all objects, including deleted ones.
    pub uid: Uid,
    /// The number of the current spec: 1 for the first, incremented by each change.
    pub generation: u64,
    /// When the object was first stored.
    pub created_at: Timestamp,
    /// Deletion was requested; never unset. The object is removed when it has no finalizers.
    pub deleting: bool,
    /// The deletion is forced (`slicectl delete --force`): guests are not requested to power down, and a CNI
    /// attachment is abandoned after the first DEL that fails. Set with `deleting` or later, and never unset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

impl Meta {
    /// The metadata of a new object, with a random uid and generation 1.
    pub fn new(name: Name, created_at: Timestamp) -> Self {
        Self {
            name,
            uid: Uid::random(),
            generation: 1,
            created_at,
            deleting: false,
            forced: false,
        }
    }
}
