//! A VM's run directory: created with the record, removed with it. The same in every mode.
//! Out of scope: what the record contains; what the VMM keeps there.

use std::path::Path;

use super::{LOCK, RECORD};
use crate::host::fs::{self, Durability};
use crate::host::{Error, Kind, ramdir};

/// The content of a run directory.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// The record's text; `None` if there is no such file.
    pub(super) record: Option<String>,
    /// Whether the directory exists and contains files of ours, or is empty.
    pub(super) dir: bool,
}

pub(super) fn observe(dir: &Path) -> Result<Seen, Error> {
    let record = fs::read_text(&dir.join(RECORD))?;
    let exists = match fs::read_dir(dir)? {
        // If it contains only foreign files, everything of ours is removed.
        fs::Dir::Present(names) => {
            names.is_empty() || names.iter().any(|name| is_ours(name)) || ramdir::is_mounted(dir)?
        }
        fs::Dir::Absent | fs::Dir::NotADirectory => false,
    };
    Ok(Seen {
        record,
        dir: exists,
    })
}

pub(super) fn write_record(dir: &Path, record: &str) -> Result<(), Error> {
    fs::make_dir(dir, 0o700)?;
    fs::write(
        &dir.join(RECORD),
        record.as_bytes(),
        0o600,
        Durability::Process,
    )
}

/// The record is removed last: while it exists, the directory shows its owner. A mount on the directory is detached if necessary.
pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    if ramdir::is_mounted(dir)? {
        fs::free(dir)?;
    }
    if remove_all(dir).is_err() {
        fs::free(dir)?;
        remove_all(dir)?;
    }
    if let fs::Dir::Present(names) = fs::read_dir(dir)? {
        tracing::warn!(dir = %dir.display(), ?names, "the directory of a removed VM contains files that are not ours");
    }
    Ok(())
}

fn remove_all(dir: &Path) -> Result<(), Error> {
    fs::force_remove(&dir.join(LOCK))?;
    let record = dir.join(RECORD);
    fs::remove_temp(&record)?;
    fs::force_remove(&record)?;
    fs::force_remove_empty_dir(dir)
}

fn is_ours(name: &str) -> bool {
    name == RECORD
        || name == LOCK
        || name
            .strip_prefix('.')
            .is_some_and(|temporary| temporary.starts_with(RECORD))
}

/// Removes the empty file below a namespace's mount. A crash just before mounting or just after unmounting leaves it. A mounted file is
/// busy, and stays.
pub(super) fn remove_empty_file(path: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() == 0 => match fs::remove(path) {
            Err(error) if error.kind == Kind::Busy => Ok(()),
            removed => removed,
        },
        _ => Ok(()),
    }
}
