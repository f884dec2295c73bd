//! Opens the database: checks the format, opens it, and compares it with what was acknowledged. A database that differs is set aside.
//! Out of scope: the comparison itself ([`super::verify`]), sled ([`super::disk`]).
//!
//! # Why
//! Damage and a failure to read are different. A damaged database is moved away unchanged and a new one is created. If the system
//! cannot read it, or another version wrote it, nothing is changed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::Error;
use super::database::{Batch, Database};
use super::disk::{self, OpenError, Pair, Raw};
use super::evidence::RecordCopies;
use super::failure::Failure;
use super::format::{self, FORMAT, FORMAT_WITHOUT_RECORD, FormatFile};
use super::integrity::RunCopy;
use super::load::{self, FORMAT_KEY, POSITION_KEY, RECOVERY_KEY};
use super::position::{ContentDigest, LogPosition};
use super::sync::{self, SledFiles};
use super::verify::{DatabaseState, Verification, verify};
use super::witness::BootEvidence;
use super::world::{Recovery, World};

/// What was found when the database was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// There was no database.
    Fresh,
    /// A database that an earlier run wrote.
    Existing,
    /// A damaged database, which was renamed. Each start reports it until [`Txn::end_recovery`](super::Txn::end_recovery).
    SetAside {
        /// Where it is now.
        path: PathBuf,
        /// How it differed from what was acknowledged.
        why: String,
    },
}

/// An open database with its content.
pub(super) struct Open {
    pub database: Database,
    pub world: World,
    pub opened: Opened,
    /// Notes for the user; they need no decision.
    pub notes: Vec<String>,
}

/// The files of a state directory.
struct StateFiles<'a> {
    dir: &'a Path,
    db: PathBuf,
    record_file: PathBuf,
    format: PathBuf,
    run: Option<&'a RunCopy>,
    witnesses: &'a BootEvidence<'a>,
}

/// Opens or creates the database in `dir`.
///
/// # Errors
/// [`Error::Open`]: nothing was changed, unless the message says that setting aside a damaged database failed.
pub(super) fn open(
    dir: &Path,
    run: Option<&RunCopy>,
    witnesses: &BootEvidence<'_>,
) -> Result<Open, Error> {
    let files = StateFiles {
        dir,
        db: dir.join("db"),
        record_file: dir.join("seal"),
        format: dir.join("format"),
        run,
        witnesses,
    };
    let error_of = |reason: String| Error::Open {
        path: files.db.display().to_string(),
        why: reason,
    };
    sync::make_dir(dir).map_err(|error| error_of(error.to_string()))?;
    match files.open() {
        Ok(open) => Ok(open),
        Err(OpenError::Damaged(why)) => {
            let path = files
                .set_aside()
                .map_err(|error| error_of(format!("{why}; it cannot be set aside: {error}")))?;
            let recovery = Recovery { path, why };
            files.create_new(&recovery).map_err(|error| {
                error_of(format!(
                    "{}; a new one cannot be created: {error}",
                    recovery.why
                ))
            })
        }
        Err(error @ (OpenError::InUse | OpenError::Refused(_))) => Err(error_of(error.to_string())),
    }
}

