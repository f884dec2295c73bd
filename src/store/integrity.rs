//! The integrity record: the last acknowledged position of the database, stored outside it in a small file of two slots (`record`).
//! Out of scope: the comparison with the database ([`super::verify`]).
//!
//! # Why
//! The two slots are written alternately and in place: a write that is torn by a power failure does not affect the other slot,
//! and on a full disk no new block is needed.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::position::{LENGTH, LogPosition, short_hash};
use super::sync;

const MAGIC: &[u8; 8] = b"SLSEAL02";
/// The offset of the second slot. Each slot is in a separate block, so that a torn write of one cannot damage the other.
const SLOT_OFFSET: u64 = 4096;
/// Bytes of a slot: magic, scope, position, checksum.
const SLOT: usize = 8 + 16 + LENGTH + 16;

/// The scope in which a record is valid: always, or only in this boot of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope(u128);

impl Scope {
    /// The scope of the record on the state disk.
    pub const ALWAYS: Self = Self(0);

    /// The scope of the record in the run directory.
    pub fn boot(boot_id: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("slicectl store: boot id");
        hasher.update(boot_id.as_bytes());
        Self(short_hash(&hasher))
    }
}

/// The content of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Valid(LogPosition),
    /// Intact, but of another boot.
    OtherScope,
    Damaged,
}

/// The content of an integrity record.
#[derive(Debug)]
pub(super) struct RecordSlots {
    slots: [Slot; 2],
}

impl RecordSlots {
    /// The newest position.
    pub fn newest(&self) -> Option<LogPosition> {
        let marks = self.slots.iter().filter_map(|slot| match slot {
            Slot::Valid(log_position) => Some(*log_position),
            Slot::OtherScope | Slot::Damaged => None,
        });
        marks.max_by_key(|position| position.seq)
    }

    /// At least one slot is not what was written.
    pub fn is_damaged(&self) -> bool {
        self.slots.contains(&Slot::Damaged)
    }

    /// Intact and of another boot: it contains no information about this one.
    pub fn is_of_another_boot(&self) -> bool {
        self.slots == [Slot::OtherScope; 2]
    }
}

/// An integrity record that can be written.
#[derive(Debug)]
pub(super) struct IntegrityRecord {
    file: File,
    scope: Scope,
    /// The slot with the newest position.
    last: u64,
}

impl IntegrityRecord {
    /// Opens and reads a record. `None`: the file does not exist.
    ///
    /// # Errors
    /// The file cannot be read. This is not damage.
    pub fn open(path: &Path, scope: Scope) -> io::Result<Option<(Self, RecordSlots)>> {
        let mut options = File::options();
        options.read(true).write(true);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let slots = [read(&file, scope, 0)?, read(&file, scope, 1)?];
        let found = RecordSlots { slots };
        let last = match (found.newest(), slots[1]) {
            (Some(best), Slot::Valid(log_position)) if log_position == best => 1,
            _ => 0,
        };
        let record = Self { file, scope, last };
        Ok(Some((record, found)))
    }

    /// Creates a record or atomically replaces the existing file; both slots have the same content.
    ///
    /// # Errors
    /// The file cannot be written; an existing file is unchanged.
    pub fn create(path: &Path, scope: Scope, position: &LogPosition) -> io::Result<Self> {
        let mut bytes = vec![0; SLOT_OFFSET as usize * 2];
        let slot = encode(scope, position);
        for start in [0, SLOT_OFFSET as usize] {
            bytes[start..start + SLOT].copy_from_slice(&slot);
        }
        let file = sync::replace(path, &bytes)?;
        Ok(Self {
            file,
            scope,
            last: 0,
        })
    }

    /// Writes a position into the slot that does not have the newest one. It is durable only after [`Self::sync`].
    ///
    /// # Errors
    /// The file cannot be written. The newest position is unchanged.
    pub fn write(&mut self, position: &LogPosition) -> io::Result<()> {
        let slot = 1 - self.last;
        let bytes = encode(self.scope, position);
        self.file.write_all_at(&bytes, slot * SLOT_OFFSET)?;
        self.last = slot;
        Ok(())
    }

