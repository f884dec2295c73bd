//! How many descriptors we may have open, and how many what we start may.
//! Out of scope: how they are shared out.
//!
//! # Why
//! The soft limit of RLIMIT_NOFILE is 1024 on most hosts for the sake of programs that use select(2). The daemon does not, and
//! needs more; its children get what the daemon was started with.

use std::io;
use std::sync::OnceLock;

static ORIGINAL: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises our soft limit to the hard one, once, and returns it.
///
/// # Errors
/// The kernel's; then the limit is as before.
pub fn raise_file_limit() -> io::Result<u64> {
    let before = get()?;
    let original = *ORIGINAL.get_or_init(|| before);
    let raised = libc::rlimit {
        rlim_cur: original.rlim_max,
        rlim_max: original.rlim_max,
    };
    // SAFETY: a plain system call; the struct lives through it.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => Ok(raised.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many descriptors we may have open now.
pub fn file_limit() -> io::Result<u64> {
    get().map(|limit| limit.rlim_cur)
}

/// What a child is to get: the soft and the hard limit that we were started with. None: ours is not raised.
pub fn original_file_limit() -> Option<(u64, u64)> {
    ORIGINAL.get().map(|limit| (limit.rlim_cur, limit.rlim_max))
}

/// The same, as setrlimit(2) takes it.
pub(super) fn original() -> Option<libc::rlimit> {
    ORIGINAL.get().copied()
}

/// Gives a child that runs already the limit that we were started with.
///
/// # Why not before its exec
/// That takes code between fork and exec, for which the standard library forks, page tables and all, where it would call
/// posix_spawn(3). No program counts its descriptors in its first microseconds.
pub(super) fn restore_in(pid: u32) {
    let (Some(original), Ok(pid)) = (original(), libc::pid_t::try_from(pid)) else {
        return;
    };
    // SAFETY: a plain system call on a child that is not reaped yet; the struct lives through it. A child that ended already
    // needs no limit.
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
    // SAFETY: a plain system call; the struct lives through it.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}
