//! References to objects, as events, answers and messages name them.
//! Out of scope: the objects.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::meta::{InvalidName, Name};

/// An object, written `host`, `hostgroup/NAME`, `vm/NAME` or `manifest/FILE`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ObjectRef {
    /// The host network.
    Host,
    /// A manifest: its file name, or the path of the directory.
    Manifest(String),
    /// A group.
    HostGroup(Name),
    /// A VM.
    Vm(Name),
}

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidObjectRef {
    /// The name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// There is no such kind.
    #[error("found {0:?}, expected host, hostgroup/NAME, vm/NAME or manifest/FILE")]
    Kind(String),
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Manifest(file) => write!(f, "manifest/{file}"),
            Self::HostGroup(name) => write!(f, "hostgroup/{name}"),
            Self::Vm(name) => write!(f, "vm/{name}"),
        }
    }
}

impl From<ObjectRef> for String {
    fn from(object: ObjectRef) -> Self {
        object.to_string()
    }
}

impl FromStr for ObjectRef {
    type Err = InvalidObjectRef;

    fn from_str(text: &str) -> Result<Self, InvalidObjectRef> {
        match text.split_once('/') {
            None if text == "host" => Ok(Self::Host),
            Some(("manifest", file)) => Ok(Self::Manifest(file.to_owned())),
            Some(("hostgroup", name)) => Ok(Self::HostGroup(name.parse()?)),
            Some(("vm", name)) => Ok(Self::Vm(name.parse()?)),
            None | Some(_) => Err(InvalidObjectRef::Kind(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ObjectRef {
    type Error = InvalidObjectRef;

    fn try_from(text: String) -> Result<Self, InvalidObjectRef> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_parsed_as_it_is_displayed() {
        for text in [
            "host",
            "hostgroup/web",
            "vm/web-1",
            "manifest//etc/slice/groups.d",
            "manifest/a.yaml",
        ] {
            let parsed: ObjectRef = text.parse().expect(text);
            assert_eq!(parsed.to_string(), text);
            let json = serde_json::to_string(&parsed).expect("JSON");
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(
                serde_json::from_str::<ObjectRef>(&json).expect("JSON"),
                parsed
            );
        }
        for text in ["", "vm", "vm/", "vm/Bad_Name", "node/a", "hosts"] {
            assert!(text.parse::<ObjectRef>().is_err(), "{text}");
        }
    }
}
