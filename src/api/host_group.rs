//! `HostGroup`: what people write, and the only kind they write.
//! Out of scope: making VMs out of one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::meta::{Meta, Name};
use super::on_demand::Order;
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
    /// The VMs made on demand beside those of `count`, by their place. They are no part of the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub orders: BTreeMap<u32, Order>,
    /// It came back from the run directory after the state was lost, and its file was not seen since: that the file is missing is no
    /// request to delete it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// The directory in which its file was last seen to name it. That the file is missing from another directory is no request to
    /// delete it. None: it comes from `apply`, or was stored by a version that did not record this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_in: Option<DirectoryId>,
}

/// Which directory a path led to: what is mounted or renamed there later is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// When the inode was made, in nanoseconds, where the file system records it (`STATX_BTIME`): a device number and an inode number
    /// are given again, those of the root of a tmpfs at the very next mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<i64>,
}

/// The highest `count`. The places of VMs made on demand lie past it: a group that grows never meets one.
pub const MAX_COUNT: u32 = 65_536;

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

    /// Whether some group counts, or might count, a VM of this name: a VM made on demand must have another.
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

    /// How many VMs it is to have.
    pub fn size(&self) -> usize {
        self.spec.count as usize + self.orders.len()
    }

    /// Where the next VM made on demand may stand; `taken` are places in which VMs stand.
    pub fn free_place(&self, taken: impl Fn(u32) -> bool) -> Option<u32> {
        let mut places = (MAX_COUNT + 1)..=(2 * MAX_COUNT);
        places.find(|place| !self.orders.contains_key(place) && !taken(*place))
    }
}
