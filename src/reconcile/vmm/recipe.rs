//! From a VM's spec to a command line. Pure.
//! Not here: whether it runs; each VMM's own words (`qemu`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Machine, qemu};
use crate::api::meta::Name;
use crate::api::network::Connection;
use crate::api::vm::{Hypervisor, VmSpec};

/// What a VM is connected to, and where its VMM keeps its things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The VM's name, and the guest's host name.
    pub name: Name,
    /// The run directory.
    pub dir: PathBuf,
    /// How it is connected.
    pub connection: Connection,
    /// Its disks, in their order: the first is the root disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
}

/// A disk that is there to be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub access: Access,
}

/// What a guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// How to start a VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The network namespace it is to live in; none: the daemon's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The TAP that must be there first.
    pub tap: String,
}

impl Launch {
    /// The namespace as a path. The daemon's main thread never leaves the one that it was started in.
    pub fn netns(&self) -> &Path {
        let own = Path::new("/proc/self/ns/net");
        self.netns.as_deref().unwrap_or(own)
    }
}

/// Why a spec cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A VMM boots nothing from nothing.
    #[error("hypervisor {0} needs a `kernel_file`")]
    NoKernel(Hypervisor),
}

/// How to run `spec` in `slot` on `machine`; `None` when nothing is to be run.
pub fn recipe(spec: &VmSpec, slot: &Slot, machine: &Machine) -> Result<Option<Launch>, Unfit> {
    match spec.hypervisor {
        Hypervisor::None => Ok(None),
        Hypervisor::Qemu => qemu::recipe(spec, slot, machine).map(Some),
    }
}
