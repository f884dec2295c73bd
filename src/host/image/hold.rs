//! Never two writers of an image.
//! Not here: who is to have it.
//!
//! # How
//! Whoever uses an image holds `flock(2)` on the file itself, exclusive to write, shared to read. A VMM inherits the open file and
//! knows nothing of it, so that the lock lives exactly as long as the VMM: neither our crash frees it nor can a pid come to mean
//! another. Being on the file, it holds across names, links and daemons.
//!
//! Others keep other rules. QEMU and Cloud Hypervisor lock ranges (`F_OFD_SETLK`), which does not meet `flock`, so theirs stay on and
//! are asked about. Who keeps none at all and writes is seen by the kernel: it grants no read lease (`F_SETLEASE`) on a file that
//! is open for writing. A block device knows no leases; one that is mounted refuses `O_EXCL`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::host::named::Named;
use crate::host::{Error, Kind};

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Anybody else may read, too.
    Read,
    /// Nobody else may have it.
    Write,
}

/// Takes an image. It is held until the last copy of this file descriptor is closed, in whatever process.
///
/// # Errors
/// [`Kind::Busy`]: somebody else has it; the error names who, where that can be seen.
pub fn hold(path: &Path, how: Use) -> Result<File, Error> {
    take(open(path), path, how)
}

/// The same for a file that is open already; `path` is what it is called.
pub fn hold_named(named: &Named, path: &Path, how: Use) -> Result<File, Error> {
    take(open(&named.through_proc()), path, how)
}

fn take(opened: io::Result<File>, path: &Path, how: Use) -> Result<File, Error> {
    let doing = match how {
        Use::Read => "read",
        Use::Write => "take for writing",
    };
    let fail = |error| Error::io(doing, path.display().to_string(), error);
    let file = opened.map_err(fail)?;
    match is_free(&file, how) {
        Ok(true) => Ok(file),
        Ok(false) => Err(Error {
            doing,
            thing: path.display().to_string(),
            kind: Kind::Busy,
            source: io::Error::other(in_use(&file)),
        }),
        Err(error) => Err(fail(error)),
    }
}

/// Exclusively only in name: for a block device that means "not while it is mounted" (`open(2)`).
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).open(path)?;
    if file.metadata()?.file_type().is_block_device() {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)?;
    }
    Ok(file)
}

fn is_free(file: &File, how: Use) -> io::Result<bool> {
    let lock = match how {
        Use::Read => FlockOperation::NonBlockingLockShared,
        Use::Write => FlockOperation::NonBlockingLockExclusive,
    };
    match rustix::fs::flock(file, lock) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    Ok(!has_range_locks(file, how)? && !is_written(file)?)
}

/// Whether somebody has locked a part of it so that we could not lock all of it.
fn has_range_locks(file: &File, how: Use) -> io::Result<bool> {
    let kind = match how {
        Use::Read => libc::F_RDLCK,
        Use::Write => libc::F_WRLCK,
    };
    // SAFETY: plain old data, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the descriptor is open, the struct is ours and lives through the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    match asked {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
    }
}

/// Whether any process has it open for writing.
fn is_written(file: &File) -> io::Result<bool> {
    /// `include/uapi/asm-generic/fcntl.h`; the libc crate does not have it.
    const F_SETSIG: libc::c_int = 10;
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    let fd = file.as_raw_fd();
    // Who opens it while we hold the lease makes the kernel tell us: by a signal that is ignored, not by SIGIO, which kills.
    // SAFETY: plain system calls on an open descriptor; no memory is passed.
    let leased = unsafe {
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK)
    };
    if leased < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(true),
            // A file system without leases (NFS, overlayfs), or a file of another user's where we may not lease those
            // (CAP_LEASE): the slow way.
            Some(libc::EINVAL | libc::EACCES) => Ok(!users(file, OpenFor::Writing).is_empty()),
            _ => Err(error),
        };
    }
    // SAFETY: as above.
    match unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(false),
    }
}

fn in_use(file: &File) -> String {
    let writers = users(file, OpenFor::Writing);
    let users = match writers.is_empty() {
        true => users(file, OpenFor::Anything),
        false => writers,
    };
    match users.is_empty() {
        true => "it is in use by somebody who cannot be seen from here".to_owned(),
        false => format!("it is in use by {}", users.join(" and ")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OpenFor {
    Writing,
    Anything,
}

/// Who has it open: `process 4711 (qemu-system-x86)`, three at most. Not ourselves. Through all of `/proc`.
fn users(file: &File, how: OpenFor) -> Vec<String> {
    let Ok(wanted) = file.metadata() else {
        return Vec::new();
    };
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id().to_string();
    processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| *pid != own && pid.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| has_open(pid, &wanted, how))
        .take(3)
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
            format!("process {pid} ({name})")
        })
        .collect()
}

/// A process that has ended meanwhile has nothing open.
fn has_open(pid: &str, wanted: &std::fs::Metadata, how: OpenFor) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.filter_map(Result::ok).any(|entry| {
        let same = std::fs::metadata(entry.path())
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()));
        same && match how {
            OpenFor::Anything => true,
            OpenFor::Writing => is_for_writing(pid, &entry.file_name().to_string_lossy()),
        }
    })
}

/// `flags:` in `/proc/<pid>/fdinfo/<fd>` is octal; the lowest two bits are the access mode (proc_pid_fdinfo(5)).
fn is_for_writing(pid: &str, fd: &str) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}
