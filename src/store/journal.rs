//! The journal: a copy of every batch of this boot, in the run directory, written before the batch is written to the state disk.
//! Out of scope: the database; records of single VMs, which are used if this file is damaged, too.
//!
//! # Format
//! One line per batch: 64 hexadecimal digits, a space, JSON. The digits are the BLAKE3 hash of the hash of the previous line and of the
//! JSON, so a line that is missing from the middle is detected. The first line contains the format and the boot id. An incomplete last
//! line is from a daemon that was killed during the write: that batch was not acknowledged.
//! Each batch contains its position (the database id and the batch number) under the key of the database's position record. So a
//! database that is older than the journal is detected even if the run directory has no copy of the integrity record.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::Pair;
use super::load::POSITION_KEY;
use super::position::BatchId;
use super::{RunDirState, load};

/// The file's name, in the run directory.
pub const JOURNAL: &str = "state.journal";

const FORMAT: u32 = 1;

/// Bytes: the file is rewritten when it is longer than this and [`REWRITE_FACTOR`] times as long as after the last rewrite.
const MIN_REWRITE_LENGTH: u64 = 4 << 20;
const REWRITE_FACTOR: u64 = 4;

/// Keys with their values; `None` removes the key.
pub(super) type Entries = BTreeMap<String, Option<Vec<u8>>>;

/// Bytes that must be free in the run directory.
const PROBE_SIZE: usize = 64 << 10;

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    boot: String,
}

/// The file, written by the one thread that writes the database.
pub(super) struct Journal {
    path: PathBuf,
    boot: String,
    /// `None`: the file may differ from the database, and is rewritten with the next batch.
    open: Option<OpenFile>,
}

pub(super) struct OpenFile {
    file: File,
    length: u64,
    /// The length after the last rewrite.
    rewritten_length: u64,
    last: blake3::Hash,
}

/// An append that the database has not confirmed.
pub(super) enum Pending {
    /// A line was appended. Contains the length and the hash of the previous line, for the rollback.
    Appended(u64, blake3::Hash),
    /// A new file was written next to the old one.
    Draft(OpenFile),
}

impl Journal {
    /// The journal of this boot in a directory.
    pub(super) fn new(run_dir: &Path, boot: &str) -> Self {
        Self {
            path: run_dir.join(JOURNAL),
            boot: boot.to_owned(),
            open: None,
        }
    }

