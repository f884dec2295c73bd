//! The limit on open file descriptors (RLIMIT_NOFILE) of the daemon and of the programs that it starts.
//! Out of scope: how the daemon distributes its descriptors.
//!
//! # Why
//! The soft limit is 1024 on most hosts because of programs that use select(2). The daemon does not use it and needs more; its children
//! get the limit that the daemon was started with.

use std::io;
use std::sync::OnceLock;

static ORIGINAL: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the daemon's soft limit to the hard limit, and returns it.
///
/// # Errors
/// The kernel's; the limit is unchanged then.
pub fn raise_file_limit() -> io::Result<u64> {
    let before = get()?;
    let original = *ORIGINAL.get_or_init(|| before);
    let raised = libc::rlimit {
        rlim_cur: original.rlim_max,
        rlim_max: original.rlim_max,
    };
    // SAFETY: a plain system call; the struct outlives it.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => Ok(raised.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The current soft limit.
pub fn file_limit() -> io::Result<u64> {
    get().map(|limit| limit.rlim_cur)
}

/// The limit for children: the soft and hard limit that the daemon was started with. `None`: the limit was not raised.
pub fn original_file_limit() -> Option<(u64, u64)> {
    ORIGINAL.get().map(|limit| (limit.rlim_cur, limit.rlim_max))
}

/// The same as [`original_file_limit`], as an argument of setrlimit(2).
pub(super) fn original() -> Option<libc::rlimit> {
    ORIGINAL.get().copied()
}

/// Sets the limit of a running child to the one that the daemon was started with.
///
/// # Why not before its exec
/// That requires code between fork and exec: the standard library then uses fork(2), which copies the page tables, instead of
/// posix_spawn(3). No program reads its limit in its first microseconds.
pub(super) fn restore_in(pid: u32) {
    let (Some(original), Ok(pid)) = (original(), libc::pid_t::try_from(pid)) else {
        return;
    };
    // SAFETY: a plain system call on a child that is not reaped yet; the struct outlives it. An error of a child that has already ended
    // is ignored.
    unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_NOFILE,
            &raw const original,
            std::ptr::null_mut(),
        );
    }
}

fn get() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a plain system call; the struct outlives it.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}
