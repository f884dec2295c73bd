//! Kinds of objects, and responses other than objects: changes, checks, orphans, problems.
//! Out of scope: the objects.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::meta::{Name, Timestamp};
use super::{Applied, MetaView, Object, ObjectView};

/// The kinds of objects. Displayed as `hostgroup`, `vm` and `lease`; plurals and short forms are also parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `hostgroup`, `hostgroups`, `hg`.
    HostGroup,
    /// `vm`, `vms`.
    Vm,
    /// `lease`, `leases`.
    Lease,
}

/// The error for a text that is not a valid [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownKind {
    /// The text resembles no kind.
    #[error("unknown kind \"{0}\": expected hostgroup (hg), vm or lease")]
    Other(String),
    /// The text, and the spelling of a kind that it resembles.
    #[error("unknown kind \"{0}\"; did you mean \"{1}\"?")]
    Similar(String, &'static str),
}

/// The spellings of kinds.
const SPELLINGS: [(&str, Kind); 8] = [
    ("hostgroup", Kind::HostGroup),
    ("hostgroups", Kind::HostGroup),
    ("hg", Kind::HostGroup),
    ("hgs", Kind::HostGroup),
    ("vm", Kind::Vm),
    ("vms", Kind::Vm),
    ("lease", Kind::Lease),
    ("leases", Kind::Lease),
];

/// The spelling that a text resembles: at most a third of its characters differ.
fn similar_spelling(text: &str) -> Option<&'static str> {
    let spellings = SPELLINGS.iter().map(|(spelling, _)| *spelling);
    let distances = spellings.map(|s| (strsim::damerau_levenshtein(text, s), s));
    let near = distances.filter(|(distance, s)| *distance <= s.len() / 3);
    near.min_by_key(|(distance, _)| *distance).map(|(_, s)| s)
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HostGroup => "hostgroup",
            Self::Vm => "vm",
            Self::Lease => "lease",
        })
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let lower = text.to_ascii_lowercase();
        if let Some((_, kind)) = SPELLINGS.iter().find(|(spelling, _)| *spelling == lower) {
            return Ok(*kind);
        }
        Err(match similar_spelling(&lower) {
            Some(similar) => UnknownKind::Similar(text.to_owned(), similar),
            None => UnknownKind::Other(text.to_owned()),
        })
    }
}

impl Object {
    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        match self {
            Self::HostGroup(_) => Kind::HostGroup,
            Self::Vm(_) => Kind::Vm,
            Self::Lease(_) => Kind::Lease,
        }
    }

    /// The identity of the object.
    pub fn metadata(&self) -> &MetaView {
        match self {
            Self::HostGroup(group) => &group.metadata,
            Self::Vm(vm) => &vm.metadata,
            Self::Lease(lease) => &lease.metadata,
        }
    }

    /// The reference of the object, as in events: `vm/sandbox-1`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.kind(), self.metadata().name)
    }
}

/// One line of a watch: first every existing object, as `ADDED`; then one `SYNCED`; then changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum Change {
    /// The object exists or was created.
    Added {
        /// The object.
        #[schema(value_type = ObjectView)]
        object: Object,
    },
    /// The spec or status of the object changed.
    Modified {
        /// The object after the change.
        #[schema(value_type = ObjectView)]
        object: Object,
    },
    /// The object was removed.
    Deleted {
        /// The last state of the object.
        #[schema(value_type = ObjectView)]
        object: Object,
    },
    /// All objects that existed at the start of the watch have been sent.
    Synced,
}

/// A manifest in a request to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Source {
    /// The name for error messages: a path, or `stdin`.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// An orphan: an unreferenced resource of this daemon that `gc` has removed, could not remove, or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Orphan {
    /// What was found: `link slabcdefghijklm, namespace slice-…, run directory, process 123`. If it could not be removed: what still
    /// exists.
    pub thing: String,
    /// The former owner: `vm/sandbox-1@<uid>`, or `host` for the host network.
    pub owner: String,
    /// Why it is kept; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Why it could not be removed; `None` if it was removed or is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "still_there")]
    pub error: Option<String>,
}

impl Orphan {
    /// The same orphan, kept for the reason `why`.
    #[must_use]
    pub fn kept(self, reason: &str) -> Self {
        Self {
            kept: Some(reason.to_owned()),
            ..self
        }
    }
}

/// A check of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// The name, such as `iptables back end`.
    pub name: String,
    /// The result.
    #[serde(rename = "verdict")]
    pub status: CheckStatus,
    /// The observed state.
    pub found: String,
    /// The remedy; empty if none is needed.
    pub remedy: String,
}

/// The result of a [`Check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Does not apply, or cannot be checked by this user.
    Skipped,
    /// Meets the requirements.
    Ok,
    /// Works with restrictions.
    Warn,
    /// Does not work.
    Fail,
}

impl fmt::Display for CheckStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Skipped => "-",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// The data that another machine on the LAN needs for a route to a bridge group's VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteInfo {
    /// The group.
    pub group: Name,
    /// Its bridge.
    pub bridge: String,
    /// The VMs' subnet.
    #[schema(value_type = String)]
    pub subnet: Ipv4Network,
    /// The host's address on the LAN: the first address of the link of its default route; `None` without a default route.
    #[schema(value_type = Option<String>)]
    pub host: Option<Ipv4Addr>,
}

/// Information about the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerInfo {
    /// The version, `CARGO_PKG_VERSION`.
    pub version: String,
    /// The pid.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// The manifest directory.
    #[schema(value_type = String)]
    pub config_dir: PathBuf,
    /// The state directory.
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
    /// The run directory. Its content is lost when the host reboots.
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
}

/// The result of a request for a VM on demand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewVmResult {
    /// The name of the VM.
    pub name: Name,
    /// [`Applied::Created`], or [`Applied::Unchanged`] if a VM with this name and these settings exists.
    pub applied: Applied,
    /// Warnings, such as entries that never match.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The body of an error response, as `application/json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The error, one sentence.
    pub error: String,
    /// The individual problems; may be empty.
    #[serde(default)]
    pub problems: Vec<String>,
}
