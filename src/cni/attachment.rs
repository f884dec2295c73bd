//! One interface of one container on one network: the parameters of ADD, DEL and CHECK.
//! Out of scope: the network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, names};

/// The attachment parameters (spec, section 3). `(container_id, ifname)` is the key of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The id of the container: a letter or digit, then letters, digits, `_`, `.` and `-`.
    pub container_id: String,
    /// The path of the network namespace. `None` for a DEL after the namespace was removed.
    pub netns: Option<PathBuf>,
    /// The interface to create in the namespace, at most 15 bytes.
    pub ifname: String,
    /// `CNI_ARGS`: every plugin receives them.
    #[serde(default)]
    pub args: Vec<(String, String)>,
    /// `runtimeConfig` by capability: a plugin receives those that it declares.
    #[serde(default)]
    pub capability_args: Map<String, Value>,
}

/// The key of an attachment that is in use, for GC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// As passed to ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// As passed to ADD.
    pub ifname: String,
}

impl From<&Attachment> for ValidAttachment {
    fn from(attachment: &Attachment) -> Self {
        Self {
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
        }
    }
}

impl Attachment {
    /// An attachment without arguments.
    pub fn new(
        container_id: impl Into<String>,
        netns: impl Into<PathBuf>,
        ifname: impl Into<String>,
    ) -> Self {
        Self {
            container_id: container_id.into(),
            netns: Some(netns.into()),
            ifname: ifname.into(),
            ..Self::default()
        }
    }

    /// Checks the character sets and lengths that the spec defines.
    pub(super) fn check(&self) -> Result<(), Error> {
        names::check_container(&self.container_id)?;
        names::check_interface(&self.ifname)?;
        self.args
            .iter()
            .try_for_each(|(key, value)| names::check_argument(key, value))
    }

    /// The value of `CNI_ARGS`.
    pub(super) fn args_text(&self) -> String {
        let pairs = self
            .args
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        pairs.collect::<Vec<_>>().join(";")
    }
}
