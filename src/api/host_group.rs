//! `HostGroup`: the only kind of object that users define.
//! Out of scope: creating VMs of a group.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::meta::{Meta, Name, Uid};
use super::on_demand::OnDemandEntry;
use super::vm::VmSpec;

pub use super::vm_index::MAX_COUNT;

/// A number of VMs with the same spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGroup {
    /// Name, uid, generation.
    pub meta: Meta,
    /// Where the group is defined; it can be changed only there.
    pub origin: Origin,
    /// The desired state.
    pub spec: HostGroupSpec,
    /// The VMs made on demand, in addition to those of `count`, by index. They are not part of the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub orders: BTreeMap<u32, OnDemandEntry>,
    /// The group was adopted from the run directory after the state was lost, and its file was not read since. A missing file is not a
    /// request to delete such a group.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// The directory in which its file was last read. A file that is missing from another directory is not a request to delete the
    /// group. `None` if the group was created by `apply`, or stored by a version that did not record this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_in: Option<DirectoryId>,
}

/// The identity of a directory: another directory may be mounted or renamed to the same path later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// The creation time of the inode in nanoseconds, if the file system records it (`STATX_BTIME`): device and inode numbers are
    /// reused, those of the root of a tmpfs by the next mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "born")]
    pub created_ns: Option<i64>,
}

/// The desired state of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostGroupSpec {
    /// VMs `<name>-1` to `<name>-<count>`.
    pub count: u32,
    /// How running VMs are updated by a change that requires a replacement.
    pub update: UpdatePolicy,
    /// The spec of each VM.
    pub template: VmSpec,
}

/// How VMs are replaced when their spec changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdatePolicy {
    /// One VM at a time, the next when the previous one is Ready.
    #[default]
    Rolling,
    /// When the user deletes them.
    OnDelete,
}

/// Where a group is defined. It can be changed only there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", content = "path", rename_all = "kebab-case")]
pub enum Origin {
    /// A file in the config directory.
    File(PathBuf),
    /// `slicectl apply`.
    Apply,
    /// The fleet; this is a copy for the VMs that are bound to this node.
    Fleet {
        /// The uid of the group of the fleet.
        uid: Uid,
        /// The generation that was copied.
        generation: u64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Apply => f.write_str("slicectl apply"),
            Self::Fleet { .. } => f.write_str("slicectl apply --fleet"),
        }
    }
}

impl HostGroup {
    /// The name of the VM with this index; the first index is 1. `None` if the name is not a valid RFC 1123 label.
    pub fn vm_name(group: &Name, index: u32) -> Option<Name> {
        Name::new(format!("{group}-{index}")).ok()
    }

    /// Whether `count` of some group can produce a VM of this name; a VM made on demand must have another name.
    pub fn is_counted_name(name: &Name) -> bool {
        let Some((group, index)) = name.as_str().rsplit_once('-') else {
            return false;
        };
        let index = index.parse().ok().filter(|i| (1..=MAX_COUNT).contains(i));
        let group = Name::new(group).ok();
        group
            .zip(index)
            .and_then(|(group, index)| Self::vm_name(&group, index))
            .as_ref()
            == Some(name)
    }

    /// The desired number of VMs.
    pub fn size(&self) -> usize {
        self.spec.count as usize + self.orders.len()
    }

    /// The index for the next VM made on demand; `taken` returns whether a VM has an index.
    pub fn free_index(&self, taken: impl Fn(u32) -> bool) -> Option<u32> {
        let mut indexes = (MAX_COUNT + 1)..=(2 * MAX_COUNT);
        indexes.find(|index| !self.orders.contains_key(index) && !taken(*index))
    }
}