    /// Flushes the file to the disk.
    ///
    /// # Errors
    /// What is on the disk is not known.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

fn encode(scope: Scope, position: &LogPosition) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..24].copy_from_slice(&scope.0.to_le_bytes());
    bytes[24..24 + LENGTH].copy_from_slice(&position.encode());
    let sum = checksum(&bytes[..24 + LENGTH]);
    bytes[24 + LENGTH..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new_derive_key("slicectl store: seal");
    hasher.update(bytes);
    short_hash(&hasher)
}

fn read(file: &File, scope: Scope, slot: u64) -> io::Result<Slot> {
    let mut bytes = [0; SLOT];
    match file.read_exact_at(&mut bytes, slot * SLOT_OFFSET) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Slot::Damaged),
        Err(error) => return Err(error),
    }
    let (content, sum) = bytes.split_at(24 + LENGTH);
    let Some(position) = LogPosition::decode(&content[24..]) else {
        return Ok(Slot::Damaged);
    };
    if sum != checksum(content).to_le_bytes() || !content.starts_with(MAGIC) {
        return Ok(Slot::Damaged);
    }
    Ok(match content[8..24] == scope.0.to_le_bytes() {
        true => Slot::Valid(position),
        false => Slot::OtherScope,
    })
}

/// The copy of the integrity record in the run directory.
#[derive(Clone, Debug)]
pub struct RunCopy {
    /// The file.
    pub path: PathBuf,
    /// The boot id of the running kernel.
    pub boot_id: String,
}

#[cfg(test)]
mod tests {
    use super::{IntegrityRecord, SLOT, SLOT_OFFSET, Scope};
    use crate::store::position::{ContentDigest, LogPosition};

    #[test]
    fn a_record_keeps_its_newest_position_whichever_slot_is_damaged_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seal");
        let mut position = LogPosition::first([1; 16], ContentDigest::default());
        let mut record = IntegrityRecord::create(&path, Scope::ALWAYS, &position).expect("created");
        for seq in 1..6 {
            let before = position;
            position = position.next(seq, ContentDigest::default());
            record.write(&position).expect("written");
            let bytes = std::fs::read(&path).expect("read");
            for start in [0, SLOT_OFFSET as usize] {
                // A different eighth of the bits in each iteration.
                for bit in (seq as usize..SLOT * 8).step_by(8) {
                    let mut damaged = bytes.clone();
                    damaged[start + bit / 8] ^= 1 << (bit % 8);
                    std::fs::write(&path, damaged).expect("damaged");
                    let (_, found) = IntegrityRecord::open(&path, Scope::ALWAYS)
                        .expect("readable")
                        .expect("it exists");
                    assert!(
                        found.newest() == Some(position) || found.newest() == Some(before),
                        "{found:?}"
                    );
                    assert!(
                        found.is_damaged() || found.slots.contains(&super::Slot::OtherScope),
                        "slot at {start}, bit {bit}: {found:?}"
                    );
                }
            }
            std::fs::write(&path, bytes).expect("restored");
            let again = IntegrityRecord::open(&path, Scope::ALWAYS).expect("readable");
            let (again, found) = again.expect("it exists");
            assert_eq!(found.newest(), Some(position));
            record = again;
        }
    }

    #[test]
    fn a_record_of_another_boot_is_ignored() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seal");
        let position = LogPosition::first([1; 16], ContentDigest::default());
        IntegrityRecord::create(&path, Scope::boot("yesterday"), &position).expect("created");
        let (_, found) = IntegrityRecord::open(&path, Scope::boot("today"))
            .expect("readable")
            .expect("it exists");
        assert!(found.is_of_another_boot() && found.newest().is_none());
        let none = IntegrityRecord::open(&dir.path().join("none"), Scope::ALWAYS);
        assert!(none.expect("no error").is_none());
    }
}
