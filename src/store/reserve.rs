//! The reserve: space for restrictions, so that a change that only restricts is accepted on a full disk, too.
//! Out of scope: which changes only restrict ([`only_restricts`](super::closing::only_restricts)).
//!
//! # Why
//! A tightened policy must not wait until disk space is freed, and the host is changed only after the intent is on stable storage. So a
//! file of zeros is written in advance, and such a change overwrites a part of it, which needs no additional block.
//!
//! # Format
//! Two slots, used alternately, so that a torn write does not affect the previous one. Each contains a number, the length of the JSON,
//! the BLAKE3 hash of all three, and JSON: every key with its value that the database does not have yet. The database records the
//! number up to which it has the entries ([`RESERVE_KEY`]) in the batch that adds them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::journal::Entries;
use super::load::RESERVE_KEY;
use super::sync;

/// The file's name, in the state directory.
pub const RESERVE: &str = "reserve";

/// Bytes of a slot: enough for several groups with the longest lists.
const SLOT: u64 = 512 << 10;
const HEADER: usize = 8 + 8 + 32;
/// Bytes: it is created only if this much space remains free.
const MIN_REMAINING: u64 = 4 << 20;

/// The reserve: entries that are not in the database.
pub(super) struct Reserve {
    /// `None`: no space is reserved, or it cannot be written.
    file: Option<File>,
    path: PathBuf,
    /// The number of the newest slot.
    number: u64,
    /// The number up to which the database has the entries.
    database_number: u64,
    /// All entries after `database_number`.
    entries: Entries,
    /// The entries that must still be written to the database; the others are written when lost state is restored.
    due: Entries,
}

impl Reserve {
    /// Reads the file in `dir`, and creates it if `create_missing` is true. `database_number`: the number up to which the database has the entries.
    pub(super) fn open(dir: &Path, database_number: u64, create_missing: bool) -> Self {
        let path = dir.join(RESERVE);
        let (number, entries) = match read(&path) {
            Ok(Some((number, entries))) if number > database_number => (number, entries),
            Ok(Some((number, _))) => (number, Entries::new()),
            Ok(None) => (0, Entries::new()),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the reserve");
                (0, Entries::new())
            }
        };
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let file = match file {
            Err(error) if error.kind() == ErrorKind::NotFound && create_missing => {
                create(dir, &path)
            }
            other => other,
        };
        let file = file.and_then(|file| check_length(file, &path)).inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "no space is reserved: on a full disk, tightened policies are refused, too");
        });
        Self {
            file: file.ok(),
            path,
            number: number.max(database_number),
            database_number,
            entries,
            due: Entries::new(),
        }
    }

    /// The entries that are not in the database.
    pub(super) fn entries(&self) -> &Entries {
        &self.entries
    }

    /// Selects all entries to be written to the database with the next batch.
    pub(super) fn mark_all_due(&mut self) {
        self.due.clone_from(&self.entries);
    }

    /// Adds the due entries to a batch for the database; the batch's own entries are newer.
    pub(super) fn join(&self, entries: &mut Entries) {
        if self.number == self.database_number {
            return;
        }
        for (key, value) in &self.due {
            entries.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let number = self.number.to_string().into_bytes();
        entries.insert(RESERVE_KEY.to_owned(), Some(number));
    }

    /// Records that the database has a batch that was [joined](Self::join).
    pub(super) fn confirm_joined(&mut self) {
        if self.number == self.database_number {
            return;
        }
        self.database_number = self.number;
        self.entries.clear();
        self.due.clear();
        // If another database is put in place, the file must not be treated as newer than it.
        for number in [self.number.saturating_sub(1), self.number] {
            if let Err(error) = self.put(number, &Entries::new()) {
                tracing::warn!(path = %self.path.display(), %error, "cannot empty the reserve");
            }
        }
    }

    /// Makes a batch durable in the reserve.
    ///
    /// # Errors
    /// A message that names the file.
    pub(super) fn write(&mut self, batch: &Entries) -> Result<(), String> {
        let mut all = self.entries.clone();
        all.extend(batch.clone());
        let number = self.number + 1;
        self.put(number, &all)
            .map_err(|error| format!("{}: {error}", self.path.display()))?;
        self.number = number;
        self.entries = all;
        self.due.extend(batch.clone());
        Ok(())
    }

    fn put(&self, number: u64, entries: &Entries) -> io::Result<()> {
        let file = self
            .file
            .as_ref()
            .ok_or_else(|| io::Error::other("no space is reserved"))?;
        let text: BTreeMap<&String, Option<std::borrow::Cow<'_, str>>> = entries
            .iter()
            .map(|(key, value)| (key, value.as_deref().map(String::from_utf8_lossy)))
            .collect();
        let json = serde_json::to_vec(&text)?;
        let mut slot = Vec::with_capacity(HEADER + json.len());
        slot.extend_from_slice(&number.to_le_bytes());
        slot.extend_from_slice(&(json.len() as u64).to_le_bytes());
        slot.extend_from_slice(digest(&slot, &json).as_bytes());
        slot.extend_from_slice(&json);
        if slot.len() as u64 > SLOT {
            return Err(io::Error::other(
                "the change is larger than the reserved space",
            ));
        }
        file.write_all_at(&slot, (number % 2) * SLOT)?;
        file.sync_data()
    }
}

