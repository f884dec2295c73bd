//! What is removed from our directories: a namespace hidden from `ip netns`, a VM's run directory.
//! Out of scope: what is done about it.
//!
//! # Why
//! Netlink tells nothing of names in a file system. `ip netns del` on a namespace in which a process still runs takes its
//! name and its mount away and leaves every link as it was; only the directory knows.
//!
//! inotify itself and not `notify`, which asks to be told of each opening, too: every look at a VM opens its directory, and
//! would wake a thread to be told so.

use std::io;

use futures::StreamExt;
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask};

use crate::host::private;
use crate::owner::RunDir;

/// One thing that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The name of an entry of one of the directories.
    Entry(String),
    /// A directory itself, or more than we were told: look at everything, and watch anew.
    Unknown,
}

/// Bytes: some hundred removals at once.
const BUFFER: usize = 16 * 1024;

/// Tells of removals in the three directories that hold our names.
pub struct Removals(EventStream<Vec<u8>>);

impl Removals {
    /// From now on. The directories are made if need be. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A directory cannot be made, or the inotify limits are used up.
    pub fn watch(run_dir: &RunDir) -> io::Result<Self> {
        let handles = crate::owner::ip_netns_path("");
        let inotify = Inotify::init()?;
        let gone = WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let own = [run_dir.netns_dir(), run_dir.vm_dirs()];
        for dir in &own {
            private::dir(dir, |_| false).map_err(|error| error.source)?;
        }
        std::fs::create_dir_all(&handles)?;
        for dir in own.into_iter().chain([handles]) {
            inotify.watches().add(&dir, gone)?;
        }
        inotify.into_event_stream(vec![0; BUFFER]).map(Self)
    }

    /// The next one. Nothing is lost when the wait is dropped.
    pub async fn next(&mut self) -> Removed {
        match self.0.next().await {
            Some(Ok(event)) => removed(&event),
            Some(Err(_)) | None => Removed::Unknown,
        }
    }
}

/// Whatever tells of no entry tells of a directory, or of a queue that has run over.
fn removed<S: AsRef<std::ffi::OsStr>>(event: &Event<S>) -> Removed {
    let gone = event
        .mask
        .intersects(EventMask::DELETE | EventMask::MOVED_FROM);
    match event.name.as_ref().filter(|_| gone) {
        Some(name) => Removed::Entry(name.as_ref().to_string_lossy().into_owned()),
        None => Removed::Unknown,
    }
}
