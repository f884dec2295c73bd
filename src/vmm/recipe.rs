//! Translates a VM's spec into a command line. Pure.
//! Out of scope: whether the VMM runs; the syntax of each VMM (`qemu`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Program, Version, initrd};
use crate::api::guest_access::Agent;
use crate::api::meta::Name;
use crate::api::network::Connection;
use crate::api::vm::{Hypervisor, VmSpec};

/// The resources of a VM: its connection, its disks and its run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The VM's name, and the guest's host name.
    pub name: Name,
    /// The run directory.
    pub dir: PathBuf,
    /// Its network connection.
    pub connection: Connection,
    /// Its disks in their order: the first is the root disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// The `/sys` that is visible to its VMM.
    #[serde(default)]
    pub sys: Sys,
    /// What confines its VMM.
    #[serde(default, skip_serializing_if = "ConfinedBy::is_default")]
    pub confined_by: ConfinedBy,
    /// Its QEMU was started by an earlier version, with a virtio-serial port in place of the vsock device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_serial_port: bool,
}

/// What confines a VMM that has a user of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfinedBy {
    /// The daemon only.
    Sliced {
        /// Why an existing jailer is not used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Firecracker's jailer, within the confinement of the daemon.
    Jailer(Program),
}

impl ConfinedBy {
    /// The daemon, and there is no jailer.
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
            Self::Sliced { why: Some(why) } => write!(f, "sliced, not the jailer: {why}"),
        }
    }
}

/// The `/sys` that is visible to a VMM. It shows the network namespace that it was mounted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sys {
    /// The host's, which does not contain the VM's links.
    #[default]
    Host,
    /// A new one, which every confined VMM has.
    Own,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub access: Access,
}

/// The access of a guest to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// The guest can read the disk.
    ReadOnly,
    /// The guest can read and write the disk.
    ReadWrite,
}

/// How to start a VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The network namespace that it is started in; `None`: the daemon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The TAP that must exist before the start.
    pub tap: String,
    /// Files that are written into the run directory before the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<NewFile>,
    /// Named pipes that are created in the run directory, each with one of the names in [`super`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipes: Vec<String>,
    /// The version of the program that the arguments are for; `None`: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Kept while it runs, but never started: it was started by a version in which VMMs had no users of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_kept: bool,
    /// What confines it.
    #[serde(default, skip_serializing_if = "ConfinedBy::is_default")]
    pub confined_by: ConfinedBy,
    /// The process that handles its vsock device; `None`: the VMM itself, or it has no such device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_end: Option<BackEnd>,
}

/// The process beside a QEMU that handles its vsock device ([`crate::vsock`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackEnd {
    /// Size of the file in memory that both processes share, in bytes: the memory of the guest.
    pub shared_bytes: u64,
}

/// A file that a VMM reads when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// One of the names in [`super`].
    pub name: String,
    /// Its content.
    pub text: String,
}

impl Launch {
    /// A launch with the network of `slot`, without files.
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
            back_end: None,
        }
    }

    /// A launch for a VMM that runs already and is kept; it is never started.
    pub fn kept(argv: Vec<String>, slot: &Slot) -> Self {
        Self {
            only_kept: true,
            ..Self::new(argv, slot)
        }
    }

    /// The path of the namespace. The main thread of the daemon never leaves the namespace that it was started in.
    pub fn netns(&self) -> &Path {
        let own = Path::new("/proc/self/ns/net");
        self.netns.as_deref().unwrap_or(own)
    }
}

impl Slot {
    /// The kernel of the VM.
    pub(super) fn kernel<'a>(&self, spec: &'a VmSpec) -> Result<&'a Path, RecipeError> {
        spec.kernel_file
            .as_deref()
            .ok_or(RecipeError::NoKernel(spec.hypervisor))
    }

    /// The path of the initrd that the VMM is started with.
    pub(super) fn initrd(&self, spec: &VmSpec) -> Option<PathBuf> {
        match spec.guest_access.agent {
            Agent::Inject => Some(self.injected_initrd()),
            Agent::Baked | Agent::None => spec.initrd_file.clone(),
        }
    }

    /// The path by which only the VMM sees its initrd with `slice-agent`. It does not depend on the content, so that a newer agent does not
    /// restart the VM.
    pub fn injected_initrd(&self) -> PathBuf {
        self.dir.with_file_name(initrd::NAME)
    }
}

/// Why a spec cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// The spec contains no kernel.
    #[error("hypervisor {0} needs a `kernel_file`")]
    NoKernel(Hypervisor),
    /// The program is older than the oldest supported version.
    #[error("{hypervisor} {found} is too old: {oldest} or newer is needed")]
    TooOld {
        /// The hypervisor of the program.
        hypervisor: Hypervisor,
        /// Its version.
        found: Version,
        /// The oldest supported version.
        oldest: Version,
    },
    /// The kernel command line is too long.
    #[error(
        "the kernel command line has {bytes} bytes, expected at most 2047: shorten `cmdline`, or remove routes from the network"
    )]
    CommandLineTooLong {
        /// Length, including what the VMM appends.
        bytes: usize,
    },
    /// More processors than this VMM supports.
    #[error("{hypervisor} supports at most {max} vcpus")]
    TooManyVcpus {
        /// The hypervisor.
        hypervisor: Hypervisor,
        /// Its maximum.
        max: u32,
    },
    /// A path that cannot be passed to this VMM.
    #[error("{hypervisor} does not support the path {path:?}: it contains one of , \" [ ]")]
    Path {
        /// The hypervisor.
        hypervisor: Hypervisor,
        /// The path.
        path: PathBuf,
    },
    /// A guest could get access to files of the host through its disk.
    #[error(
        "cloud-hypervisor {0} guesses the format of a disk from its content, which the guest controls: a writable disk needs 51.0 or newer"
    )]
    GuessedFormat(Version),
    /// This VMM would assign its own address to the TAP.
    #[error(
        "cloud-hypervisor {0} assigns its own address to a TAP that is not in its /sys: a network namespace needs 49.0 or newer"
    )]
    OwnAddress(Version),
}
