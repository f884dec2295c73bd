//! The copies of the integrity record on the state disk and in the run directory: reads them, and updates them once the database is open.
//! Out of scope: the comparison ([`super::verify`]).

use std::io;
use std::path::Path;

use super::database::IntegrityRecords;
use super::disk::OpenError;
use super::format::FormatFile;
use super::mark::LogPosition;
use super::seal::{IntegrityRecord, RecordSlots, RunCopy, Scope};
use super::verify::Evidence;

/// The copies that were found.
pub(super) struct RecordCopies {
    disk: Option<(IntegrityRecord, RecordSlots)>,
    run: Option<(IntegrityRecord, RecordSlots)>,
    /// The content of the format file.
    format: FormatFile,
}

impl RecordCopies {
    /// Reads both copies. The copy in the run directory is optional: a read failure is only logged.
    ///
    /// # Errors
    /// The copy on the state disk cannot be read.
    pub fn find(seal: &Path, run: Option<&RunCopy>, format: FormatFile) -> Result<Self, OpenError> {
        let disk = IntegrityRecord::open(seal, Scope::ALWAYS)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", seal.display())))?;
        let run = run.and_then(|run| {
            let found = IntegrityRecord::open(&run.path, Scope::boot(&run.boot_id));
            found.unwrap_or_else(|error| {
                tracing::warn!(path = %run.path.display(), %error, "cannot read the copy of the integrity record");
                None
            })
        });
        Ok(Self { disk, run, format })
    }

    /// The positions in the copies.
    pub fn evidence(&self) -> Evidence {
        let newest_of = |copy: &Option<(IntegrityRecord, RecordSlots)>| {
            copy.as_ref().and_then(|(_, found)| found.newest())
        };
        let run = newest_of(&self.run);
        Evidence {
            disk: newest_of(&self.disk),
            run,
            has_record: self.disk.is_some() || run.is_some() || self.format != FormatFile::Missing,
        }
    }

    /// Writes `position` to both copies, and adds a note for each copy that differed from what was expected.
    ///
    /// # Errors
    /// The copy on the state disk cannot be written.
    pub fn update(
        self,
        path: &Path,
        run_copy: Option<&RunCopy>,
        mark: &LogPosition,
        notes: &mut Vec<String>,
    ) -> io::Result<IntegrityRecords> {
        let newest = self.evidence().newest().ok().flatten();
        let disk = match self.disk {
            None => {
                // Creating the first record is not a repair.
                if newest.is_some() || self.format != FormatFile::Missing {
                    notes.push(format!(
                        "{} was missing and was written again",
                        path.display()
                    ));
                }
                IntegrityRecord::create(path, Scope::ALWAYS, mark)?
            }
            Some((mut seal, found)) => {
                if found.is_damaged() {
                    notes.push(format!(
                        "a copy in {} was damaged and was written again",
                        path.display()
                    ));
                } else if found.newest() != newest {
                    notes.push(format!(
                        "{} was older than the database and was written again",
                        path.display()
                    ));
                }
                match found.newest() {
                    None => IntegrityRecord::create(path, Scope::ALWAYS, mark)?,
                    Some(best) => {
                        if best != *mark || found.is_damaged() {
                            seal.write(mark)?;
                            seal.sync()?;
                        }
                        seal
                    }
                }
            }
        };
        let run = run_copy.and_then(|copy| {
            let written = update_run_copy(self.run, copy, mark, notes);
            written
                .map_err(|error| {
                    notes.push(format!(
                        "{}: {error}; an outdated state disk can be detected only by its own integrity record",
                        copy.path.display()
                    ));
                })
                .ok()
        });
        Ok(IntegrityRecords { disk, run })
    }
}

fn update_run_copy(
    found: Option<(IntegrityRecord, RecordSlots)>,
    copy: &RunCopy,
    mark: &LogPosition,
    notes: &mut Vec<String>,
) -> io::Result<IntegrityRecord> {
    match found {
        Some((mut seal, found)) if found.newest().is_some_and(|best| best.id == mark.id) => {
            if found.is_damaged() {
                notes.push(format!(
                    "a copy in {} was damaged and was written again",
                    copy.path.display()
                ));
            }
            if found.newest() != Some(*mark) || found.is_damaged() {
                seal.write(mark)?;
            }
            Ok(seal)
        }
        Some((_, found)) if found.newest().is_none() && !found.is_of_another_boot() => {
            notes.push(format!(
                "{} was damaged and was written again",
                copy.path.display()
            ));
            IntegrityRecord::create(&copy.path, Scope::boot(&copy.boot_id), mark)
        }
        Some(_) | None => IntegrityRecord::create(&copy.path, Scope::boot(&copy.boot_id), mark),
    }
}