    /// Reads every key with its last value, as written by an earlier daemon of this boot. `None`: there is no journal of this boot.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(super) fn read(&self) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
        Ok(self.replay()?.map(|(all, _)| all))
    }

    /// The position of the last batch. `None`: there is no journal of this boot, or an earlier version wrote it.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(super) fn position(&self) -> Result<Option<BatchId>, String> {
        Ok(self.replay()?.and_then(|(_, position)| position))
    }

    /// Reads every key with its last value, and the position of the last batch.
    #[allow(
        clippy::type_complexity,
        reason = "each of the two callers uses one half"
    )]
    fn replay(&self) -> Result<Option<(BTreeMap<String, Vec<u8>>, Option<BatchId>)>, String> {
        let fail = |message: &dyn std::fmt::Display| format!("{}: {message}", self.path.display());
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(&error)),
        };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let mut last = blake3::hash(b"");
        let header = lines.next().and_then(|line| unwrap(line, &mut last));
        let header = header.ok_or_else(|| fail(&"its first line is damaged"))?;
        let header: Header = serde_json::from_slice(header).map_err(|e| fail(&e))?;
        if header.format != FORMAT {
            return Err(fail(&format!(
                "its format is {}, which is not supported",
                header.format
            )));
        }
        if header.boot != self.boot {
            return Ok(None);
        }
        let (mut all, mut position) = (BTreeMap::new(), None);
        for line in lines {
            if !line.ends_with(b"\n") {
                break;
            }
            let batch = unwrap(line, &mut last).ok_or_else(|| fail(&"a line is damaged"))?;
            let batch: BTreeMap<String, Option<String>> =
                serde_json::from_slice(batch).map_err(|e| fail(&e))?;
            for (key, value) in batch {
                if key == POSITION_KEY {
                    position = value.as_deref().and_then(BatchId::parse);
                    continue;
                }
                match value {
                    Some(value) => all.insert(key, value.into_bytes()),
                    None => all.remove(&key),
                };
            }
        }
        Ok(Some((all, position)))
    }

    /// Reads the journal into a world.
    pub(super) fn recover(&self) -> RunDirState {
        let all = match self.read() {
            Ok(Some(all)) => all,
            Ok(None) => return RunDirState::Nothing,
            Err(message) => return RunDirState::Unreadable(message),
        };
        let pairs: Vec<Pair> = all
            .into_iter()
            .map(|(key, value)| (key.into_bytes(), value))
            .collect();
        match load::world(&pairs) {
            Ok(world) => RunDirState::World(Box::new(world)),
            Err(why) => RunDirState::Unreadable(format!("{}: {why}", self.path.display())),
        }
    }

    /// Checks whether a file can be written next to the journal.
    pub(super) fn probe(&self) -> Result<(), String> {
        let probe = self.path.with_extension("probe");
        let written = fs::write(&probe, [0; PROBE_SIZE]);
        let _ = fs::remove_file(&probe);
        written.map_err(|error| self.message(&error))
    }

    /// Writes a batch with its position. `content` returns the content of the database; it is called if the file must be rewritten.
    ///
    /// # Errors
    /// A message; the file is unchanged.
    pub(super) fn append(
        &mut self,
        batch: &Entries,
        position: BatchId,
        content: impl FnOnce() -> Result<BTreeMap<String, Vec<u8>>, String>,
    ) -> Result<Pending, String> {
        let needs_rewrite = |open: &OpenFile| {
            open.length > MIN_REWRITE_LENGTH && open.length > REWRITE_FACTOR * open.rewritten_length
        };
        match self.open.as_mut().filter(|open| !needs_rewrite(open)) {
            Some(open) => {
                let rollback_state = Pending::Appended(open.length, open.last);
                match open.push(&text(batch, position)) {
                    Ok(()) => Ok(rollback_state),
                    Err(error) => {
                        self.roll_back(rollback_state);
                        Err(self.message(&error))
                    }
                }
            }
            None => {
                let mut entries: Entries =
                    content()?.into_iter().map(|(k, v)| (k, Some(v))).collect();
                entries.extend(batch.clone());
                entries.retain(|_, value| value.is_some());
                let draft = self.draft(&entries, position).map_err(|error| {
                    let _ = fs::remove_file(self.draft_path());
                    self.message(&error)
                })?;
                Ok(Pending::Draft(draft))
            }
        }
    }

    /// Completes an append after the database has the batch.
    ///
    /// # Errors
    /// A message: the new file cannot replace the old one.
    pub(super) fn confirm(&mut self, pending: Pending) -> Result<(), String> {
        let Pending::Draft(open) = pending else {
            return Ok(());
        };
        fs::rename(self.draft_path(), &self.path).map_err(|error| self.message(&error))?;
        self.open = Some(open);
        Ok(())
    }

    /// Undoes an append after the database refused the batch.
    pub(super) fn roll_back(&mut self, pending: Pending) {
        match pending {
            Pending::Draft(_) => {
                let _ = fs::remove_file(self.draft_path());
            }
            Pending::Appended(length, last) => {
                let truncated = self.open.as_mut().map(|open| {
                    (open.length, open.last) = (length, last);
                    open.file.set_len(length)
                });
                if !matches!(truncated, Some(Ok(()))) {
                    self.open = None;
                }
            }
        }
    }

    fn draft(&self, entries: &Entries, position: BatchId) -> io::Result<OpenFile> {
        let path = self.draft_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut open = OpenFile {
            file,
            length: 0,
            rewritten_length: 0,
            last: blake3::hash(b""),
        };
        let header = Header {
            format: FORMAT,
            boot: self.boot.clone(),
        };
        open.push(&serde_json::to_vec(&header).map_err(io::Error::other)?)?;
        open.push(&text(entries, position))?;
        open.rewritten_length = open.length;
        Ok(open)
    }

    fn draft_path(&self) -> PathBuf {
        self.path.with_extension("journal.new")
    }

    fn message(&self, error: &io::Error) -> String {
        format!("{}: {error}", self.path.display())
    }
}

impl OpenFile {
    fn push(&mut self, json: &[u8]) -> io::Result<()> {
        let hash = link(&self.last, json);
        let mut line = Vec::with_capacity(json.len() + 66);
        line.extend_from_slice(hash.to_hex().as_bytes());
        line.push(b' ');
        line.extend_from_slice(json);
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.length += line.len() as u64;
        self.last = hash;
        Ok(())
    }
}

/// Encodes a batch. Values are JSON and therefore UTF-8.
fn text(entries: &Entries, position: BatchId) -> Vec<u8> {
    let mut entries: BTreeMap<&str, Option<Cow<'_, str>>> = entries
        .iter()
        .map(|(key, value)| {
            let value = value.as_deref().map(String::from_utf8_lossy);
            (key.as_str(), value)
        })
        .collect();
    entries.insert(POSITION_KEY, Some(position.to_string().into()));
    serde_json::to_vec(&entries).unwrap_or_default()
}

fn link(last: &blake3::Hash, json: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(last.as_bytes());
    hasher.update(json);
    hasher.finalize()
}

