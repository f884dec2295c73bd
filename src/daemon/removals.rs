//! What is removed from our directories: a namespace hidden from `ip netns`, a VM's run directory.
//! Not here: what is done about it.
//!
//! # Why
//! Netlink tells nothing of names in a file system. `ip netns del` on a namespace in which a process still runs takes its
//! name and its mount away and leaves every link as it was; only the directory knows.

use std::path::{Path, PathBuf};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::owner::RunDir;

/// One thing that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// The name of an entry of one of the directories.
    Entry(String),
    /// A directory itself, or more than we were told: look at everything, and watch anew.
    Unknown,
}

/// Tells of removals in the three directories that hold our names.
pub struct Removals {
    removed: mpsc::UnboundedReceiver<Removed>,
    /// Held for its thread and its watches.
    _watcher: RecommendedWatcher,
}

impl Removals {
    /// From now on. The directories are made if need be.
    ///
    /// # Errors
    /// A directory cannot be made, or the inotify limits are used up.
    pub fn watch(run_dir: &RunDir) -> Result<Self, notify::Error> {
        let handles = crate::owner::ip_netns_path("");
        let dirs = [run_dir.netns_dir(), run_dir.vm_dirs(), handles];
        let (tell, removed) = mpsc::unbounded_channel();
        let watched = dirs.clone().map(|dir| plain(&dir));
        let mut watcher = RecommendedWatcher::new(
            move |event| {
                for removed in removals(&watched, event) {
                    // Nobody listens any more: the daemon ends.
                    let _ = tell.send(removed);
                }
            },
            Config::default(),
        )?;
        for dir in &dirs {
            std::fs::create_dir_all(dir).map_err(notify::Error::io)?;
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
        }
        Ok(Self {
            removed,
            _watcher: watcher,
        })
    }

    /// The next one. Nothing is lost when the wait is dropped.
    pub async fn next(&mut self) -> Removed {
        self.removed.recv().await.unwrap_or(Removed::Unknown)
    }
}

/// Without a trailing slash, as inotify's answers are.
fn plain(dir: &Path) -> PathBuf {
    dir.components().collect()
}

fn removals(dirs: &[PathBuf], event: notify::Result<notify::Event>) -> Vec<Removed> {
    let event = match event {
        Ok(event) if !event.need_rescan() => event,
        Ok(_) | Err(_) => return vec![Removed::Unknown],
    };
    match event.kind {
        EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(RenameMode::From | RenameMode::Both)) => {}
        _ => return Vec::new(),
    }
    // Of a rename it is the first path that is gone.
    let gone = event.paths.iter().take(1).map(|path| plain(path));
    gone.filter_map(|path| match dirs.contains(&path) {
        true => Some(Removed::Unknown),
        false => Some(Removed::Entry(path.file_name()?.to_str()?.to_owned())),
    })
    .collect()
}