impl StateFiles<'_> {
    /// Opens the existing database if it is what was acknowledged, or creates the first one.
    fn open(&self) -> Result<Open, OpenError> {
        let found_format = format::read(&self.format)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", self.format.display())))?;
        if let FormatFile::Other(other) = found_format {
            return Err(OpenError::Refused(format::unsupported_message(other)));
        }
        let copies = RecordCopies::find(&self.record_file, self.run, found_format)?;
        let evidence = copies.evidence();
        match fs::symlink_metadata(&self.db) {
            Ok(_) if !evidence.has_record => self.check_copy()?,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(reason) = evidence.loss() {
                    return Err(OpenError::Damaged(reason));
                }
            }
            Err(error) => return Err(error.into()),
        }
        let raw = disk::open(&self.db)?;
        let (state, pairs) = read_content(&raw)?;
        let verdict = verify(&evidence, &state).map_err(OpenError::Damaged)?;
        let world = load::world(&pairs).map_err(undecodable)?;
        if let Verification::Whole(position) = &verdict
            && evidence.run.is_none()
            && let Some(why) = self.witnesses.outdated_reason(position, &world)
        {
            return Err(OpenError::Damaged(why));
        }
        let mut notes = Vec::new();
        if found_format == FormatFile::Invalid
            || (found_format == FormatFile::Missing && state.position.is_some())
        {
            notes.push(format!(
                "{} was missing or damaged and was written again",
                self.format.display()
            ));
        }
        let (log_position, is_first_batch) = match verdict {
            Verification::Whole(log_position) => (log_position, false),
            Verification::Uninitialized(Some(log_position)) => (log_position, true),
            Verification::Uninitialized(None) => {
                (LogPosition::first(random_id(), state.content), true)
            }
        };
        if is_first_batch && !state.empty {
            notes.push(format!(
                "the database was of format {FORMAT_WITHOUT_RECORD} and is now of format {FORMAT}"
            ));
        }
        let mut database = self.establish_records(raw, copies, log_position, &mut notes)?;
        match found_format {
            FormatFile::Current => {}
            // Adds the checksum. A failure does not matter: the file can be read without it.
            FormatFile::CurrentUnchecked => drop(format::write(&self.format)),
            FormatFile::Missing | FormatFile::Invalid | FormatFile::Other(_) => {
                format::write(&self.format)?
            }
        }
        if is_first_batch {
            commit(&mut database, None)?;
        }
        let opened = match &world.recovery {
            Some(Recovery { path, why }) => Opened::SetAside {
                path: path.clone(),
                why: why.clone(),
            },
            None if is_first_batch && state.empty => Opened::Fresh,
            None => Opened::Existing,
        };
        Ok(Open {
            database,
            world,
            opened,
            notes,
        })
    }

    /// Creates a new database in place of one that was set aside.
    fn create_new(&self, recovery: &Recovery) -> Result<Open, OpenError> {
        let raw = disk::open(&self.db)?;
        let copies = RecordCopies::find(&self.record_file, None, FormatFile::Missing)?;
        let position = LogPosition::first(random_id(), ContentDigest::default());
        let mut notes = Vec::new();
        let mut database = self.establish_records(raw, copies, position, &mut notes)?;
        format::write(&self.format)?;
        commit(&mut database, Some(recovery))?;
        let world = World {
            recovery: Some(recovery.clone()),
            ..World::default()
        };
        Ok(Open {
            database,
            world,
            opened: Opened::SetAside {
                path: recovery.path.clone(),
                why: recovery.why.clone(),
            },
            notes,
        })
    }

    /// Writes the database and its integrity records to the disk, all of them at position `position`.
    fn establish_records(
        &self,
        raw: Raw,
        copies: RecordCopies,
        log_position: LogPosition,
        notes: &mut Vec<String>,
    ) -> Result<Database, OpenError> {
        // Opening it with sled has repaired, rewritten or created files.
        let written = SledFiles::of(&self.db)?;
        let seals = copies.update(&self.record_file, self.run, &log_position, notes)?;
        Ok(Database::new(raw, written, seals, log_position))
    }

    /// Checks a database without an integrity record: it has format 1, or belongs to another program. The check opens a copy, because
    /// sled rewrites files when it opens them.
    fn check_copy(&self) -> Result<(), OpenError> {
        let _locked = match disk::lock(&self.db) {
            Err(OpenError::Refused(_)) if !self.db.join("db").exists() => return Ok(()),
            locked => locked?,
        };
        let copy = self.dir.join("db.copy");
        let checked = copy_tree(&self.db, &copy)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", copy.display())))
            .and_then(|()| {
                let raw = disk::open(&copy)?;
                let (_, pairs) = read_content(&raw)?;
                load::world(&pairs).map(drop).map_err(undecodable)
            });
        remove_tree(&copy)?;
        checked
    }

    /// Moves the database and its integrity record away, in whatever state they are.
    fn set_aside(&self) -> io::Result<PathBuf> {
        let target = (1..)
            .map(|n| self.dir.join(format!("db.corrupt-{n}")))
            .find(|aside| fs::symlink_metadata(aside).is_err())
            .unwrap_or_default();
        match fs::rename(&self.db, &target) {
            Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir(&target)?,
            moved => moved?,
        }
        for file in [&self.record_file, &self.format] {
            let name = file.file_name().unwrap_or_default();
            match fs::rename(file, target.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync::dir(&target)?;
        sync::dir(self.dir)?;
        Ok(target)
    }
}

/// Writes the first batch of a database: it identifies the database as one of this program.
fn commit(database: &mut Database, recovery: Option<&Recovery>) -> Result<(), OpenError> {
    let format = FORMAT.to_string().into_bytes();
    let mut batch = Batch::from([(FORMAT_KEY.to_owned(), Some(format))]);
    if let Some(recovery) = recovery {
        let recovery = serde_json::to_vec(recovery).map_err(io::Error::from)?;
        batch.insert(RECOVERY_KEY.to_owned(), Some(recovery));
    }
    database.write(batch).map_err(|failure| {
        OpenError::Refused(match failure {
            Failure::Refused(why) | Failure::Unknown(why) => why,
            Failure::TimedOut => "the database does not answer".into(),
        })
    })
}

/// Reads the whole content and computes its digest. A database of another format is refused first.
fn read_content(raw: &Raw) -> Result<(DatabaseState, Vec<Pair>), OpenError> {
    let mut pairs = disk::content(raw)?;
    let value = |of: &str| {
        let pair = pairs.iter().find(|(key, _)| key == of.as_bytes());
        pair.map(|(_, value)| value.clone())
    };
    match value(FORMAT_KEY) {
        Some(format) => {
            let format = String::from_utf8_lossy(&format).into_owned();
            if ![FORMAT, FORMAT_WITHOUT_RECORD]
                .map(|known| known.to_string())
                .contains(&format)
            {
                return Err(OpenError::Refused(format::unsupported_message(format)));
            }
        }
        None if pairs.is_empty() => {}
        None => return Err(OpenError::Damaged("it has no format number".into())),
    }
    let log_position = value(POSITION_KEY);
    let log_position = match log_position {
        None => None,
        Some(bytes) => match LogPosition::decode(&bytes) {
            None => {
                return Err(OpenError::Damaged(
                    "its own position record is damaged".into(),
                ));
            }
            log_position => log_position,
        },
    };
    let empty = pairs.is_empty();
    pairs.retain(|(key, _)| key != POSITION_KEY.as_bytes());
    let mut content = ContentDigest::default();
    for (key, value) in &pairs {
        content.add(key, value);
    }
    let state = DatabaseState {
        position: log_position,
        content,
        empty,
    };
    Ok((state, pairs))
}

/// The database is what was written, so content that cannot be decoded is not damage.
fn undecodable(reason: String) -> OpenError {
    OpenError::Refused(format!(
        "{reason}; the database is undamaged and was not changed: start the version of sliced that wrote it"
    ))
}

fn random_id() -> [u8; 16] {
    uuid::Uuid::new_v4().into_bytes()
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    remove_tree(to)?;
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type()? {
            kind if kind.is_dir() => copy_tree(&from, &to)?,
            kind if kind.is_file() => drop(fs::copy(&from, &to)?),
            _ => {}
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
