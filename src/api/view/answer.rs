//! What we answer beside the objects themselves: kinds, changes, checks, leftovers, problems.
//! Out of scope: the objects.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::super::meta::{Name, Timestamp};
use super::{Applied, MetaView, Object};

/// The kinds that people name. Written `hostgroup`, `vm` and `lease`; read with their plurals and short forms too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `hostgroup`, `hostgroups`, `hg`.
    HostGroup,
    /// `vm`, `vms`.
    Vm,
    /// `lease`, `leases`.
    Lease,
}

/// A text that names no [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind: expected hostgroup (hg), vm or lease")]
pub struct UnknownKind(String);

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
        match text.to_ascii_lowercase().as_str() {
            "hostgroup" | "hostgroups" | "hg" | "hgs" => Ok(Self::HostGroup),
            "vm" | "vms" => Ok(Self::Vm),
            "lease" | "leases" => Ok(Self::Lease),
            _ => Err(UnknownKind(text.to_owned())),
        }
    }
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::HostGroup(_) => Kind::HostGroup,
            Self::Vm(_) => Kind::Vm,
            Self::Lease(_) => Kind::Lease,
        }
    }

    /// Who it is.
    pub fn metadata(&self) -> &MetaView {
        match self {
            Self::HostGroup(group) => &group.metadata,
            Self::Vm(vm) => &vm.metadata,
            Self::Lease(lease) => &lease.metadata,
        }
    }

    /// `vm/sandbox-1`: what events call it.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.kind(), self.metadata().name)
    }
}

/// One line of a watch: first every object that is there, as `ADDED`; then one `SYNCED`; then what changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "UPPERCASE")]
pub enum Change {
    /// It is there, or has come.
    Added {
        /// As it is.
        object: Object,
    },
    /// Its spec or status is another.
    Modified {
        /// As it is now.
        object: Object,
    },
    /// It is gone.
    Deleted {
        /// As it was last.
        object: Object,
    },
    /// All that was there at the start has been told.
    Synced,
}

/// One manifest on its way to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What errors call it: a path, or `stdin`.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// Something of ours that nobody wants, and that `gc` has removed and found gone, could not remove, or would remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// What it is: `link slabcdefghijklm`, `namespace slice-…`.
    pub thing: String,
    /// Who left it: `vm/sandbox-1@<uid>`, `ground`.
    pub owner: String,
    /// Why it is not removed; none: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Why it is still there, if it was to be removed and is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_there: Option<String>,
}

impl Leftover {
    /// The same, not to be removed.
    #[must_use]
    pub fn kept(self, why: &str) -> Self {
        Self {
            kept: Some(why.to_owned()),
            ..self
        }
    }
}

/// One thing that `doctor` looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A few words: `iptables back end`.
    pub name: String,
    /// How it stands.
    pub verdict: CheckVerdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when there is nothing to do.
    pub remedy: String,
}

/// How a [`Check`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    /// As it should be.
    Ok,
    /// Works, but not well, or not everything.
    Warn,
    /// Does not work.
    Fail,
}

impl fmt::Display for CheckVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// What another machine on the LAN needs to know to reach a bridge group's VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The group.
    pub group: Name,
    /// Its bridge.
    pub bridge: String,
    /// The VMs' subnet.
    pub subnet: Ipv4Network,
    /// The host's address on the LAN: the first of the link of its default route. None when it has no such route.
    pub host: Option<Ipv4Addr>,
}

/// Which daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `CARGO_PKG_VERSION`.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// Where it reads manifests.
    pub config_dir: PathBuf,
    /// Where it remembers.
    pub state_dir: PathBuf,
    /// Where it keeps what dies with the host's uptime.
    pub run_dir: PathBuf,
}

/// What has become of a VM that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVmResult {
    /// Its name.
    pub name: Name,
    /// [`Applied::Created`], or [`Applied::Unchanged`]: there is just such a one of that name.
    pub applied: Applied,
    /// Entries that never match and the like.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Every answer that is not a success, as `application/json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// One sentence.
    pub error: String,
    /// One cause each; may be empty.
    #[serde(default)]
    pub problems: Vec<String>,
}
