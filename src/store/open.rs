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
use super::evidence::Copies;
use super::format::{self, FORMAT, Said, UNSEALED};
use super::load::{self, FORMAT_KEY, MARK_KEY, RECOVERY_KEY};
use super::mark::{Content, Mark};
use super::seal::RunCopy;
use super::sync::{self, Written};
use super::verify::{Inside, Verdict, verify};
use super::witness::Witnesses;
use super::world::{Recovery, World};
use super::writer::Failure;

/// What was found when the database was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// There was no database.
    Fresh,
    /// A database that an earlier run wrote.
    Existing,
    /// A damaged database, which was renamed. Each start reports it until [`super::Store::recovered`].
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
struct Place<'a> {
    dir: &'a Path,
    db: PathBuf,
    seal: PathBuf,
    format: PathBuf,
    run: Option<&'a RunCopy>,
    witnesses: &'a Witnesses<'a>,
}

/// Opens or creates the database in `dir`.
///
/// # Errors
/// [`Error::Open`]: nothing was changed, unless the message says that setting aside a damaged database failed.
pub(super) fn open(
    dir: &Path,
    run: Option<&RunCopy>,
    witnesses: &Witnesses<'_>,
) -> Result<Open, Error> {
    let place = Place {
        dir,
        db: dir.join("db"),
        seal: dir.join("seal"),
        format: dir.join("format"),
        run,
        witnesses,
    };
    let refuse = |why: String| Error::Open {
        path: place.db.display().to_string(),
        why,
    };
    sync::make_dir(dir).map_err(|error| refuse(error.to_string()))?;
    match place.open() {
        Ok(open) => Ok(open),
        Err(OpenError::Damaged(why)) => {
            let path = place
                .set_aside()
                .map_err(|error| refuse(format!("{why}; it cannot be set aside: {error}")))?;
            let recovery = Recovery { path, why };
            place.begin_anew(&recovery).map_err(|error| {
                refuse(format!(
                    "{}; a new one cannot be created: {error}",
                    recovery.why
                ))
            })
        }
        Err(error @ (OpenError::Held | OpenError::Refused(_))) => Err(refuse(error.to_string())),
    }
}

