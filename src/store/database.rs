//! The open database: a batch is on the disk, and sealed, before anybody is told of it.
//! Out of scope: opening, and what is concluded from what was found.
//!
//! # Why
//! A batch is written in three steps, each on the disk before the next: the log, the seal, then the answers. A power failure
//! between the first two leaves a database that is one batch ahead of its seal, and nobody was told of that batch.

use std::collections::BTreeMap;

use super::disk::{self, Pair, Raw};
use super::format::FORMAT;
use super::load::{FORMAT_KEY, MARK_KEY};
use super::mark::{Mark, Position};
use super::seal::Seal;
use super::sync::Written;
use super::writer::Failure;

/// What is written at once: each key with its last value; none removes it.
pub(super) type Batch = BTreeMap<String, Option<Vec<u8>>>;

/// The database with all that belongs to it.
pub(super) struct Database {
    raw: Raw,
    written: Written,
    seals: Seals,
    /// The position that was acknowledged last.
    mark: Mark,
    /// The highest number that was given to a batch.
    tried: u64,
    /// Since a batch failed: what was acknowledged of the keys that it may have changed. The next batch writes them again.
    unsure: Batch,
}

/// The two copies of the seal.
pub(super) struct Seals {
    /// On the state disk.
    pub disk: Seal,
    /// In the run directory; none where that has no room for it.
    pub run: Option<Seal>,
}

impl Database {
    /// One whose position is `mark`, and sealed.
    pub fn new(raw: Raw, written: Written, seals: Seals, mark: Mark) -> Self {
        Self {
            raw,
            written,
            seals,
            mark,
            tried: mark.seq,
            unsure: Batch::new(),
        }
    }

    /// Which position the next batch gets.
    pub fn next(&self) -> Position {
        Position {
            id: self.mark.id,
            seq: self.tried + 1,
        }
    }

    /// Writes a batch and seals it. On a full disk sled 0.34 may lose a wake-up, and then this never returns.
    ///
    /// # Errors
    /// [`Failure::Refused`]: nothing of it counts. [`Failure::Unknown`]: what is on the disk is not known.
    pub fn write(&mut self, batch: Batch) -> Result<(), Failure> {
        let mut batch = batch;
        let acknowledged = self.acknowledged(&batch)?;
        for (key, value) in &acknowledged {
            if self.unsure.contains_key(key) {
                batch.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        let mut content = self.mark.content;
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
        // A number that a failed batch had may be in the log.
        self.tried += 1;
        let mark = self.mark.next(self.tried, content);
        log.insert(MARK_KEY, &mark.encode()[..]);
        self.unsure = acknowledged;
        self.raw
            .apply_batch(log)
            .and_then(|()| self.raw.flush())
            .map_err(|error| Failure::Refused(error.to_string()))?;
        // After a failed fsync the kernel takes the pages for clean: asked again it would say yes to what is on no disk.
        self.written
            .sync()
            .map_err(|error| Failure::Unknown(format!("fdatasync of the log: {error}")))?;
        self.seals.write(&mark)?;
        self.mark = mark;
        self.unsure.clear();
        Ok(())
    }

    /// Writes a batch that changes nothing: whether that can be done.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub fn touch(&mut self) -> Result<(), Failure> {
        let format = FORMAT.to_string().into_bytes();
        self.write(Batch::from([(FORMAT_KEY.to_owned(), Some(format))]))
    }

    /// Everything in it.
    ///
    /// # Errors
    /// In words.
    pub fn content(&self) -> Result<Vec<Pair>, String> {
        disk::content(&self.raw).map_err(|error| error.to_string())
    }

    /// What is acknowledged of the keys of a batch, and of those that are unsure.
    fn acknowledged(&self, batch: &Batch) -> Result<Batch, Failure> {
        let mut found = self.unsure.clone();
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

impl Seals {
    fn write(&mut self, mark: &Mark) -> Result<(), Failure> {
        self.disk
            .write(mark)
            .map_err(|error| Failure::Refused(format!("the seal: {error}")))?;
        self.disk
            .sync()
            .map_err(|error| Failure::Unknown(format!("fdatasync of the seal: {error}")))?;
        // It is one batch behind at worst, or useless: the one on the disk is what counts.
        if let Some(run) = &mut self.run
            && let Err(error) = run.write(mark)
        {
            tracing::warn!(%error, "the run directory's copy of the state's seal is not kept any more");
            self.run = None;
        }
        Ok(())
    }
}
