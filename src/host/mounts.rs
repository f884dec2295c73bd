//! Notification of changes to the mount table.
//! Out of scope: which mount changed.

use std::fs::File;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// The mount table of our mount namespace: the kernel reports its changes as priority data (proc_pid_mountinfo(5)).
pub struct Mounts(Option<AsyncFd<File>>);

impl Mounts {
    /// Starts watching. Must be called within a tokio runtime.
    pub fn watch() -> Self {
        let opened = File::open("/proc/self/mountinfo");
        let watched = opened.and_then(|file| {
            // SAFETY: a `File` names the same open descriptor for as long as it lives, and the registration owns it.
            let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
            Ok(registered?)
        });
        Self(
            watched
                .inspect_err(
                    |error| warn!(%error, "cannot watch the mount table; mount changes are detected at the next resync"),
                )
                .ok(),
        )
    }

    /// Waits for the next change. Cancel safe.
    pub async fn changed(&self) {
        let ready = match &self.0 {
            Some(table) => table.ready(Interest::PRIORITY).await,
            None => std::future::pending().await,
        };
        match ready {
            Ok(mut ready) => ready.clear_ready(),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }
}
