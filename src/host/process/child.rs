//! Code that a child executes between fork and exec.
//! Out of scope: what that code does ([`super::spawn()`], [`super::query()`]).

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the child changes about itself before its exec, and the data for that.
pub(super) trait Setup: Send + Sync + 'static {
    /// Makes only system calls, on descriptors and memory from before the fork, and uses no memory that a thread of the parent may be
    /// changing: no allocation, no lock, no panic.
    fn in_the_child(&self) -> io::Result<()>;
}

/// Makes the child of this command execute the setup.
///
/// # Why rustix helps
/// The child has a copy of the daemon's memory but only one of its threads: a lock that another thread held, such as the allocator's, is
/// never released. So the child may only make system calls. rustix makes them itself, for the calling thread; it allocates memory for paths
/// that are not C strings, so the setups have only C strings.
pub(super) fn before_exec(command: &mut Command, setup: impl Setup) {
    // SAFETY: the trait requires of both implementations what the child may do. fork(2) and exec(2) are the standard library's, not rustix'.
    unsafe { command.pre_exec(move || setup.in_the_child()) };
}
