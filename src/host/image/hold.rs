//! Locks images, so that an image never has two writers.
//! Out of scope: the assignment of images to VMs.
//!
//! # How
//! Each user of an image holds `flock(2)` on the file itself, exclusive to write, shared to read. A VMM inherits the open file without
//! using it, so the lock lasts exactly as long as the VMM: a crash of the daemon does not release it, and it does not depend on a
//! pid, which may be reused. Because it is on the file, it works across paths, links and daemons.
//!
//! Other programs use other locks. QEMU and Cloud Hypervisor lock ranges (`F_OFD_SETLK`), which do not conflict with `flock`, so these
//! are checked in addition. A lock of a process that can only read the image is ignored: see [`conflicts`]. A process that writes
//! without a lock is detected through the kernel: it grants no read lease (`F_SETLEASE`) on a file that is open for writing. A block
//! device has no leases; a mounted one refuses `O_EXCL`.

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Signal;

use crate::host::holders::{self, Holder};
use crate::host::lock::FileLock;
use crate::host::named::Named;
use crate::host::{Error, Kind};

/// The pauses between attempts to lock an image.
const RETRY_DELAYS: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
];

/// The kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Shared: other readers are allowed.
    Read,
    /// Exclusive.
    Write,
}

/// Locks an image while the daemon itself uses it.
///
/// # Errors
/// As [`hold`].
pub fn lock(path: &Path, access: Use) -> Result<FileLock, Error> {
    hold(path, access).map(FileLock::of_locked)
}

/// The same for an opened file; `path` is its path in errors.
pub(super) fn lock_file(named: &Named, path: &Path, access: Use) -> Result<FileLock, Error> {
    hold_file(named, path, access).map(FileLock::of_locked)
}

/// Locks an image for a VMM that inherits it. The lock is held until the last copy of this file descriptor is closed, in any process.
///
/// # Errors
/// [`Kind::Busy`]: another process uses it; the error names the process if it can be identified.
pub fn hold(path: &Path, access: Use) -> Result<File, Error> {
    take(open(path), path, access)
}

/// The same for an opened file; `path` is its path in errors.
pub fn hold_file(named: &Named, path: &Path, access: Use) -> Result<File, Error> {
    take(open(&named.proc_path()), path, access)
}

fn take(opened: io::Result<File>, path: &Path, access: Use) -> Result<File, Error> {
    let operation = match access {
        Use::Read => "read",
        Use::Write => "lock for writing",
    };
    let fail = |error| Error::io(operation, path.display().to_string(), error);
    let busy = |reason: String| Error {
        operation,
        object: path.display().to_string(),
        kind: Kind::Busy,
        source: io::Error::other(reason),
    };
    let file = match opened {
        // The kernel breaks the lease after `/proc/sys/fs/lease-break-time`, so that a later attempt succeeds.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(busy(
                "a process of its owner holds a lease on it".to_owned(),
            ));
        }
        opened => opened.map_err(fail)?,
    };
    // A child of this or another daemon shares every open file until exec closes them, which takes a moment.
    for pause in RETRY_DELAYS {
        match is_free(&file, access) {
            Ok(true) => return Ok(file),
            Ok(false) => std::thread::sleep(pause),
            Err(error) => return Err(fail(error)),
        }
    }
    match is_free(&file, access) {
        Ok(true) => Ok(file),
        Ok(false) => Err(busy(in_use(&file))),
        Err(error) => Err(fail(error)),
    }
}

/// `O_EXCL` on a block device only means "fail if it is mounted" (`open(2)`).
/// Does not block on a lease (fcntl(2), F_SETLEASE) or on a FIFO without a writer.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.file_type().is_block_device() {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)?;
    }
    Ok(file)
}

fn is_free(file: &File, access: Use) -> io::Result<bool> {
    let lock = match access {
        Use::Read => FlockOperation::NonBlockingLockShared,
        Use::Write => FlockOperation::NonBlockingLockExclusive,
    };
    let locked = match rustix::fs::flock(file, lock) {
        Ok(()) => true,
        Err(rustix::io::Errno::WOULDBLOCK) => false,
        Err(error) => return Err(error.into()),
    };
    if is_written(file)? {
        return Ok(false);
    }
    let conflict = !locked || has_range_locks(file, access)?;
    // A process that failed to lock it may still have it open.
    if !conflict && (access == Use::Read || is_sole_opener(file)?) {
        return Ok(true);
    }
    let holders = holders::of(file);
    // If no process holds the lock, its descriptor is in a queued message (unix(7), SCM_RIGHTS), where a jailed VMM keeps its own.
    if conflict && !holders.iter().any(|holder| holder.has_lock) {
        return Ok(false);
    }
    Ok(!holders.iter().any(|holder| conflicts(holder, file, access)))
}

