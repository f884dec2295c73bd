//! Writes a batch to the files of the store, in this order: tombstones, the journal in the run directory, the database.
//! Out of scope: the handling of a batch that was refused.
//!
//! # Why
//! The tombstone must exist when the database records the deletion of a VM (see [`super::tombstones`]). The journal is written before
//! the database because an acknowledged change must be in both, and an append to a tmpfs can be truncated again, but a batch in a
//! synced database cannot be removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::database::Database;
use super::failure::Failure;
use super::integrity::RunCopy;
use super::journal::{Entries, Journal};
use super::load::{POSITION_KEY, RECOVERY_KEY};
use super::open::{self, Opened};
use super::readonly;
use super::reserve::Reserve;
use super::tombstones::Tombstones;
use super::witness::BootEvidence;
use crate::api::meta::Uid;

/// The content of one write: each key with its last value.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    pub(super) entries: Entries,
    /// VMs that this batch requests to remove.
    pub(super) deleting: Vec<Uid>,
    /// VMs whose removal is complete.
    pub(super) removed: Vec<Uid>,
    /// Lost state has been restored: the journal is written from now on.
    pub(super) ends_recovery: bool,
    /// The batch contains a restriction: free space is checked first, because on a full disk sled may never return.
    pub(super) restricts: bool,
    /// The batch is for the reserve, not for the database.
    pub(super) to_reserve: bool,
}

/// The files of a store.
pub(super) struct StoreFiles {
    /// The state directory.
    dir: PathBuf,
    run_copy: Option<RunCopy>,
    /// `None`: it could not be written, and is opened again before the next write.
    database: Option<Database>,
    journal: Option<Journal>,
    /// Whether the journal is written. While lost state is restored, it is restored from the journal.
    writes_journal: bool,
    tombstones: Tombstones,
    /// `None`: the store is not opened by a daemon.
    reserve: Option<Reserve>,
    /// The last batch was refused: the next one is attempted only if there is enough free space.
    was_refused: bool,
}

