//! A VM's own disk: a copy of an image, part of the Vmm stage. It is created before the VMM starts and removed after the VMM has ended.
//! Out of scope: disks that are used without a copy; locks on disks ([`crate::host::image`]).
//!
//! # The disk directory, `<state>/disks/`
//! | name | content |
//! |---|---|
//! | `<vm>.img` | the disk |
//! | `<vm>.json` | a [`Record`]: the disk's owner, its image, and whether it is persistent. Written before the disk |
//! | `.<vm>.img.new` | a disk during its creation |
//!
//! # Persistent disks
//! A disk that is not persistent belongs to one VM (its uid) and one boot of the host. A persistent disk belongs to the VM's name: the
//! VM's replacement uses it again, and it is kept when the VM is deleted. This module never removes a disk with a persistent record, nor
//! a disk without a record.

mod act;
mod observe;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Conflict, OnHost, Reconcile};
use crate::api::meta::Name;
use crate::api::storage::Bytes;
use crate::host;
use crate::host::image::{Edition, Progress};
use crate::owner::Label;
use crate::vmm::FileAccess;

pub use observe::{claimed, is_of_boot, kept};
pub use plan::image_note;

/// The state of one reconciliation of a disk.
#[derive(Debug, Default)]
pub struct Disks {
    /// The progress of a running copy.
    pub progress: Arc<Progress>,
    /// The allowed directories of images.
    pub places: FileAccess,
}

/// The desired disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The label of the VM.
    pub label: Label,
    /// `<state>/disks`.
    pub dir: PathBuf,
    /// The VM's name.
    pub name: Name,
    /// The boot ID of the host.
    pub boot: String,
    /// The PID of the process that uses the disk now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// The disk's spec. `None`: the VM has no disk of its own.
    pub spec: Option<DiskSpec>,
}

/// The spec of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The path of its image.
    pub image: PathBuf,
    /// The edition of the image. `None`: the image does not exist any more.
    #[serde(default)]
    pub edition: Option<Edition>,
    /// The minimum size in bytes. 0: the size of the image.
    #[serde(default)]
    pub at_least: u64,
    /// Whether the disk is kept when the VM is deleted.
    #[serde(default)]
    pub persistent: bool,
}

/// The actual state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// What exists at the disk's path.
    pub disk: DiskSeen,
    /// Whether a partial copy exists: the daemon ended during the creation.
    #[serde(default)]
    pub draft: bool,
    /// The disk record. `None`: it does not exist or cannot be parsed.
    #[serde(default)]
    pub record: Option<Record>,
}

/// What exists at the disk's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskSeen {
    /// Nothing.
    Absent,
    /// A regular file of this size in bytes.
    File(u64),
    /// Any other type of file.
    Foreign,
}

/// The disk record: the disk's owner, its image, and whether it is persistent. Stored as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The VM that owns the disk; for a persistent disk, the last VM that used it.
    pub label: Label,
    /// Whether the disk is kept when the VM is deleted.
    pub persistent: bool,
    /// The boot ID of the host when the disk was created or adopted.
    pub boot: String,
    /// The image that it was created from. `None`: it already existed.
    pub image: Option<PathBuf>,
    /// The edition of the image.
    pub edition: Option<Edition>,
}

/// An action on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Removes a partial copy.
    RemoveDraft,
    /// Removes an unused disk.
    RemoveDisk(PathBuf),
    /// Writes the disk record.
    Note(Record),
    /// Creates the disk by copying its image.
    Copy {
        /// The path of the image.
        image: PathBuf,
        /// The path of the disk.
        to: PathBuf,
        /// The minimum size in bytes.
        at_least: u64,
    },
    /// Extends the disk.
    Grow {
        /// The path of the disk.
        disk: PathBuf,
        /// The new size in bytes.
        to: u64,
    },
    /// Removes the record of a disk that does not exist any more.
    Forget,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RemoveDraft => f.write_str("remove the partial copy of the disk"),
            Self::RemoveDisk(disk) => write!(f, "remove the disk {}", disk.display()),
            Self::Note(_) => f.write_str("write the disk record"),
            Self::Copy { image, to, .. } => write!(
                f,
                "copy the image {} to the disk {}",
                image.display(),
                to.display()
            ),
            Self::Grow { disk, to } => {
                write!(f, "grow the disk {} to {}", disk.display(), Bytes(*to))
            }
            Self::Forget => f.write_str("remove the disk record"),
        }
    }
}

impl Desired {
    /// The path of the disk.
    pub fn disk(&self) -> PathBuf {
        disk_path(&self.dir, &self.name)
    }

    fn draft(&self) -> PathBuf {
        self.dir.join(format!(".{}.img.new", self.name))
    }

    fn record(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }
}

/// The path of the disk of a VM with this name.
pub fn disk_path(dir: &Path, name: &Name) -> PathBuf {
    dir.join(format!("{name}.img"))
}

impl Reconcile for Disks {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }
}

impl OnHost for Disks {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(desired)
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(desired, action, &self.progress, &self.places).await
    }
}
