//! The copies of the integrity record on the state disk and in the run directory: reads them, and updates them once the database is open.
//! Out of scope: the comparison ([`super::verify`]).

use std::io;
use std::path::Path;

use super::database::Seals;
use super::disk::OpenError;
use super::format::Said;
use super::mark::Mark;
use super::seal::{Found, RunCopy, Scope, Seal};
use super::verify::Evidence;

/// The copies that were found.
pub(super) struct Copies {
    disk: Option<(Seal, Found)>,
    run: Option<(Seal, Found)>,
    /// The content of the format file.
    format: Said,
}

impl Copies {
    /// Reads both copies. The copy in the run directory is optional: a read failure is only logged.
    ///
    /// # Errors
    /// The copy on the state disk cannot be read.
    pub fn find(seal: &Path, run: Option<&RunCopy>, format: Said) -> Result<Self, OpenError> {
        let disk = Seal::find(seal, Scope::ALWAYS)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", seal.display())))?;
        let run = run.and_then(|run| {
            let found = Seal::find(&run.path, Scope::boot(&run.boot_id));
            found.unwrap_or_else(|error| {
                tracing::warn!(path = %run.path.display(), %error, "cannot read the copy of the integrity record");
                None
            })
        });
        Ok(Self { disk, run, format })
    }

    /// The positions in the copies.
    pub fn evidence(&self) -> Evidence {
        let best = |copy: &Option<(Seal, Found)>| copy.as_ref().and_then(|(_, found)| found.best());
        let run = best(&self.run);
        Evidence {
            disk: best(&self.disk),
            run,
            sealed: self.disk.is_some() || run.is_some() || self.format != Said::Nothing,
        }
    }

    /// Writes `mark` to both copies, and adds a note for each copy that differed from what was expected.
    ///
    /// # Errors
    /// The copy on the state disk cannot be written.
    pub fn establish(
        self,
        place: &Path,
        run_copy: Option<&RunCopy>,
        mark: &Mark,
        notes: &mut Vec<String>,
    ) -> io::Result<Seals> {
        let newest = self.evidence().newest().ok().flatten();
        let disk = match self.disk {
            None => {
                // Creating the first record is not a repair.
                if newest.is_some() || self.format != Said::Nothing {
                    notes.push(format!(
                        "{} was missing and was written again",
                        place.display()
                    ));
                }
                Seal::create(place, Scope::ALWAYS, mark)?
            }
            Some((mut seal, found)) => {
                if found.is_damaged() {
                    notes.push(format!(
                        "a copy in {} was damaged and was written again",
                        place.display()
                    ));
                } else if found.best() != newest {
                    notes.push(format!(
                        "{} was older than the database and was written again",
                        place.display()
                    ));
                }
                match found.best() {
                    None => Seal::create(place, Scope::ALWAYS, mark)?,
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
            let written = establish_run(self.run, copy, mark, notes);
            written
                .map_err(|error| {
                    notes.push(format!(
                        "{}: {error}; an outdated state disk can be detected only by its own integrity record",
                        copy.path.display()
                    ));
                })
                .ok()
        });
        Ok(Seals { disk, run })
    }
}

fn establish_run(
    found: Option<(Seal, Found)>,
    copy: &RunCopy,
    mark: &Mark,
    notes: &mut Vec<String>,
) -> io::Result<Seal> {
    match found {
        Some((mut seal, found)) if found.best().is_some_and(|best| best.id == mark.id) => {
            if found.is_damaged() {
                notes.push(format!(
                    "a copy in {} was damaged and was written again",
                    copy.path.display()
                ));
            }
            if found.best() != Some(*mark) || found.is_damaged() {
                seal.write(mark)?;
            }
            Ok(seal)
        }
        Some((_, found)) if found.best().is_none() && !found.is_of_another_boot() => {
            notes.push(format!(
                "{} was damaged and was written again",
                copy.path.display()
            ));
            Seal::create(&copy.path, Scope::boot(&copy.boot_id), mark)
        }
        Some(_) | None => Seal::create(&copy.path, Scope::boot(&copy.boot_id), mark),
    }
}
