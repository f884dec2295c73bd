//! Notification of changes to the mount table.
//! Out of scope: which mount changed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::async_fd;

/// The mount table of our mount namespace: the kernel reports its changes as priority data (proc_pid_mountinfo(5)).
pub struct Mounts(Option<AsyncFd<Arc<OwnedFd>>>);

impl Mounts {
    /// Starts watching. Must be called within a tokio runtime.
    pub fn watch() -> Self {
        let opened = File::open("/proc/self/mountinfo");
        let watched =
            opened.and_then(|file| async_fd::register(Arc::new(file.into()), Interest::PRIORITY));
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
