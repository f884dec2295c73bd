//! One interface of one container on one network: what a caller gives with ADD, DEL and CHECK.
//! Out of scope: the network.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, names};

/// The attachment parameters of the spec's section 3. `(container_id, ifname)` is its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Whose attachment it is: a letter or digit, then letters, digits, `_`, `.` and `-`.
    pub container_id: String,
    /// The path of the network namespace. DEL goes without when it is gone.
    pub netns: Option<PathBuf>,
    /// The interface to make inside, at most 15 bytes.
    pub ifname: String,
    /// `CNI_ARGS`: seen by every plugin.
    #[serde(default)]
    pub args: Vec<(String, String)>,
    /// `runtimeConfig`, capability by capability: each is seen by the plugins that declare it.
    #[serde(default)]
    pub capability_args: Map<String, Value>,
}

/// The key of an attachment that is still wanted, for GC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Valid {
    /// As it was given to ADD.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// As it was given to ADD.
    pub ifname: String,
}

impl From<&Attachment> for Valid {
    fn from(attachment: &Attachment) -> Self {
        Self {
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
        }
    }
}

impl Attachment {
    /// Without arguments.
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

    /// Whether it is in the spec's character sets and lengths.
    pub(super) fn check(&self) -> Result<(), Error> {
        names::container(&self.container_id)?;
        names::interface(&self.ifname)?;
        self.args
            .iter()
            .try_for_each(|(key, value)| names::argument(key, value))
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
