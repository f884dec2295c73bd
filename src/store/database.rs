//! The open database: a batch and its position in the integrity record are on the disk before the batch is acknowledged.
//! Out of scope: opening, and comparing it with what was acknowledged.
//!
//! # Why
//! A batch is completed in three steps, each durable before the next: the log, the integrity record, the acknowledgement. A power
//! failure between the first two leaves a database that is one batch ahead of its record, and that batch was not acknowledged.

use std::collections::BTreeMap;

use super::disk::{self, Pair, Raw};
use super::failure::Failure;
use super::format::FORMAT;
use super::integrity::IntegrityRecord;
use super::load::{FORMAT_KEY, POSITION_KEY};
use super::position::{BatchId, LogPosition};
use super::sync::SledFiles;

/// The content of one write: each key with its last value; `None` removes the key.
pub(super) type Batch = BTreeMap<String, Option<Vec<u8>>>;

/// The database with its files and integrity records.
pub(super) struct Database {
    raw: Raw,
    written: SledFiles,
    seals: IntegrityRecords,
    /// The last acknowledged position.
    log_position: LogPosition,
    /// The highest number that was assigned to a batch.
    last_attempted: u64,
    /// After a failed batch: the acknowledged values of the keys that it may have changed. The next batch writes them again.
    unconfirmed: Batch,
}

/// The two copies of the integrity record.
pub(super) struct IntegrityRecords {
    /// On the state disk.
    pub disk: IntegrityRecord,
    /// In the run directory. `None`: it cannot be written there.
    pub run: Option<IntegrityRecord>,
}

impl Database {
    /// A database at position `position`, which is in its integrity records.
    pub fn new(
        raw: Raw,
        written: SledFiles,
        records: IntegrityRecords,
        position: LogPosition,
    ) -> Self {
        Self {
            raw,
            written,
            seals: records,
            log_position: position,
            last_attempted: position.seq,
            unconfirmed: Batch::new(),
        }
    }

    /// The position that the next batch gets.
    pub fn next_batch_id(&self) -> BatchId {
        BatchId {
            id: self.log_position.id,
            seq: self.last_attempted + 1,
        }
    }

    /// Writes a batch and its integrity record. On a full disk sled 0.34 may lose a wake-up, and then this never returns.
    ///
    /// # Errors
    /// [`Failure::Refused`]: the batch has no effect. [`Failure::Unknown`]: what is on the disk is not known.
    pub fn write(&mut self, batch: Batch) -> Result<(), Failure> {
        let mut batch = batch;
        let acknowledged = self.acknowledged(&batch)?;
        for (key, value) in &acknowledged {
            if self.unconfirmed.contains_key(key) {
                batch.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let mut content = self.log_position.content;
        let mut log = sled::Batch::default();
        for (key, value) in &batch {
            if let Some(before) = &acknowledged[key] {
                content.remove(key.as_bytes(), before);
            }
            match value {
                Some(value) => {
                    content.add(key.as_bytes(), value);
                    log.insert(key.as_bytes(), value.as_slice());
                }
                None => log.remove(key.as_bytes()),
            }
        }
        // The number of a failed batch may be in the log, so it is not used again.
        self.last_attempted += 1;
        let position = self.log_position.next(self.last_attempted, content);
        log.insert(POSITION_KEY, &position.encode()[..]);
        self.unconfirmed = acknowledged;
        self.raw
            .apply_batch(log)
            .and_then(|()| self.raw.flush())
            .map_err(|error| Failure::Refused(error.to_string()))?;
        // After a failed fsync the kernel marks the pages clean: a second fsync would succeed although the data is not on the disk.
        self.written
            .sync()
            .map_err(|error| Failure::Unknown(format!("fdatasync of the log: {error}")))?;
        self.seals.write(&position)?;
        self.log_position = position;
        self.unconfirmed.clear();
        Ok(())
    }

    /// Writes a batch that changes nothing, to check whether the database can be written.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub fn touch(&mut self) -> Result<(), Failure> {
        let format = FORMAT.to_string().into_bytes();
        self.write(Batch::from([(FORMAT_KEY.to_owned(), Some(format))]))
    }

    /// All keys and values.
    ///
    /// # Errors
    /// The message of sled.
    pub fn content(&self) -> Result<Vec<Pair>, String> {
        disk::content(&self.raw).map_err(|error| error.to_string())
    }

    /// The acknowledged values of the keys of a batch and of the keys in `unconfirmed`.
    fn acknowledged(&self, batch: &Batch) -> Result<Batch, Failure> {
        let mut found = self.unconfirmed.clone();
        for key in batch.keys() {
            if !found.contains_key(key) {
                let value = self.raw.get(key.as_bytes());
                let value = value.map_err(|error| Failure::Refused(error.to_string()))?;
                found.insert(key.clone(), value.map(|value| value.to_vec()));
            }
        }
        Ok(found)
    }
}

impl IntegrityRecords {
    fn write(&mut self, position: &LogPosition) -> Result<(), Failure> {
        self.disk
            .write(position)
            .map_err(|error| Failure::Refused(format!("integrity record: {error}")))?;
        self.disk.sync().map_err(|error| {
            Failure::Unknown(format!("fdatasync of the integrity record: {error}"))
        })?;
        // The copy may be one batch behind, or unusable: only the record on the disk is required.
        if let Some(run) = &mut self.run
            && let Err(error) = run.write(position)
        {
            tracing::warn!(%error, "cannot write the copy of the integrity record in the run directory; it is no longer updated");
            self.run = None;
        }
        Ok(())
    }
}