/// The JSON of a line, if the line is complete and follows `last`.
fn unwrap<'l>(line: &'l [u8], last: &mut blake3::Hash) -> Option<&'l [u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (hash, json) = line.split_at_checked(64)?;
    let json = json.strip_prefix(b" ")?;
    let expected = link(last, json);
    // Compared byte by byte: the digits must be lower case.
    if hash != expected.to_hex().as_bytes() {
        return None;
    }
    *last = expected;
    Some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(of: &[(&str, Option<&str>)]) -> Entries {
        of.iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(|v| v.as_bytes().to_vec())))
            .collect()
    }

    fn at(seq: u64) -> BatchId {
        BatchId { id: [7; 16], seq }
    }

    fn write(journal: &mut Journal, batch: &[(&str, Option<&str>)]) {
        let pending = journal.append(&entries(batch), at(1), || Ok(BTreeMap::new()));
        journal.confirm(pending.unwrap()).unwrap();
    }

    fn shown(journal: &Journal) -> Result<Option<Vec<(String, String)>>, String> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let read = journal.read()?;
        Ok(read.map(|all| all.into_iter().map(|(k, v)| (k, text(v))).collect()))
    }

    #[test]
    fn it_contains_the_last_value_of_each_key_and_nothing_that_was_rolled_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "boot");
        assert_eq!(shown(&journal), Ok(None));
        write(&mut journal, &[("a", Some("1")), ("b", Some("\"x\\ny\""))]);
        write(&mut journal, &[("a", Some("2")), ("c", Some("3"))]);
        let refused = journal.append(&entries(&[("a", Some("9"))]), at(2), || unreachable!());
        journal.roll_back(refused.unwrap());
        write(&mut journal, &[("c", None)]);
        let expected = vec![
            ("a".to_owned(), "2".to_owned()),
            ("b".to_owned(), "\"x\\ny\"".to_owned()),
        ];
        assert_eq!(shown(&journal), Ok(Some(expected)));
        assert_eq!(shown(&Journal::new(dir.path(), "another boot")), Ok(None));
    }

    #[test]
    fn a_torn_last_line_is_ignored_and_any_other_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "boot");
        for n in 0..5 {
            write(&mut journal, &[("a", Some(&n.to_string()))]);
        }
        let path = dir.path().join(JOURNAL);
        let content = fs::read(&path).unwrap();
        let last = content[..content.len() - 1]
            .iter()
            .rposition(|b| *b == b'\n')
            .unwrap();
        for length in last + 1..content.len() {
            fs::write(&path, &content[..length]).unwrap();
            assert_eq!(
                shown(&journal),
                Ok(Some(vec![("a".to_owned(), "3".to_owned())])),
                "{length}"
            );
        }
        for at in 0..last {
            let mut damaged = content.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            assert!(shown(&journal).is_err(), "byte {at}");
        }
        // A line that is missing from the middle.
        let lines: Vec<&[u8]> = content.split_inclusive(|b| *b == b'\n').collect();
        fs::write(&path, [lines[0], lines[1], lines[3], lines[4]].concat()).unwrap();
        assert!(shown(&journal).is_err());
    }

    #[test]
    fn the_position_is_that_of_the_last_complete_line_that_was_not_rolled_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "boot");
        assert_eq!(journal.position(), Ok(None));
        let path = dir.path().join(JOURNAL);
        for seq in [3, 4, 9] {
            let batch = entries(&[("a", Some("1"))]);
            let pending = journal.append(&batch, at(seq), || Ok(BTreeMap::new()));
            journal.confirm(pending.unwrap()).unwrap();
            assert_eq!(journal.position(), Ok(Some(at(seq))));
        }
        let refused = journal.append(&entries(&[("a", None)]), at(10), || unreachable!());
        assert_eq!(journal.position(), Ok(Some(at(10))));
        journal.roll_back(refused.unwrap());
        assert_eq!(journal.position(), Ok(Some(at(9))));
        let content = fs::read(&path).unwrap();
        fs::write(&path, &content[..content.len() - 1]).unwrap();
        assert_eq!(journal.position(), Ok(Some(at(4))), "a torn line");
        assert_eq!(Journal::new(dir.path(), "other").position(), Ok(None));
        let expected = vec![("a".to_owned(), "1".to_owned())];
        assert_eq!(
            shown(&journal),
            Ok(Some(expected)),
            "the position is not part of the state"
        );
    }

    #[test]
    fn it_is_rewritten_before_it_grows_without_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::new(dir.path(), "boot");
        let value = "x".repeat(1 << 20);
        for _ in 0..20 {
            let content = || Ok(BTreeMap::from([("a".to_owned(), b"old".to_vec())]));
            let pending = journal.append(&entries(&[("a", Some(&value))]), at(3), content);
            journal.confirm(pending.unwrap()).unwrap();
        }
        let length = fs::metadata(dir.path().join(JOURNAL)).unwrap().len();
        assert!(length < 7 << 20, "{length}");
        assert_eq!(shown(&journal).unwrap().unwrap()[0].1, value);
    }
}
