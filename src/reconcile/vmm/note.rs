//! Record of how a VMM was started, in a place where the VMM cannot write.
//! Out of scope: which process it became ([`crate::host::process::read_record`]).
//!
//! # Why
//! The run directory belongs to the VMM, which may have replaced any file in it. So what the VMM was started with is recorded next to the
//! run directory and never read back from it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Desired, NOTE, RECORD};
use crate::host;
use crate::host::fs::{self, Durability};
use crate::host::process::{self, Identity, ProcessState, Record};
use crate::vmm::{ConfinedBy, Launch, NewFile, Program, Version};

/// How a VMM was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Its program and version.
    #[serde(default)]
    pub(super) program: Option<Program>,
    /// Its user; `None`: the user of the daemon.
    #[serde(default)]
    pub(super) user: Option<u32>,
    /// What confines it.
    #[serde(default)]
    pub(super) confined_by: ConfinedBy,
    /// The files that it read when it started.
    #[serde(default)]
    files: Vec<NewFile>,
    /// Users' files that an earlier version has given to its user, with the previous attributes (`owners`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) given: Vec<ChangedFile>,
}

/// A file that belongs to a VMM's user as long as the VM exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangedFile {
    pub(super) path: PathBuf,
    /// The previous owner.
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
    /// How it was changed.
    #[serde(default, skip_serializing_if = "Change::is_default")]
    pub(super) change: Change,
}

/// How a file was changed so that a VMM can use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    /// An earlier version changed its owner to the VMM's user.
    #[default]
    Owner,
    /// The VMM's user was added to its ACL. Contains the previous extended attribute.
    Acl(Option<Vec<u8>>),
}

impl Change {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Note {
    pub(super) fn of(launch: &Launch, user: Option<u32>) -> Self {
        let program = |version: Version| Program {
            path: launch.argv.first().map(PathBuf::from).unwrap_or_default(),
            version,
        };
        Self {
            program: launch.version.map(program),
            user,
            confined_by: launch.confined_by.clone(),
            files: launch.files.clone(),
            given: Vec::new(),
        }
    }

    /// `None`: there is none. If the VM is being removed, an invalid one counts as absent.
    pub(super) fn read(desired: &Desired) -> Result<Option<Self>, host::Error> {
        match desired.is_removal() {
            true => fs::read_json_or_ignore(&path(&desired.dir)),
            false => read(&desired.dir),
        }
    }

    pub(super) fn write(&self, desired: &Desired) -> Result<(), host::Error> {
        let path = path(&desired.dir);
        let text = serde_json::to_vec(self)
            .map_err(|error| host::Error::other("write", path.display().to_string(), error))?;
        fs::write(&path, &text, 0o600, Durability::Process)
    }

    /// The files that the VMM has read.
    pub(super) fn files(&self) -> &[NewFile] {
        &self.files
    }

    pub(super) fn exists(desired: &Desired) -> bool {
        path(&desired.dir).exists()
    }

    pub(super) fn remove(desired: &Desired) -> Result<(), host::Error> {
        let path = path(&desired.dir);
        fs::remove_temp(&path)?;
        fs::remove(&path)
    }
}

/// The process that the record next to `dir` names, if it runs.
pub fn running(dir: &Path) -> Result<Option<Identity>, host::Error> {
    let Record::Of(identity) = process::read_record(&dir.with_file_name(RECORD))? else {
        return Ok(None);
    };
    Ok(match process::open(&identity)? {
        ProcessState::Alive(_) => Some(identity),
        ProcessState::Ended(_) => None,
    })
}

/// Program and version of the VMM that runs in `dir`, if any. While it runs, its recipe is computed for this version: upgrading a package
/// restarts no VM.
pub fn started_as(dir: &Path) -> Result<Option<Program>, host::Error> {
    Ok(of_running(dir)?.and_then(|note| note.program))
}

/// What confines the VMM that runs in `dir` as a user of its own, if any. A jailer that is installed later applies only to VMMs that are
/// started later.
pub fn confined_by(dir: &Path) -> Result<Option<ConfinedBy>, host::Error> {
    let confined = of_running(dir)?.filter(|note| note.user.is_some());
    Ok(confined.map(|note| note.confined_by))
}

fn of_running(dir: &Path) -> Result<Option<Note>, host::Error> {
    let is_running = match running(dir) {
        Ok(found) => found.is_some(),
        // A start is in progress: the note has been written.
        Err(error) if error.kind == host::Kind::Busy => true,
        Err(error) => return Err(error),
    };
    match is_running {
        true => read(dir),
        false => Ok(None),
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.with_file_name(NOTE)
}

pub(super) fn read(dir: &Path) -> Result<Option<Note>, host::Error> {
    fs::read_json(&path(dir))
}
