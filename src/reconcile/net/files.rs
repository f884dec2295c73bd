//! A VM's run directory: made with the record, removed with it. The same in every mode.
//! Out of scope: what the record contains; what the VMM keeps there.

use std::path::Path;

use super::{LOCK, RECORD};
use crate::host::fs::{self, Durability};
use crate::host::{Error, Kind, ramdir};

/// What of a run directory is there.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// The record's text; none: no such file.
    pub(super) record: Option<String>,
    /// The directory.
    pub(super) dir: bool,
}

pub(super) fn observe(dir: &Path) -> Result<Seen, Error> {
    let record = fs::read_text(&dir.join(RECORD))?;
    let is_there = match fs::look_at_dir(dir)? {
        // With nothing but files of others in it, all that is ours is gone.
        fs::Dir::Present(names) => {
            names.is_empty() || names.iter().any(|name| is_ours(name)) || ramdir::is_mounted(dir)?
        }
        fs::Dir::Absent | fs::Dir::NotADirectory => false,
    };
    Ok(Seen {
        record,
        dir: is_there,
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

/// The record goes last: while it exists, the directory shows its owner. What is mounted on the directory is detached if necessary.
pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    if ramdir::is_mounted(dir)? {
        fs::free(dir)?;
    }
    if remove_all(dir).is_err() {
        fs::free(dir)?;
        remove_all(dir)?;
    }
    if let fs::Dir::Present(names) = fs::look_at_dir(dir)? {
        tracing::warn!(dir = %dir.display(), ?names, "files that are not ours are left in the directory of a VM that is gone");
    }
    Ok(())
}

fn remove_all(dir: &Path) -> Result<(), Error> {
    fs::remove_ours(&dir.join(LOCK))?;
    let record = dir.join(RECORD);
    fs::remove_draft(&record)?;
    fs::remove_ours(&record)?;
    fs::remove_our_empty_dir(dir)
}

fn is_ours(name: &str) -> bool {
    name == RECORD
        || name == LOCK
        || name
            .strip_prefix('.')
            .is_some_and(|draft| draft.starts_with(RECORD))
}

/// The empty file below a namespace's mount, which a crash leaves when it comes just before mounting or just after unmounting.
/// What is mounted on is busy, and stays.
pub(super) fn remove_vacant(path: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() == 0 => match fs::remove(path) {
            Err(error) if error.kind == Kind::Busy => Ok(()),
            removed => removed,
        },
        _ => Ok(()),
    }
}
