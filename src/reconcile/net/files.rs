//! A VM's run directory: made with the record, removed with it. The same in every mode.
//! Not here: what the record says; what the VMM keeps there.

use std::path::Path;

use super::RECORD;
use crate::host::Error;
use crate::host::fs::{self, Durability};

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
    let dir = match fs::look_at_dir(dir)? {
        fs::Dir::Present(_) => true,
        fs::Dir::Absent | fs::Dir::NotADirectory => false,
    };
    Ok(Seen { record, dir })
}

pub(super) fn write_record(dir: &Path, record: &str) -> Result<(), Error> {
    fs::make_dir(dir, 0o755)?;
    fs::write(
        &dir.join(RECORD),
        record.as_bytes(),
        0o600,
        Durability::Process,
    )
}

/// These files and then the record: while it is there, the directory says whose it is.
pub(super) fn remove(dir: &Path, files: &[&str]) -> Result<(), Error> {
    for file in files.iter().chain([&RECORD]) {
        fs::remove(&dir.join(file))?;
    }
    fs::remove_empty_dir(dir)
}