/// The newest intact slot. A file without one has no entries: none were written, or none were acknowledged.
fn read(path: &Path) -> io::Result<Option<(u64, Entries)>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let slots = bytes.chunks(usize::try_from(SLOT).unwrap_or(usize::MAX));
    Ok(slots.filter_map(parse).max_by_key(|(number, _)| *number))
}

fn parse(slot: &[u8]) -> Option<(u64, Entries)> {
    let (head, rest) = slot.split_at_checked(16)?;
    let (hash, rest) = rest.split_at_checked(32)?;
    let number = u64::from_le_bytes(head.get(..8)?.try_into().ok()?);
    let length = u64::from_le_bytes(head.get(8..)?.try_into().ok()?);
    let json = rest.get(..usize::try_from(length).ok()?)?;
    if number == 0 || digest(head, json).as_bytes() != hash {
        return None;
    }
    let text: BTreeMap<String, Option<String>> = serde_json::from_slice(json).ok()?;
    let entries = text
        .into_iter()
        .map(|(key, value)| (key, value.map(String::into_bytes)));
    Some((number, entries.collect()))
}

fn digest(head: &[u8], json: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_derive_key("slicectl reserve");
    hasher.update(head);
    hasher.update(json);
    hasher.finalize()
}

/// Creates the file and writes zeros: if space were only allocated, a later write could still need a block for the extent tree.
fn create(dir: &Path, path: &Path) -> io::Result<File> {
    let found = rustix::fs::statvfs(dir)?;
    if found.f_bavail.saturating_mul(found.f_frsize) < 2 * SLOT + MIN_REMAINING {
        return Err(ErrorKind::StorageFull.into());
    }
    let zeros = vec![0; usize::try_from(2 * SLOT).unwrap_or_default()];
    sync::replace(path, &zeros)
}

/// Checks the length: a file of another length does not have the reserved space, or not all of it.
fn check_length(file: File, path: &Path) -> io::Result<File> {
    match file.metadata()?.len() == 2 * SLOT {
        true => Ok(file),
        false => Err(io::Error::other(format!(
            "{} has an unexpected length; remove it",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(of: &[(&str, &str)]) -> Entries {
        let pair =
            |(key, value): &(&str, &str)| ((*key).to_owned(), Some(value.as_bytes().to_vec()));
        of.iter().map(pair).collect()
    }

    #[test]
    fn entries_are_read_back_until_the_database_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::open(dir.path(), 0, true);
        reserve.write(&entries(&[("group/a", "1")])).unwrap();
        reserve.write(&entries(&[("group/b", "2")])).unwrap();
        reserve.write(&entries(&[("group/a", "3")])).unwrap();
        let again = Reserve::open(dir.path(), 0, true);
        assert_eq!(
            again.entries(),
            &entries(&[("group/a", "3"), ("group/b", "2")])
        );
        let mut batch = entries(&[("group/b", "9")]);
        reserve.join(&mut batch);
        assert_eq!(
            batch,
            entries(&[("group/a", "3"), ("group/b", "9"), (RESERVE_KEY, "3")])
        );
        reserve.confirm_joined();
        let mut batch = Entries::new();
        reserve.join(&mut batch);
        assert!(batch.is_empty());
        assert!(Reserve::open(dir.path(), 3, true).entries().is_empty());
        // Numbers continue.
        let mut again = Reserve::open(dir.path(), 3, true);
        again.write(&entries(&[("group/c", "1")])).unwrap();
        assert_eq!(
            Reserve::open(dir.path(), 3, false).entries(),
            &entries(&[("group/c", "1")])
        );
    }

    #[test]
    fn a_damaged_slot_does_not_affect_the_previous_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::open(dir.path(), 0, true);
        reserve.write(&entries(&[("group/a", "1")])).unwrap();
        reserve.write(&entries(&[("group/a", "2")])).unwrap();
        let path = dir.path().join(RESERVE);
        let sound = fs::read(&path).unwrap();
        // The second write is in the first slot.
        for at in 0..HEADER + 10 {
            let mut damaged = sound.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(
                Reserve::open(dir.path(), 0, false).entries(),
                &entries(&[("group/a", "1")]),
                "byte {at}"
            );
        }
        let too_much = "x".repeat(600 << 10);
        assert!(reserve.write(&entries(&[("group/a", &too_much)])).is_err());
    }
}
