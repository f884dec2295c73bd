//! The copies of the integrity record on the state disk and in the run directory: reads them, and updates them once the database is open.
//! Out of scope: the comparison ([`super::verify`]).

use std::io;
use std::path::Path;

use super::database::IntegrityRecords;
use super::disk::OpenError;
use super::format::FormatFile;
use super::integrity::{IntegrityRecord, RecordSlots, RunCopy, Scope};
use super::position::LogPosition;
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
    pub fn find(
        record: &Path,
        run: Option<&RunCopy>,
        format: FormatFile,
    ) -> Result<Self, OpenError> {
        let disk = IntegrityRecord::open(record, Scope::ALWAYS)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", record.display())))?;
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
        log_position: &LogPosition,
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
                IntegrityRecord::create(path, Scope::ALWAYS, log_position)?
            }
            Some((mut record, found)) => {
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
                    None => IntegrityRecord::create(path, Scope::ALWAYS, log_position)?,
                    Some(best) => {
                        if best != *log_position || found.is_damaged() {
                            record.write(log_position)?;
                            record.sync()?;
                        }
                        record
                    }
                }
            }
        };
        let run = run_copy.and_then(|copy| {
            let written = update_run_copy(self.run, copy, log_position, notes);
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
    log_position: &LogPosition,
    notes: &mut Vec<String>,
) -> io::Result<IntegrityRecord> {
    match found {
        Some((mut record, found))
            if found
                .newest()
                .is_some_and(|best| best.id == log_position.id) =>
        {
            if found.is_damaged() {
                notes.push(format!(
                    "a copy in {} was damaged and was written again",
                    copy.path.display()
                ));
            }
            if found.newest() != Some(*log_position) || found.is_damaged() {
                record.write(log_position)?;
            }
            Ok(record)
        }
        Some((_, found)) if found.newest().is_none() && !found.is_of_another_boot() => {
            notes.push(format!(
                "{} was damaged and was written again",
                copy.path.display()
            ));
            IntegrityRecord::create(&copy.path, Scope::boot(&copy.boot_id), log_position)
        }
        Some(_) | None => {
            IntegrityRecord::create(&copy.path, Scope::boot(&copy.boot_id), log_position)
        }
    }
}