impl StoreFiles {
    pub(super) fn new(
        dir: &Path,
        record_copy: Option<&RunCopy>,
        database: Option<Database>,
        journal: Option<Journal>,
        tombstones: Tombstones,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            run_copy: record_copy.cloned(),
            database,
            journal,
            writes_journal: false,
            tombstones,
            reserve: None,
            was_refused: false,
        }
    }

    /// Sets the reserve, the space for changes that only restrict.
    pub(super) fn with_reserve(self, reserve: Option<Reserve>) -> Self {
        Self { reserve, ..self }
    }

    /// Enables the journal from now on, if `keeps` is true.
    pub(super) fn enable_journal(&mut self, keeps: bool) {
        self.writes_journal |= keeps;
    }

    /// Makes a batch durable, all of it or none.
    ///
    /// # Errors
    /// [`Failure`], with a message that names the file.
    pub(super) fn write(&mut self, batch: &Batch) -> Result<(), Failure> {
        if batch.to_reserve {
            let reserve = self.reserve.as_mut();
            let reserve = reserve.ok_or_else(|| Failure::Refused("no space is reserved".into()))?;
            return reserve.write(&batch.entries).map_err(Failure::Refused);
        }
        if self.was_refused || batch.restricts {
            self.was_refused = true;
            self.probe().map_err(Failure::Refused)?;
        }
        let mut batch = batch.clone();
        // While lost state is being restored, that state already contains the entries of the reserve.
        let reserve = self
            .reserve
            .as_ref()
            .filter(|_| self.writes_journal || batch.ends_recovery);
        let joins = reserve.is_some();
        if let Some(reserve) = reserve {
            reserve.join(&mut batch.entries);
        }
        self.write_to_database(&batch)?;
        if let Some(reserve) = self.reserve.as_mut().filter(|_| joins) {
            reserve.confirm_joined();
        }
        Ok(())
    }

    fn write_to_database(&mut self, batch: &Batch) -> Result<(), Failure> {
        let mut database = match self.database.take() {
            Some(database) => database,
            None => self.reopen()?,
        };
        let written = self.write_all(&mut database, batch);
        // sled 0.34 refuses all operations after an I/O error; a new instance reads what became durable.
        if !matches!(written, Err(Refused::ByDatabase(_))) {
            self.database = Some(database);
        }
        self.was_refused = written.is_err();
        written.map_err(|refused| match refused {
            Refused::BeforeDatabase(why) => Failure::Refused(why),
            Refused::ByDatabase(Failure::Refused(why)) => {
                Failure::Refused(format!("{}: {why}", self.path().display()))
            }
            Refused::ByDatabase(failure) => failure,
        })
    }

    fn write_all(&mut self, database: &mut Database, batch: &Batch) -> Result<(), Refused> {
        self.enable_journal(batch.ends_recovery);
        self.tombstones
            .put(&batch.deleting)
            .map_err(Refused::BeforeDatabase)?;
        let written = self.write_both(database, batch);
        let to_withdraw: Vec<Uid> = match &written {
            Ok(()) => {
                let buried = batch.removed.iter().copied();
                buried.filter(|uid| !self.has_run_dir(*uid)).collect()
            }
            Err(_) => batch.deleting.clone(),
        };
        // Lines that remain in the files belong to uids that are never used again.
        if let Err(reason) = self.tombstones.withdraw(&to_withdraw) {
            tracing::warn!(%reason, "cannot withdraw tombstones");
        }
        written
    }

    fn write_both(&mut self, database: &mut Database, batch: &Batch) -> Result<(), Refused> {
        let mut journal = self.journal.as_mut().filter(|_| self.writes_journal);
        let pending = match &mut journal {
            Some(journal) => {
                let content = || content(database);
                let appended = journal.append(&batch.entries, database.next_batch_id(), content);
                Some(appended.map_err(Refused::BeforeDatabase)?)
            }
            None => None,
        };
        let written = match batch.entries.is_empty() {
            true => database.touch(),
            false => database.write(batch.entries.clone()),
        };
        match (written, journal.zip(pending)) {
            (Ok(()), Some((journal, pending))) => {
                journal.confirm(pending).map_err(Refused::BeforeDatabase)
            }
            (Ok(()), None) => Ok(()),
            (Err(failure), pending) => {
                if let Some((journal, pending)) = pending {
                    journal.roll_back(pending);
                }
                Err(Refused::ByDatabase(failure))
            }
        }
    }

    /// Opens a database again that could not be written, once there is free space. A damaged one is replaced and restored from the journal.
    fn reopen(&mut self) -> Result<Database, Failure> {
        self.probe().map_err(Failure::Refused)?;
        let witnesses = BootEvidence {
            journal: self.journal.as_ref(),
            deleted: self.tombstones.known(),
        };
        let opened = open::open(&self.dir, self.run_copy.as_ref(), &witnesses)
            .map_err(|error| Failure::Refused(error.to_string()))?;
        let mut database = opened.database;
        if opened.opened == Opened::Existing {
            return Ok(database);
        }
        let known = match self.journal.as_ref().map(Journal::read) {
            Some(Ok(Some(known))) => known,
            Some(Err(reason)) => {
                tracing::error!(%reason, "cannot restore a damaged database from the journal");
                BTreeMap::new()
            }
            Some(Ok(None)) | None => BTreeMap::new(),
        };
        let mut entries: Entries = known
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
        entries.insert(RECOVERY_KEY.to_owned(), None);
        database.write(entries)?;
        Ok(database)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// Whether a VM has a run directory: its removal is incomplete, and needs the tombstone.
    fn has_run_dir(&self, uid: Uid) -> bool {
        self.tombstones.has_run_dir(uid)
    }

    /// Checks whether there is free space for a change.
    ///
    /// # Errors
    /// A message that names the file.
    pub(super) fn probe(&self) -> Result<(), String> {
        readonly::probe(&self.dir)
            .map_err(|error| format!("{}: {error}", self.path().display()))?;
        self.journal.as_ref().map_or(Ok(()), Journal::probe)
    }
}

/// What refused a batch.
enum Refused {
    /// The tombstones or the journal, before the database was written.
    BeforeDatabase(String),
    /// The database.
    ByDatabase(Failure),
}

/// The content of the database, for the journal.
fn content(database: &Database) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut all = BTreeMap::new();
    for (key, value) in database.content()? {
        let key = String::from_utf8(key).map_err(|error| error.to_string())?;
        all.insert(key, value);
    }
    all.remove(POSITION_KEY);
    Ok(all)
}

impl Batch {
    /// Whether the batch contains nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.deleting.is_empty()
            && self.removed.is_empty()
            && !self.ends_recovery
    }
}

/// Merges batches, in order.
pub(super) fn merge<'b>(batches: impl IntoIterator<Item = &'b Batch>) -> Batch {
    let mut all = Batch::default();
    for batch in batches {
        all.entries.extend(batch.entries.clone());
        all.deleting.extend(&batch.deleting);
        all.removed.extend(&batch.removed);
        all.ends_recovery |= batch.ends_recovery;
        all.restricts |= batch.restricts;
    }
    all
}
