//! Directories and locks that only the daemon can use, independent of its umask and of files left by earlier versions.
//! Out of scope: which directories.
//!
//! # Why
//! Any process that can open a file, even read-only, can take `flock(2)` on it and hold it indefinitely; so lock files are in directories
//! that other users cannot enter. A descriptor that was opened while a directory was still accessible to others survives the change of
//! its mode, and so does a lock on it: such a file is replaced, and the lock stays on the old file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use super::Error;
use super::holders::{self, Holder};
use super::lock::FileLock;

/// Permissions of group and others.
const OTHERS: u32 = 0o077;
/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// A directory that only the daemon can access, mode 0700; created if it does not exist. Access by others to an existing one is removed;
/// if they could write in it, files of other users are removed from it, except names for which `keep` returns true.
///
/// # Errors
/// It is not a directory, is a symbolic link, or belongs to another user.
pub fn dir(path: &Path, keep: impl Fn(&str) -> bool) -> Result<(), Error> {
    let restrict = || -> io::Result<()> {
        make(path, 0o700)?;
        let handle = open_owned_dir(path)?;
        let mode = handle.metadata()?.mode() & 0o7777;
        if mode & OTHERS != 0 {
            handle.set_permissions(fs::Permissions::from_mode(0o700))?;
            tracing::info!(path = %path.display(), "directory was accessible to other users; mode set to 0700");
        }
        match mode & OTHERS_WRITE {
            0 => Ok(()),
            _ => remove_foreign_files(path, keep),
        }
    };
    restrict().map_err(|error| Error::io("use as a private directory", shown(path), error))
}

/// A directory that others may traverse but not write in, mode 0755 at most.
///
/// # Errors
/// As [`dir`]; also for a world-writable sticky directory (`/tmp`), which is not taken over.
pub fn shared_dir(path: &Path) -> Result<(), Error> {
    let restrict = || -> io::Result<()> {
        make(path, 0o755)?;
        let handle = open_owned_dir(path)?;
        let mode = handle.metadata()?.mode() & 0o7777;
        if mode & 0o1000 != 0 && mode & OTHERS_WRITE != 0 {
            let reason = "it is a shared world-writable directory; use a dedicated directory";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        let desired = (mode & !OTHERS_WRITE) | 0o711;
        if mode != desired {
            handle.set_permissions(fs::Permissions::from_mode(desired))?;
        }
        match mode & OTHERS_WRITE {
            0 => Ok(()),
            _ => remove_foreign_files(path, |_| false),
        }
    };
    restrict().map_err(|error| Error::io("use as a private directory", shown(path), error))
}

/// Takes the lock on a file in a private directory ([`dir`]); creates the file if it does not exist. `None`: a privileged process holds it
/// (see [`Holder::is_privileged`]). It is released on drop, at the latest when the process ends. Never waits.
pub fn try_lock(path: &Path) -> Result<Option<FileLock>, Error> {
    /// Another process may replace the file at the same time.
    const MAX_ATTEMPTS: u32 = 8;
    let take = || -> io::Result<Option<FileLock>> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(file) = open_lock_file(path)? else {
                // Not created by the daemon, although in its directory.
                remove(path)?;
                continue;
            };
            match FileLock::exclusive(file)? {
                Ok(lock) if is_same_file(&lock, path) => return Ok(Some(lock)),
                Ok(_) => {}
                Err(held) if is_held_by_privileged(&held) => return Ok(None),
                Err(_) => {
                    tracing::warn!(path = %path.display(), "an unprivileged process holds the lock; replacing the file");
                    remove(path)?;
                }
            }
        }
        Err(io::Error::other("another process keeps replacing it"))
    };
    take().map_err(|error| Error::io("lock", shown(path), error))
}

/// As [`try_lock`], but waits. For locks that are held for a few system calls only.
///
/// # Errors
/// Another process holds it for longer than `deadline`.
pub async fn lock(path: &Path, deadline: Duration) -> Result<FileLock, Error> {
    /// The pause between two attempts.
    const STEP: Duration = Duration::from_millis(1);
    /// To find the owner of a lock, every process is examined.
    const CHECK_HOLDERS_EVERY: u32 = 64;
    let take = async {
        for attempt in 1_u32.. {
            let taken = match attempt % CHECK_HOLDERS_EVERY {
                0 => try_lock(path)?,
                _ => {
                    lock_nonblocking(path).map_err(|error| Error::io("lock", shown(path), error))?
                }
            };
            if let Some(file) = taken {
                return Ok(file);
            }
            tokio::time::sleep(STEP).await;
        }
        Err(Error::other("lock", shown(path), "it stays locked"))
    };
    let timed_out = |_| {
        Err(Error::other(
            "lock",
            shown(path),
            "another process holds it",
        ))
    };
    tokio::time::timeout(deadline, take)
        .await
        .unwrap_or_else(timed_out)
}