impl Place<'_> {
    /// Opens the existing database if it is what was acknowledged, or creates the first one.
    fn open(&self) -> Result<Open, OpenError> {
        let said = format::read(&self.format)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", self.format.display())))?;
        if let Said::Other(other) = said {
            return Err(OpenError::Refused(format::refusal(other)));
        }
        let copies = Copies::find(&self.seal, self.run, said)?;
        let evidence = copies.evidence();
        match fs::symlink_metadata(&self.db) {
            Ok(_) if !evidence.sealed => self.look_without_touching()?,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(why) = evidence.loss() {
                    return Err(OpenError::Damaged(why));
                }
            }
            Err(error) => return Err(error.into()),
        }
        let raw = disk::open(&self.db)?;
        let (inside, pairs) = look_inside(&raw)?;
        let verdict = verify(&evidence, &inside).map_err(OpenError::Damaged)?;
        let world = load::world(&pairs).map_err(not_understood)?;
        if let Verdict::Whole(mark) = &verdict
            && evidence.run.is_none()
            && let Some(why) = self.witnesses.objection(mark, &world)
        {
            return Err(OpenError::Damaged(why));
        }
        let mut notes = Vec::new();
        if said == Said::Nonsense || (said == Said::Nothing && inside.mark.is_some()) {
            notes.push(format!(
                "{} was missing or damaged and was written again",
                self.format.display()
            ));
        }
        let (mark, begin) = match verdict {
            Verdict::Whole(mark) => (mark, false),
            Verdict::Begin(Some(mark)) => (mark, true),
            Verdict::Begin(None) => (Mark::first(random_id(), inside.content), true),
        };
        if begin && !inside.empty {
            notes.push(format!(
                "the database was of format {UNSEALED} and is now of format {FORMAT}"
            ));
        }
        let mut database = self.take(raw, copies, mark, &mut notes)?;
        match said {
            Said::Ours => {}
            // Adds the checksum. A failure does not matter: the file can be read without it.
            Said::OursUnchecked => drop(format::write(&self.format)),
            Said::Nothing | Said::Nonsense | Said::Other(_) => format::write(&self.format)?,
        }
        if begin {
            commit(&mut database, None)?;
        }
        let opened = match &world.recovery {
            Some(Recovery { path, why }) => Opened::SetAside {
                path: path.clone(),
                why: why.clone(),
            },
            None if begin && inside.empty => Opened::Fresh,
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
    fn begin_anew(&self, recovery: &Recovery) -> Result<Open, OpenError> {
        let raw = disk::open(&self.db)?;
        let copies = Copies::find(&self.seal, None, Said::Nothing)?;
        let mark = Mark::first(random_id(), Content::default());
        let mut notes = Vec::new();
        let mut database = self.take(raw, copies, mark, &mut notes)?;
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

    /// Writes the database and its integrity records to the disk, all of them at position `mark`.
    fn take(
        &self,
        raw: Raw,
        copies: Copies,
        mark: Mark,
        notes: &mut Vec<String>,
    ) -> Result<Database, OpenError> {
        // Opening it with sled has repaired, rewritten or created files.
        let written = Written::of(&self.db)?;
        let seals = copies.establish(&self.seal, self.run, &mark, notes)?;
        Ok(Database::new(raw, written, seals, mark))
    }

    /// Checks a database without an integrity record: it has format 1, or belongs to another program. The check opens a copy, because
    /// sled rewrites files when it opens them.
    fn look_without_touching(&self) -> Result<(), OpenError> {
        let _locked = match disk::lock(&self.db) {
            Err(OpenError::Refused(_)) if !self.db.join("db").exists() => return Ok(()),
            locked => locked?,
        };
        let copy = self.dir.join("db.copy");
        let looked = copy_tree(&self.db, &copy)
            .map_err(|error| OpenError::Refused(format!("{}: {error}", copy.display())))
            .and_then(|()| {
                let raw = disk::open(&copy)?;
                let (_, pairs) = look_inside(&raw)?;
                load::world(&pairs).map(drop).map_err(not_understood)
            });
        remove_tree(&copy)?;
        looked
    }

    /// Moves the database and its integrity record away, in whatever state they are.
    fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = (1..)
            .map(|n| self.dir.join(format!("db.corrupt-{n}")))
            .find(|aside| fs::symlink_metadata(aside).is_err())
            .unwrap_or_default();
        match fs::rename(&self.db, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir(&aside)?,
            moved => moved?,
        }
        for file in [&self.seal, &self.format] {
            let name = file.file_name().unwrap_or_default();
            match fs::rename(file, aside.join(name)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync::dir(&aside)?;
        sync::dir(self.dir)?;
        Ok(aside)
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
            Failure::Silent => "the database does not answer".into(),
        })
    })
}

/// Reads the whole content and computes its digest. A database of another format is refused first.
fn look_inside(raw: &Raw) -> Result<(Inside, Vec<Pair>), OpenError> {
    let mut pairs = disk::content(raw)?;
    let value = |of: &str| {
        let pair = pairs.iter().find(|(key, _)| key == of.as_bytes());
        pair.map(|(_, value)| value.clone())
    };
    match value(FORMAT_KEY) {
        Some(format) => {
            let format = String::from_utf8_lossy(&format).into_owned();
            if ![FORMAT, UNSEALED]
                .map(|known| known.to_string())
                .contains(&format)
            {
                return Err(OpenError::Refused(format::refusal(format)));
            }
        }
        None if pairs.is_empty() => {}
        None => return Err(OpenError::Damaged("it has no format number".into())),
    }
    let mark = value(MARK_KEY);
    let mark = match mark {
        None => None,
        Some(bytes) => match Mark::decode(&bytes) {
            None => {
                return Err(OpenError::Damaged(
                    "its own position record is damaged".into(),
                ));
            }
            mark => mark,
        },
    };
    let empty = pairs.is_empty();
    pairs.retain(|(key, _)| key != MARK_KEY.as_bytes());
    let mut content = Content::default();
    for (key, value) in &pairs {
        content.add(key, value);
    }
    let inside = Inside {
        mark,
        content,
        empty,
    };
    Ok((inside, pairs))
}

/// The database is what was written, so content that cannot be decoded is not damage.
fn not_understood(why: String) -> OpenError {
    OpenError::Refused(format!(
        "{why}; the database is undamaged and was not changed: start the version of sliced that wrote it"
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
