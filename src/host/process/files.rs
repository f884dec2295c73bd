//! The limit on open file descriptors (RLIMIT_NOFILE) of the daemon and of the programs that it starts.
//! Out of scope: how the daemon distributes its descriptors.
//!
//! # Why
//! The soft limit is 1024 on most hosts because of programs that use select(2). The daemon does not use it and needs more; the
//! programs that this crate starts get the limit that the daemon was started with.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit};

static ORIGINAL: OnceLock<Rlimit> = OnceLock::new();

/// Raises the daemon's soft limit to the hard limit, and returns it.
///
/// # Errors
/// The kernel's; the limit is unchanged then.
pub fn raise_file_limit() -> io::Result<u64> {
    let original = *ORIGINAL.get_or_init(get);
    let raised = Rlimit {
        current: original.maximum,
        maximum: original.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised)?;
    Ok(number(raised.current))
}

/// The current soft limit.
pub fn file_limit() -> u64 {
    number(get().current)
}

/// The limit for children: the soft and hard limit that the daemon was started with. `None`: the limit was not raised.
pub fn original_file_limit() -> Option<(u64, u64)> {
    original().map(|limit| (number(limit.current), number(limit.maximum)))
}

/// The same as [`original_file_limit`], as an argument of setrlimit(2).
pub(super) fn original() -> Option<Rlimit> {
    ORIGINAL.get().copied()
}

/// Sets the limit of a running child to the one that the daemon was started with.
///
/// # Why not before its exec
/// That requires code between fork and exec: the standard library then uses fork(2), which copies the page tables, instead of
/// posix_spawn(3). No program reads its limit in its first microseconds.
pub(super) fn restore_in(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let (Some(original), Some(pid)) = (original(), pid) {
        // An error of a child that has already ended is ignored. It is not reaped yet, so its PID is not reused.
        let _ = rustix::process::prlimit(Some(pid), Resource::Nofile, original);
    }
}

fn get() -> Rlimit {
    rustix::process::getrlimit(Resource::Nofile)
}

/// `None` is RLIM_INFINITY.
fn number(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}