/// `None`: it is locked.
fn lock_nonblocking(path: &Path) -> io::Result<Option<FileLock>> {
    let Some(file) = open_lock_file(path)? else {
        remove(path)?;
        return Ok(None);
    };
    let lock = FileLock::exclusive(file)?.ok();
    Ok(lock.filter(|lock| is_same_file(lock, path)))
}

/// The text of a file in a private directory ([`dir`]). A file that the daemon did not create is removed and not read.
///
/// # Errors
/// It cannot be read.
pub fn read_text(path: &Path) -> Result<Option<String>, Error> {
    let read = || -> io::Result<Option<String>> {
        let mut file = match open_regular(path, false) {
            Ok(Some(file)) => file,
            Ok(None) => {
                remove(path)?;
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    };
    read().map_err(|error| Error::io("read", shown(path), error))
}

/// Frees a file of the daemon, which another program is about to lock, from locks of unprivileged processes, by replacing it with a copy.
/// A file that is not locked, does not exist or is locked by a privileged process is not changed.
pub fn free(path: &Path) -> Result<(), Error> {
    let replace = || -> io::Result<()> {
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let file = match FileLock::exclusive(file)? {
            Err(file) if !is_held_by_privileged(&file) => file,
            Ok(_) | Err(_) => return Ok(()),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temp = path.with_file_name(format!(".{name}.unlocked"));
        remove(&temp)?;
        let mut copy = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)?;
        io::copy(&mut &file, &mut copy)?;
        copy.sync_all()?;
        fs::rename(&temp, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        tracing::warn!(path = %path.display(), "an unprivileged process held the lock; the file was replaced by a copy");
        Ok(())
    };
    replace().map_err(|error| Error::io("remove an unprivileged lock from", shown(path), error))
}

/// Whether a privileged process holds the lock that could not be taken. A process that is not visible counts as privileged.
pub fn is_held_by_privileged(file: &File) -> bool {
    let locked: Vec<Holder> = holders::of(file)
        .into_iter()
        .filter(|holder| holder.has_lock)
        .collect();
    locked.is_empty() || locked.iter().any(Holder::is_privileged)
}

/// Creates a directory with exactly this mode, independent of the umask, and its parents with mode 0755.
fn make(path: &Path, mode: u32) -> io::Result<()> {
    let create = || DirBuilder::new().mode(mode).create(path);
    let made = match (create(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
            create()
        }
        (created, _) => created,
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        other => other,
    }
}

fn open_owned_dir(path: &Path) -> io::Result<File> {
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)?;
    let owner = dir.metadata()?.uid();
    match owner == us() {
        true => Ok(dir),
        false => {
            let reason = format!("it belongs to user {owner}");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
        }
    }
}

/// Creates the file if it does not exist. `None`: the path exists but was not created by the daemon.
fn open_lock_file(path: &Path) -> io::Result<Option<File>> {
    open_regular(path, true)
}

fn open_regular(path: &Path, create: bool) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // A symbolic link, a socket, a directory.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ELOOP | libc::ENXIO | libc::EISDIR)
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    if !(found.is_file() && found.uid() == us() && found.nlink() <= 1) {
        return Ok(None);
    }
    if found.mode() & OTHERS != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(Some(file))
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(file), Ok(current)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (file.dev(), file.ino()) == (current.dev(), current.ino())
}

/// Removes symbolic links, does not follow them.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes files of other users from a directory in which they could write.
fn remove_foreign_files(path: &Path, keep: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let owned = fs::symlink_metadata(entry.path()).is_ok_and(|found| found.uid() == us());
        if owned || name.to_str().is_some_and(&keep) {
            continue;
        }
        tracing::warn!(path = %entry.path().display(), "removing a file of another user from a private directory");
        remove(&entry.path())?;
    }
    Ok(())
}

fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
