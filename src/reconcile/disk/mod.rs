//! A VM's own disk: a copy of an image, part of the Vmm rung. It is there before the VMM starts, and goes after it has ended.
//! Out of scope: disks that are used where they lie; who holds a disk while it is used ([`crate::host::image`]).
//!
//! # The disk directory, `<state>/disks/`
//! | name | what |
//! |---|---|
//! | `<vm>.img` | the disk |
//! | `<vm>.json` | a [`Record`]: whose it is, what of, and whether it is kept. Written before the disk is |
//! | `.<vm>.img.new` | a disk that is being made |
//!
//! # What is kept
//! A disk that is not persistent belongs to one VM (its uid) and one boot of the host. A persistent one belongs to the VM's
//! name: what replaces the VM takes it over, and it stays when the VM is deleted. Nothing here ever removes a disk whose record says
//! that it is persistent, nor one without a record.

mod act;
mod observe;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::places::Places;
use super::{Conflict, Reconcile};
use crate::api::meta::Name;
use crate::api::storage::Bytes;
use crate::host;
use crate::host::image::{Edition, Progress};
use crate::owner::Label;

pub use observe::{claimed, is_of_boot, kept};
pub use plan::remark;

/// Hands for one run.
#[derive(Debug, Default)]
pub struct Disks {
    /// How far a copy under way has come.
    pub progress: Arc<Progress>,
    /// Where images may lie.
    pub places: Places,
}

/// What disk a VM is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose.
    pub label: Label,
    /// `<state>/disks`.
    pub dir: PathBuf,
    /// The VM's name.
    pub name: Name,
    /// Which boot of the host this is.
    pub boot: String,
    /// The process that uses it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// None: no disk of its own.
    pub want: Option<Want>,
}

/// A disk that is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// What it is made of.
    pub image: PathBuf,
    /// Which edition of it is there; none: it is not there any more.
    #[serde(default)]
    pub edition: Option<Edition>,
    /// So many bytes at least; 0: as many as the image.
    #[serde(default)]
    pub at_least: u64,
    /// It outlives the VM.
    #[serde(default)]
    pub persistent: bool,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// At the disk's place.
    pub disk: Lies,
    /// A disk that was being made when we were killed.
    #[serde(default)]
    pub draft: bool,
    /// Whose it is; none: there is no record, or none that can be understood.
    #[serde(default)]
    pub record: Option<Record>,
}

/// What lies at the disk's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lies {
    /// Nothing.
    Absent,
    /// A file of so many bytes.
    File(u64),
    /// Something else.
    Foreign,
}

/// Whose a disk is, what it was made of, and whether it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose: of a persistent disk, the VM's that had it last.
    pub label: Label,
    /// It outlives the VM.
    pub persistent: bool,
    /// In which boot of the host it was made or taken over.
    pub boot: String,
    /// What it was made of; none: it was here before us.
    pub image: Option<PathBuf>,
    /// Which edition of that.
    pub edition: Option<Edition>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Removes a half-made disk.
    RemoveDraft,
    /// Removes a disk that nobody uses.
    RemoveDisk(PathBuf),
    /// Notes whose the disk is.
    Note(Record),
    /// Makes the disk, of this size at least.
    Copy {
        /// From this.
        image: PathBuf,
        /// Here.
        to: PathBuf,
        /// Bytes.
        at_least: u64,
    },
    /// Makes the disk longer.
    Grow {
        /// This one.
        disk: PathBuf,
        /// To so many bytes.
        to: u64,
    },
    /// Removes the record of a disk that is gone.
    Forget,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RemoveDraft => f.write_str("remove the half-made disk"),
            Self::RemoveDisk(disk) => write!(f, "remove the disk {}", disk.display()),
            Self::Note(_) => f.write_str("note whose the disk is"),
            Self::Copy { image, to, .. } => write!(
                f,
                "copy the image {} to the disk {}",
                image.display(),
                to.display()
            ),
            Self::Grow { disk, to } => {
                write!(f, "grow the disk {} to {}", disk.display(), Bytes(*to))
            }
            Self::Forget => f.write_str("remove the note on the disk"),
        }
    }
}

impl Desired {
    /// Where the disk lies.
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

/// Where the disk of the VM of that name lies.
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

    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(desired)
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(desired, action, &self.progress, &self.places).await
    }
}
