//! Where a batch goes, in this order: tombstones, the journal in the run directory, the database. The only thing that the
//! disk thread owns.
//! Not here: what follows from a batch that was refused.
//!
//! # Why
//! The tombstone must be there when the database says that a VM goes (see [`super::tombstones`]). The journal comes before the
//! database because an acknowledged change must be in both, and an append in memory can be cut off again where a flushed
//! database cannot.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::disk::{self, Db};
use super::journal::{Entries, Journal};
use super::tombstones::Tombstones;
use crate::api::meta::Uid;

/// What is written at once: each key with its last value.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Entries,
    /// VMs that are to be removed from now on.
    pub(super) condemned: Vec<Uid>,
    /// VMs whose removal is complete.
    pub(super) buried: Vec<Uid>,
}

/// The files behind a store.
pub(super) struct Backing {
    /// The state directory.
    dir: PathBuf,
    run_dir: Option<PathBuf>,
    /// None: it could not be written, and is opened again before the next write.
    db: Option<Db>,
    journal: Option<Journal>,
    tombstones: Tombstones,
}

impl Backing {
    pub(super) fn new(
        dir: PathBuf,
        run_dir: Option<PathBuf>,
        db: Option<Db>,
        journal: Option<Journal>,
        tombstones: Tombstones,
    ) -> Self {
        Self {
            dir,
            run_dir,
            db,
            journal,
            tombstones,
        }
    }

    /// Makes a batch durable, all of it or none.
    ///
    /// # Errors
    /// In words that name the file.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), String> {
        let db = match &self.db {
            Some(db) => db.clone(),
            None => {
                let db = disk::reopen(&self.dir)?;
                self.db.insert(db).clone()
            }
        };
        self.tombstones.put(&batch.condemned)?;
        let written = self.write_both(&db, &batch.entries);
        drop(db);
        match written {
            Ok(()) => {
                let buried: Vec<Uid> = batch
                    .buried
                    .iter()
                    .copied()
                    .filter(|uid| !self.has_record(*uid))
                    .collect();
                // What is left in the files is of uids that are never used again.
                if let Err(why) = self.tombstones.withdraw(&buried) {
                    tracing::warn!(%why, "cannot shorten the list of tombstones");
                }
                Ok(())
            }
            Err(why) => {
                if let Err(why) = self.tombstones.withdraw(&batch.condemned) {
                    tracing::warn!(%why, "cannot take tombstones back");
                }
                Err(why)
            }
        }
    }

    fn write_both(&mut self, db: &Db, entries: &Entries) -> Result<(), String> {
        let pending = match &mut self.journal {
            Some(journal) => Some(journal.append(entries, || disk::entries(db))?),
            None => None,
        };
        let written = disk::write(db, entries);
        match (written, &mut self.journal, pending) {
            (Ok(()), Some(journal), Some(pending)) => journal.confirm(pending),
            (Ok(()), _, _) => Ok(()),
            (Err(why), journal, pending) => {
                if let Some((journal, pending)) = journal.as_mut().zip(pending) {
                    journal.roll_back(pending);
                }
                // sled 0.34 refuses everything after an error of its file; a new instance finds what became durable.
                self.db = None;
                Err(format!("{}: {why}", disk::path(&self.dir).display()))
            }
        }
    }

    /// Its removal left something, or it was never looked at: the tombstone is what lets that be removed.
    fn has_record(&self, uid: Uid) -> bool {
        let run_dir = self.run_dir.as_ref();
        run_dir.is_some_and(|dir| dir.join("vm").join(uid.to_string()).exists())
    }

    /// Whether there is room for a change.
    ///
    /// # Errors
    /// In words that name the file.
    pub(super) fn probe(&self) -> Result<(), String> {
        self.journal.as_ref().map_or(Ok(()), Journal::probe)
    }
}

/// What these batches come to.
pub(super) fn joined<'b>(batches: impl IntoIterator<Item = &'b Batch>) -> Batch {
    let mut all = Batch::default();
    let mut entries = BTreeMap::new();
    for batch in batches {
        entries.extend(batch.entries.clone());
        all.condemned.extend(&batch.condemned);
        all.buried.extend(&batch.buried);
    }
    all.entries = entries;
    all
}
