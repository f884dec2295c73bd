//! The file of the guard on the disk, and whether a guard runs.
//! Out of scope: its content ([`crate::fleet::fence`]).

use std::fs::File;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::fleet::contact::{Boottime, Contact};
use crate::fleet::fence::{FenceFile, Guarded};
use crate::host::lock::FileLock;
use crate::host::{Error, fs};

/// The name of the file in the run directory.
pub const FILE: &str = "fence.json";
/// The name of the lock that a guard holds.
pub const LOCK: &str = "fence.lock";

/// The file, as this daemon has written it last.
pub(super) struct FenceWriter {
    path: PathBuf,
    lock: PathBuf,
    boot_id: String,
    last: Mutex<Option<FenceFile>>,
}

impl FenceWriter {
    /// Reads the file that the daemon before has written. One that cannot be read is as none: VMs that may be replaced are then stopped at
    /// once.
    pub(super) fn new(run_dir: &Path, boot_id: &str) -> Self {
        let path = run_dir.join(FILE);
        let content = fs::read(&path).ok().flatten();
        let last = content.and_then(|content| FenceFile::decode(&content).ok());
        Self {
            lock: run_dir.join(LOCK),
            path,
            boot_id: boot_id.to_owned(),
            last: Mutex::new(last.filter(|last| last.boot_id == boot_id)),
        }
    }

    /// When the last confirmed renewal of this boot was sent.
    pub(super) fn renewed(&self) -> Option<Boottime> {
        self.last.lock().as_ref()?.renewed
    }

    /// Writes the file if it changes. Without VMs in it, the time of the renewal alone is no change.
    ///
    /// # Errors
    /// It cannot be written; the times before stay in effect.
    pub(super) fn write(&self, contact: &Contact, guarded: Vec<Guarded>) -> Result<(), Error> {
        let mut last = self.last.lock();
        let file = FenceFile::new(contact, self.boot_id.clone(), guarded, last.as_ref());
        let is_empty = file.vms.is_empty() && last.as_ref().is_none_or(|it| it.vms.is_empty());
        if is_empty || last.as_ref() == Some(&file) {
            return Ok(());
        }
        let content = file
            .encode()
            .map_err(|error| Error::other("encode", "the file of the guard", error.to_string()))?;
        fs::write(&self.path, &content, 0o600, fs::Durability::Process)?;
        *last = Some(file);
        Ok(())
    }

    /// Whether a guard runs: it holds the lock.
    pub(super) fn has_guard(&self) -> bool {
        let Ok(file) = File::open(&self.lock) else {
            return false;
        };
        matches!(FileLock::shared(file), Ok(Err(_)))
    }
}
