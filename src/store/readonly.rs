//! Opens a database whose disk cannot be written: a copy of it is opened in memory.
//! Not here: the store over it ([`super::degraded`]).
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

use super::disk::{self, Db, Failed, Opened};
use super::world::World;
use super::Error;

/// So much must be free before the database is opened: sled preallocates, and does not expect to fail in the middle.
const ROOM: u64 = 1 << 20;

/// The database if it can be written; what it says; how it was found; why it cannot be written.
type Found = (Option<Db>, World, Opened, Option<String>);

/// Opens the database in `dir`, or a copy of it.
///
/// # Errors
/// [`Error::Open`].
pub(super) fn open(dir: &Path) -> Result<Found, Error> {
    let _ = fs::create_dir_all(dir);
    let why = match probe(dir) {
        Err(error) if is_no_room(&error) => error,
        // What else is wrong is told by the database.
        Ok(()) | Err(_) => match disk::open(dir) {
            Ok((db, world, opened)) => return Ok((Some(db), world, opened, None)),
            Err(Failed::Refused(error)) => return Err(error),
            Err(Failed::Unwritable(error)) => error,
        },
    };
    let path = disk::path(dir);
    let why = format!("{}: {why}", path.display());
    tracing::error!(%why, "the state database cannot be written; it is read from a copy");
    let refuse = |error: String| Error::Open {
        path: path.display().to_string(),
        why: format!("it cannot be written ({why}), and reading a copy of it failed: {error}"),
    };
    if !path.exists() {
        return Ok((None, World::default(), Opened::Fresh, Some(why)));
    }
    let _lock = lock(&path).map_err(|error| refuse(error.to_string()))?;
    let (world, opened) = from_a_copy(dir).map_err(refuse)?;
    Ok((None, world, opened, Some(why)))
}

/// Whether files can be written in this directory, and are not so soon too long.
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
pub(super) fn is_no_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// The database's own lock, which another daemon has while it uses it; to read the file is enough for that (flock(2)).
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path.join("db")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::other("another sliced is using it")),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn from_a_copy(dir: &Path) -> Result<(World, Opened), String> {
    let memory = memory().map_err(|error| format!("a tmpfs: {error}"))?;
    let copy = Path::new("/proc/self/fd").join(memory.as_raw_fd().to_string());
    copy_all(dir, &copy).map_err(|error| error.to_string())?;
    let opened = disk::open(&copy);
    match opened {
        Ok((db, world, Opened::Existing | Opened::Fresh)) => {
            drop(db);
            Ok((world, Opened::Existing))
        }
        Ok((db, world, Opened::SetAside { why, .. })) => {
            drop(db);
            let path = disk::set_aside(&disk::path(dir))
                // On a read-only disk it stays where it is, and is set aside when it can be.
                .unwrap_or_else(|_| disk::path(dir));
            Ok((world, Opened::SetAside { path, why }))
        }
        Err(Failed::Refused(error)) => Err(error.to_string()),
        Err(Failed::Unwritable(error)) => Err(error.to_string()),
    }
}

/// A new tmpfs that is mounted nowhere.
fn memory() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
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
