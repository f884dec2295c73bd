//! Opens a database whose disk cannot be written: a copy of it is opened in memory.
//! Out of scope: the store over it ([`super::degraded`]).
//!
//! # Why
//! sled writes when it opens. On a full disk it fails in the middle of that, and on a read-only one at the beginning. The
//! copy is in a file system of its own (tmpfs), so that a full run directory does not matter either; it is mounted nowhere and reached
//! through its descriptor alone, so that it is gone with us.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::Error;
use super::database::Database;
use super::disk::{self, OpenError};
use super::open::{self, Opened};
use super::seal::RunCopy;
use super::witness::Witnesses;
use super::world::World;

/// So much must be free before the database is opened: sled preallocates, and does not expect to fail in the middle.
const ROOM: u64 = 1 << 20;

/// What was found.
pub(super) struct Found {
    /// None: it cannot be written.
    pub(super) database: Option<Database>,
    pub(super) world: World,
    pub(super) opened: Opened,
    pub(super) notes: Vec<String>,
    /// Why it cannot be written.
    pub(super) why: Option<String>,
}

/// Opens the database in `dir`, or a copy of it. Where there is none and none can be made, a daemon can begin only with what
/// the run directory has (`recallable`).
///
/// # Errors
/// [`Error::Open`].
pub(super) fn open(
    dir: &Path,
    seal: Option<&RunCopy>,
    witnesses: &Witnesses<'_>,
    recallable: bool,
) -> Result<Found, Error> {
    let why = match no_room(dir) {
        Some(why) => why,
        None => match open::open(dir, seal, witnesses) {
            Ok(open) => {
                return Ok(Found {
                    database: Some(open.database),
                    world: open.world,
                    opened: open.opened,
                    notes: open.notes,
                    why: None,
                });
            }
            // sled says it in words of its own, or not at all.
            Err(error) => no_room(dir).ok_or(error)?,
        },
    };
    let path = dir.join("db");
    if !has_database(dir) && !recallable {
        return Err(Error::Open {
            path: path.display().to_string(),
            why: why.to_string(),
        });
    }
    let why = format!("{}: {why}", path.display());
    tracing::error!(%why, "the state database cannot be written; it is read from a copy");
    let found = match has_database(dir) {
        false => Found {
            database: None,
            world: World::default(),
            opened: Opened::Fresh,
            notes: Vec::new(),
            why: None,
        },
        true => from_a_copy(dir, seal, witnesses).map_err(|error| Error::Open {
            path: path.display().to_string(),
            why: format!("it cannot be written ({why}), and cannot be read: {error}"),
        })?,
    };
    Ok(Found {
        why: Some(why),
        ..found
    })
}

/// Why nothing can be written in this directory, if that is because its disk takes no more.
fn no_room(dir: &Path) -> Option<io::Error> {
    let tried = fs::create_dir_all(dir).and_then(|()| probe(dir));
    tried.err().filter(is_no_room)
}

/// Whether files can be written in this directory, and not only short ones.
pub(super) fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(".room");
    let try_it = || -> io::Result<()> {
        let file = File::create(&path)?;
        let mode = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, mode, 0, ROOM) {
            // Not every file system can promise room.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    };
    let tried = try_it();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && tried.is_ok() => Err(error),
        _ => tried,
    }
}

/// Nothing is wrong with what is there: it is the disk that takes no more.
fn is_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Anything that tells of a database that is, or was, here.
fn has_database(dir: &Path) -> bool {
    ["db", "seal", "format"]
        .iter()
        .any(|name| fs::symlink_metadata(dir.join(name)).is_ok())
}

fn from_a_copy(
    dir: &Path,
    seal: Option<&RunCopy>,
    witnesses: &Witnesses<'_>,
) -> Result<Found, String> {
    let words = |error: io::Error| error.to_string();
    let _lock = match disk::lock(&dir.join("db")) {
        Ok(lock) => Some(lock),
        Err(OpenError::Refused(_)) if !dir.join("db/db").exists() => None,
        Err(error) => return Err(error.to_string()),
    };
    let memory = memory().map_err(|error| format!("a tmpfs: {error}"))?;
    let copy = Path::new("/proc/self/fd").join(memory.as_raw_fd().to_string());
    let state = copy.join("state");
    fs::create_dir(&state).map_err(words)?;
    copy_all(dir, &state).map_err(words)?;
    // What opening writes goes to copies, all of it.
    let seal = match seal {
        Some(seal) => {
            let path = copy.join("state.seal");
            match fs::copy(&seal.path, &path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(words(error)),
                _ => {}
            }
            Some(RunCopy {
                path,
                boot_id: seal.boot_id.clone(),
            })
        }
        None => None,
    };
    let open = open::open(&state, seal.as_ref(), witnesses).map_err(|error| error.to_string())?;
    let opened = match open.opened {
        // The database itself is set aside when that can be written.
        Opened::SetAside { why, .. } => Opened::SetAside {
            path: dir.join("db"),
            why,
        },
        opened => opened,
    };
    drop(open.database);
    Ok(Found {
        database: None,
        world: open.world,
        opened,
        notes: open.notes,
        why: None,
    })
}

/// A new tmpfs that is mounted nowhere.
fn memory() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Files and directories that the database is made of: disks of VMs and what was set aside are none.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let (source, target) = (entry.path(), to.join(&name));
        let is_ours = name != "disks" && !name.to_string_lossy().contains("corrupt");
        if kind.is_file() && is_ours {
            fs::copy(source, target)?;
        } else if kind.is_dir() && is_ours {
            fs::create_dir(&target)?;
            copy_all(&source, &target)?;
        }
    }
    Ok(())
}
