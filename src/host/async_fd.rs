//! Registers descriptors with the tokio runtime.
//! Out of scope: which, and what is read from them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor; it stays open at least as long as the registration. Must be called within a tokio runtime.
pub(super) fn register(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` always names the same open file description and is closed only when dropped, and the registration is one of its
    // owners. The function is unsafe because tokio accepts any `AsRawFd`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
