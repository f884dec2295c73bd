//! Watches for removals from the daemon's directories: namespaces, handles for `ip netns`, run directories of VMs.
//! Out of scope: the repair.
//!
//! # Why
//! Netlink does not report names in a file system. `ip netns del` on a namespace in which a process still runs removes its
//! name and its mount and leaves every link unchanged; only the directory changes.
//!
//! Uses inotify directly instead of the `notify` crate: it is a stream, which needs no thread, and subscribes to removals only.

use std::io;

use futures::StreamExt;
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};

use crate::host::private;
use crate::owner::RunDir;

/// A removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The name of an entry of one of the directories.
    Entry(String),
    /// A directory itself was removed, or events were lost: everything must be observed and watched again.
    Unknown,
}

/// Size of the read buffer in bytes: some hundred events.
const BUFFER_SIZE: usize = 16 * 1024;

/// A stream of removals from the three directories.
pub struct Removals(EventStream<Vec<u8>>);

impl Removals {
    /// Starts watching; creates the directories if necessary. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A directory cannot be created, or the inotify limits are exhausted.
    pub fn watch(run_dir: &RunDir) -> io::Result<Self> {
        let handles = crate::owner::ip_netns_path("");
        let inotify = Inotify::init()?;
        let mask = WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let own_dirs = [run_dir.netns_dir(), run_dir.vm_dirs()];
        for dir in &own_dirs {
            private::dir(dir, |_| false).map_err(|error| error.source)?;
        }
        std::fs::create_dir_all(&handles)?;
        for dir in own_dirs.into_iter().chain([handles]) {
            inotify.watches().add(&dir, mask)?;
        }
        inotify.into_event_stream(vec![0; BUFFER_SIZE]).map(Self)
    }

    /// Waits for the next removal. Cancel safe.
    pub async fn next(&mut self) -> Removed {
        match self.0.next().await {
            Some(Ok(event)) => removed(&event),
            Some(Err(_)) | None => Removed::Unknown,
        }
    }
}

/// An event without the name of an entry is about a directory, or about an overflow of the queue.
fn removed<S: AsRef<std::ffi::OsStr>>(event: &Event<S>) -> Removed {
    let is_removal = event
        .mask
        .intersects(EventMask::DELETE | EventMask::MOVED_FROM);
    match event.name.as_ref().filter(|_| is_removal) {
        Some(name) => Removed::Entry(name.as_ref().to_string_lossy().into_owned()),
        None => Removed::Unknown,
    }
}
