//! Who an object is: its name, its uid, and which edition of its spec this is.
//! Out of scope: where they come from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A point in time, UTC, written as RFC 3339 in every answer.
pub type Timestamp = jiff::Timestamp;

/// An RFC 1123 label: 1 to 63 of `a-z`, `0-9` and `-`, starting and ending with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// What is wrong with a text that was to be a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is no RFC 1123 label: {why}")]
pub struct InvalidName {
    found: String,
    why: &'static str,
}

impl Name {
    /// Checks `text` against RFC 1123, section 2.1 (and Kubernetes' lower-case reading of it).
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let found = text.into();
        let why = match found.as_bytes() {
            [] => Some("it is empty"),
            bytes if bytes.len() > 63 => Some("it is longer than 63 characters"),
            bytes
                if !bytes
                    .iter()
                    .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) =>
            {
                Some("only a-z, 0-9 and `-` may stand in it")
            }
            [b'-', ..] | [.., b'-'] => Some("it must start and end with a letter or a digit"),
            _ => None,
        };
        match why {
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
    /// The reason alone.
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

/// Tells one object from every other that ever had its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uid(pub uuid::Uuid);

impl Uid {
    /// A new one, from the system's random numbers.
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

/// What every object carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Unique among the living objects of its kind.
    pub name: Name,
    /// Unique for ever.
    pub uid: Uid,
    /// Counts the editions of the spec, from 1.
    pub generation: u64,
    /// When the object was first stored.
    pub created_at: Timestamp,
    /// Set once, never unset: the object goes when nothing holds it any more.
    pub deleting: bool,
    /// The deletion is forced (`slicectl delete --force`): guests are not asked to power down, and a CNI
    /// attachment is given up after the first DEL that fails. Set with `deleting` or later, and never unset.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

impl Meta {
    /// The first edition of a new object.
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
