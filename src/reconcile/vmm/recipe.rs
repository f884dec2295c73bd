//! From a VM's spec to a command line. Pure.
//! Out of scope: whether it runs; each VMM's own syntax (`qemu`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Machine, Program, Version, cloud_hypervisor, firecracker, qemu};
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
    /// Whose `/sys` its VMM sees.
    #[serde(default)]
    pub sys: Sys,
    /// What confines its VMM.
    #[serde(default, skip_serializing_if = "ConfinedBy::is_default")]
    pub confined_by: ConfinedBy,
}

/// What confines a VMM that has a user of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfinedBy {
    /// Ourselves.
    Sliced {
        /// Why not a jailer, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Firecracker's jailer, within what we do ourselves.
    Jailer(Program),
}

impl ConfinedBy {
    /// We do it, and nobody else is there.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ConfinedBy {
    fn default() -> Self {
        Self::Sliced { why: None }
    }
}

impl std::fmt::Display for ConfinedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Jailer(jailer) => write!(f, "jailer {}", jailer.version),
            Self::Sliced { why: None } => f.write_str("sliced"),
            Self::Sliced { why: Some(why) } => write!(f, "sliced, not its jailer: {why}"),
        }
    }
}

/// Whose `/sys` a VMM sees: that of the network namespace it was mounted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sys {
    /// The host's: the VM's links are not in it.
    #[default]
    Host,
    /// A fresh one, as every confined VMM has it.
    Own,
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
    /// Written into the run directory before the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<NewFile>,
    /// Named pipes that are made there, each one of [`super::OURS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<String>,
    /// For which version of its program; none: nobody has asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Such a one is kept while it runs, and never started: it is from before VMMs had users of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_kept: bool,
    /// What confines it.
    #[serde(default, skip_serializing_if = "ConfinedBy::is_default")]
    pub confined_by: ConfinedBy,
}

/// A file that a VMM reads when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// One of [`super::OURS`].
    pub name: String,
    /// All of it.
    pub text: String,
}

impl Launch {
    /// In its slot's place; without files.
    pub(super) fn new(argv: Vec<String>, slot: &Slot) -> Self {
        Self {
            argv,
            netns: slot.connection.netns.clone(),
            tap: slot.connection.tap.clone(),
            files: Vec::new(),
            pipes: Vec::new(),
            version: None,
            only_kept: false,
            confined_by: slot.confined_by.clone(),
        }
    }

    /// What runs already and is to go on so; never to be started.
    pub fn kept(argv: Vec<String>, slot: &Slot) -> Self {
        Self {
            only_kept: true,
            ..Self::new(argv, slot)
        }
    }

    /// The namespace as a path. The daemon's main thread never leaves the one that it was started in.
    pub fn netns(&self) -> &Path {
        let own = Path::new("/proc/self/ns/net");
        self.netns.as_deref().unwrap_or(own)
    }
}

impl Slot {
    /// What a VM boots from.
    pub(super) fn kernel<'a>(&self, spec: &'a VmSpec) -> Result<&'a Path, Unfit> {
        spec.kernel_file
            .as_deref()
            .ok_or(Unfit::NoKernel(spec.hypervisor))
    }
}

/// Why a spec cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A VMM boots nothing from nothing.
    #[error("hypervisor {0} needs a `kernel_file`")]
    NoKernel(Hypervisor),
    /// The program is older than anything that was tried.
    #[error("{hypervisor} {found} is too old: {least} or newer is needed")]
    TooOld {
        /// Whose program.
        hypervisor: Hypervisor,
        /// Its version.
        found: Version,
        /// What would do.
        least: Version,
    },
    /// The kernel's command line has no room for all of it.
    #[error(
        "the kernel's command line has {bytes} bytes, 2047 is the most: shorten `cmdline`, or give the network fewer routes"
    )]
    LongLine {
        /// With what the VMM appends.
        bytes: usize,
    },
    /// More processors than this VMM has.
    #[error("{hypervisor} runs at most {most} vcpus")]
    Processors {
        /// Which.
        hypervisor: Hypervisor,
        /// How many.
        most: u32,
    },
    /// A path that this VMM's options cannot carry.
    #[error("{hypervisor} cannot take the path {path:?}: it has one of , \" [ ] in it")]
    Path {
        /// Which.
        hypervisor: Hypervisor,
        /// What.
        path: PathBuf,
    },
    /// A guest could turn its disk into a window on the host's files.
    #[error(
        "cloud-hypervisor {0} guesses a disk's format from what the guest wrote to it: 51.0 or newer is needed for a disk that is not read-only"
    )]
    GuessedFormat(Version),
    /// This VMM would put an address of its own on the TAP.
    #[error(
        "cloud-hypervisor {0} puts an address of its own on a TAP that it does not see in /sys: 49.0 or newer is needed in a network namespace"
    )]
    OwnAddress(Version),
}

/// How to run `spec` in `slot` with `program` on `machine`; `None` when nothing is to be run.
pub fn recipe(
    spec: &VmSpec,
    slot: &Slot,
    program: &Program,
    machine: &Machine,
) -> Result<Option<Launch>, Unfit> {
    let least = Version::least(spec.hypervisor);
    if let Some(least) = least.filter(|least| program.version < *least) {
        return Err(Unfit::TooOld {
            hypervisor: spec.hypervisor,
            found: program.version,
            least,
        });
    }
    let mut launch = match spec.hypervisor {
        Hypervisor::None => return Ok(None),
        Hypervisor::Qemu => qemu::recipe(spec, slot, program, machine),
        Hypervisor::Firecracker => firecracker::recipe(spec, slot, program),
        Hypervisor::CloudHypervisor => cloud_hypervisor::recipe(spec, slot, program),
    }?;
    launch.version = Some(program.version);
    Ok(Some(launch))
}
