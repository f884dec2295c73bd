//! `HostGroup`: what people write, and the only kind they write.
//! Not here: making VMs out of one.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::meta::{Meta, Name};
use super::vm::VmSpec;

/// So many VMs of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGroup {
    /// Name, uid, generation.
    pub meta: Meta,
    /// Where it came from, and so who may change it.
    pub origin: Origin,
    /// What is wanted.
    pub spec: HostGroupSpec,
}

/// What a person wants of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGroupSpec {
    /// VMs `<name>-1` to `<name>-<count>`.
    pub count: u32,
    /// How a change that cannot be made live reaches VMs that run.
    pub update: UpdatePolicy,
    /// Each of them.
    pub template: VmSpec,
}

/// How VMs are replaced when their spec changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdatePolicy {
    /// One at a time, the next when the last is Ready.
    #[default]
    Rolling,
    /// When a person deletes them.
    OnDelete,
}

/// Where a group came from. It can be changed only from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", content = "path", rename_all = "kebab-case")]
pub enum Origin {
    /// A file in the config folder.
    File(PathBuf),
    /// `slicectl apply`.
    Apply,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Apply => f.write_str("slicectl apply"),
        }
    }
}

impl HostGroup {
    /// The name of the VM with this index, from 1. `None` when it would be no RFC 1123 label.
    pub fn vm_name(group: &Name, index: u32) -> Option<Name> {
        Name::new(format!("{group}-{index}")).ok()
    }
}