/// Whether a process that has the image open could be a second writer, or a reader of an image that is written to. A lock of a process
/// that may only read the image is ignored: `flock(2)` does not require write permission, and such a lock could be held indefinitely.
fn conflicts(holder: &Holder, file: &File, access: Use) -> bool {
    /// The time since its start in which a VMM may not have opened the disk that it has locked.
    const STARTUP: Duration = Duration::from_secs(30);
    let is_root = holder.user.is_none_or(|user| user == 0);
    let may_write = || is_root || holder.may_write(file);
    match access {
        Use::Write => holder.writable || holder.confined || (holder.has_lock && may_write()),
        // A guest that has escaped from its VMM can turn the VMM's shared lock into an exclusive one.
        Use::Read => {
            let is_vmm = || {
                let is_device = || file.metadata().is_ok_and(|found| !found.is_file());
                holder.confined && (is_device() || holder.age().is_some_and(|age| age < STARTUP))
            };
            holder.writable || (holder.has_exclusive_lock && (may_write() || is_vmm()))
        }
    }
}

/// Whether no other process has it open: then a write lease is granted (fcntl(2), F_SETLEASE). Always true for a device, which has no
/// leases.
fn is_sole_opener(file: &File) -> io::Result<bool> {
    if !file.metadata()?.is_file() {
        return Ok(true);
    }
    let granted = set(file, Setting::Lease(libc::F_WRLCK)).is_ok();
    if granted {
        let _ = set(file, Setting::Lease(libc::F_UNLCK));
    }
    Ok(granted)
}

/// What fcntl(2) sets with an integer.
enum Setting {
    /// The lease of this process: `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
    Lease(c_int),
    /// The signal that reports the break of a lease.
    Signal(Signal),
}

fn set(file: &File, what: Setting) -> io::Result<()> {
    /// `include/uapi/asm-generic/fcntl.h`; the libc crate does not have it.
    const F_SETSIG: c_int = 10;
    let (command, value) = match what {
        Setting::Lease(kind) => (libc::F_SETLEASE, kind),
        Setting::Signal(signal) => (F_SETSIG, signal.as_raw()),
    };
    // SAFETY: the descriptor is open, and both commands take an integer, no pointer. rustix has neither.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether a range lock conflicts with a lock on the whole file.
fn has_range_locks(file: &File, access: Use) -> io::Result<bool> {
    let kind = match access {
        Use::Read => libc::F_RDLCK,
        Use::Write => libc::F_WRLCK,
    };
    // Offset and length 0: the whole file.
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the struct is the one that the command reads and writes; it lives through the call. rustix has
    // only F_GETLK, which asks for the process and not for the open file.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
    }
}

/// Whether any process has it open for writing.
///
/// # Errors
/// The kernel does not report it.
pub fn is_written(file: &File) -> io::Result<bool> {
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    // If a process opens it while we hold the lease, the kernel notifies us: by a signal that is ignored, not by SIGIO, which kills.
    set(file, Setting::Signal(Signal::URG))?;
    match set(file, Setting::Lease(libc::F_RDLCK)) {
        Ok(()) => set(file, Setting::Lease(libc::F_UNLCK)).map(|()| false),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(true),
            // A file system without leases (NFS, overlayfs), or a file of another user without the capability CAP_LEASE:
            // scan /proc, which is slow.
            Some(libc::EINVAL | libc::EACCES) => {
                Ok(holders::of(file).iter().any(|holder| holder.writable))
            }
            _ => Err(error),
        },
    }
}

fn in_use(file: &File) -> String {
    let all: Vec<Holder> = holders::of(file);
    let own = std::process::id();
    let others = || all.iter().filter(|holder| holder.pid != own);
    let filters: [fn(&Holder) -> bool; 3] = [
        |holder| holder.writable,
        |holder| holder.has_lock && holder.is_privileged(),
        |holder| holder.has_lock,
    ];
    let first = filters.into_iter().find(|of_those| others().any(of_those));
    match first {
        Some(filter) => holders::named(others().filter(|holder| filter(holder))),
        None => holders::named(others()),
    }
}
