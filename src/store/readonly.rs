//! Opens a database whose disk cannot be written: a copy of it is opened in memory.
//! Out of scope: the store over it ([`super::degraded`]).
//!
//! # Why
//! sled writes when it opens a database. On a full disk this fails halfway, and on a read-only disk at the start. The copy is in a
//! separate tmpfs, so that a full run directory does not matter either. The tmpfs is not mounted and is accessed only through its
//! descriptor, so the kernel removes it when the process ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::Error;
use super::database::Database;
use super::disk::{self, OpenError};
use super::integrity::RunCopy;
use super::open::{self, Opened};
use super::witness::BootEvidence;
use super::world::World;

/// Bytes that must be free before the database is opened: sled preallocates, and does not handle a failure halfway.
const MIN_FREE: u64 = 1 << 20;

/// The opened database, or a copy of it.
pub(super) struct OpenResult {
    /// `None`: it cannot be written.
    pub(super) database: Option<Database>,
    pub(super) world: World,
    pub(super) opened: Opened,
    pub(super) notes: Vec<String>,
    /// The reason why it cannot be written.
    pub(super) why: Option<String>,
}

/// Opens the database in `dir`, or a copy of it. If there is none and none can be created, a daemon can start only with the state in
/// the run directory (`has_journal`).
///
/// # Errors
/// [`Error::Open`].
pub(super) fn open(
    dir: &Path,
    run_copy: Option<&RunCopy>,
    witnesses: &BootEvidence<'_>,
    recallable: bool,
) -> Result<OpenResult, Error> {
    let reason = match full_or_read_only(dir) {
        Some(why) => why,
        None => match open::open(dir, run_copy, witnesses) {
            Ok(open) => {
                return Ok(OpenResult {
                    database: Some(open.database),
                    world: open.world,
                    opened: open.opened,
                    notes: open.notes,
                    why: None,
                });
            }
            // The error of sled may not contain the cause, so the disk is checked again.
            Err(error) => full_or_read_only(dir).ok_or(error)?,
        },
    };
    let path = dir.join("db");
    if !has_database(dir) && !recallable {
        return Err(Error::Open {
            path: path.display().to_string(),
            why: reason.to_string(),
        });
    }
    let why = format!("{}: {reason}", path.display());
    tracing::error!(%why, "the state database cannot be written; a copy of it is used");
    let found = match has_database(dir) {
        false => OpenResult {
            database: None,
            world: World::default(),
            opened: Opened::Fresh,
            notes: Vec::new(),
            why: None,
        },
        true => open_copy(dir, run_copy, witnesses).map_err(|error| Error::Open {
            path: path.display().to_string(),
            why: format!("it cannot be written ({why}) and cannot be read: {error}"),
        })?,
    };
    Ok(OpenResult {
        why: Some(why),
        ..found
    })
}

/// The reason why nothing can be written in this directory, if the disk is full or read-only.
fn full_or_read_only(dir: &Path) -> Option<io::Error> {
    let result = fs::create_dir_all(dir).and_then(|()| probe(dir));
    result.err().filter(is_full_or_read_only)
}

/// Checks whether files of [`MIN_FREE`] bytes can be written in this directory.
pub(super) fn probe(dir: &Path) -> io::Result<()> {
    let path = dir.join(".room");
    let attempt = || -> io::Result<()> {
        let file = File::create(&path)?;
        let mode = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, mode, 0, MIN_FREE) {
            // Not every file system supports preallocation.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    };
    let result = attempt();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && result.is_ok() => Err(error),
        _ => result,
    }
}

/// Whether the disk is full or read-only, so that the existing files may be intact.
fn is_full_or_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Whether there is a file that shows that a database exists or existed here.
fn has_database(dir: &Path) -> bool {
    ["db", "seal", "format"]
        .iter()
        .any(|name| fs::symlink_metadata(dir.join(name)).is_ok())
}

fn open_copy(
    dir: &Path,
    record_copy: Option<&RunCopy>,
    witnesses: &BootEvidence<'_>,
) -> Result<OpenResult, String> {
    let to_message = |error: io::Error| error.to_string();
    let _lock = match disk::lock(&dir.join("db")) {
        Ok(lock) => Some(lock),
        Err(OpenError::Refused(_)) if !dir.join("db/db").exists() => None,
        Err(error) => return Err(error.to_string()),
    };
    let memory = new_tmpfs().map_err(|error| format!("cannot create a tmpfs: {error}"))?;
    let copy = Path::new("/proc/self/fd").join(memory.as_raw_fd().to_string());
    let state = copy.join("state");
    fs::create_dir(&state).map_err(to_message)?;
    copy_all(dir, &state).map_err(to_message)?;
    // Opening writes only to copies.
    let run_copy = match record_copy {
        Some(record_copy) => {
            let path = copy.join("state.seal");
            match fs::copy(&record_copy.path, &path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(to_message(error));
                }
                _ => {}
            }
            Some(RunCopy {
                path,
                boot_id: record_copy.boot_id.clone(),
            })
        }
        None => None,
    };
    let open =
        open::open(&state, run_copy.as_ref(), witnesses).map_err(|error| error.to_string())?;
    let opened = match open.opened {
        // The database itself is set aside once the disk can be written.
        Opened::SetAside { why, .. } => Opened::SetAside {
            path: dir.join("db"),
            why,
        },
        opened => opened,
    };
    drop(open.database);
    Ok(OpenResult {
        database: None,
        world: open.world,
        opened,
        notes: open.notes,
        why: None,
    })
}

/// Creates a tmpfs that is not mounted.
fn new_tmpfs() -> io::Result<OwnedFd> {
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

/// Copies the files and directories of the database, without the disks of VMs and databases that were set aside.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let (source, target) = (entry.path(), to.join(&name));
        let is_database = name != "disks" && !name.to_string_lossy().contains("corrupt");
        if kind.is_file() && is_database {
            fs::copy(source, target)?;
        } else if kind.is_dir() && is_database {
            fs::create_dir(&target)?;
            copy_all(&source, &target)?;
        }
    }
    Ok(())
}
