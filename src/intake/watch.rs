//! Notifies the caller when something in a directory may have changed.
//! Out of scope: what has changed; the caller reads the whole directory again.
//!
//! # Why
//! inotify watches an inode, but the manifest directory is a *path*: it contains symbolic links that may be replaced, and directories
//! that may be deleted and created again. So after every event the path is resolved again, and a new watcher for the result replaces the
//! old one. A network file system on the path may hang, so the path is resolved on a blocking thread, one at a time, and the old watcher
//! is used meanwhile. Changes are rare and a watcher is cheap; detecting a stale watch is not.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, EventKindMask, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::api::manifest::{is_manifest, resembles_manifest};

/// A save is complete after this time without events.
const SETTLE_TIME: Duration = Duration::from_millis(60);
/// Maximum wait for the end of a save.
const PATIENCE: Duration = Duration::from_millis(500);
/// Timeout for resolving the path; then the directory is read with the old watcher in place.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes only, and the end of a save. Directories above the manifests are watched too, /etc among them, and every process that starts
/// opens files there (ld.so.cache, passwd): a subscription to opens would wake the daemon for each.
const EVENT_KINDS: EventKindMask = EventKindMask::CORE.union(EventKindMask::ACCESS_CLOSE);
/// The number of links that the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Number of immediate attempts to watch a path that changes meanwhile.
const MAX_ATTEMPTS: u32 = 8;

/// The directory cannot be watched: the inotify limits are exhausted, or the path cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch the directory {}", path.display())]
pub struct WatchError {
    /// The directory.
    pub path: PathBuf,
    /// The error of `notify`.
    #[source]
    pub source: notify::Error,
}

/// Selects the files of a directory to watch, by their names.
pub type NameFilter = fn(&OsStr) -> bool;

/// Notifications for a directory, which need not exist.
pub struct Watch {
    dir: PathBuf,
    name_filter: NameFilter,
    woken: Arc<Notify>,
    /// A notification that [`Watch::changed`] has not returned yet, so that dropping its future loses no notification.
    pending: bool,
    /// Owns its thread and its watches. `None` until the path has been resolved once.
    _watcher: Option<RecommendedWatcher>,
    /// The creation of a new watcher in progress.
    new_watcher: Option<JoinHandle<Result<RecommendedWatcher, WatchError>>>,
}

impl Watch {
    /// Watches the manifests in a directory, see [`Watch::of`].
    pub async fn new(dir: &Path) -> Result<Self, WatchError> {
        Self::of(dir, |name| is_manifest(name) || resembles_manifest(name)).await
    }

    /// Starts watching. Later changes cause a notification; existing files do not.
    /// A relative `dir` is relative to the current directory.
    pub async fn of(dir: &Path, filter: NameFilter) -> Result<Self, WatchError> {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let notify = Arc::new(Notify::new());
        let mut watch = Self {
            dir,
            name_filter: filter,
            woken: notify,
            pending: false,
            _watcher: None,
            new_watcher: None,
        };
        watch.replace_watcher().await?;
        Ok(watch)
    }

    /// Waits for a change and then for the end of the save. Changes between two calls cause one notification. On an error the previous
    /// watch is still in place: the caller must read the directory and report the error.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        if !self.pending {
            self.woken.notified().await;
            self.pending = true;
        }
        let settled = async { while timeout(SETTLE_TIME, self.woken.notified()).await.is_ok() {} };
        // After the timeout, the directory is read during the save.
        let _ = timeout(PATIENCE, settled).await;
        self.pending = false;
        // Before the caller reads, so that every change after the read causes another notification.
        self.replace_watcher().await
    }

    /// Replaces the watcher. If the path cannot be resolved in time, the old watcher stays, and the next call continues to wait.
    async fn replace_watcher(&mut self) -> Result<(), WatchError> {
        let arming = self.new_watcher.get_or_insert_with(|| {
            let (dir, filter) = (self.dir.clone(), self.name_filter);
            let notify = Arc::clone(&self.woken);
            tokio::task::spawn_blocking(move || create_watcher(&dir, filter, &notify))
        });
        let Ok(result) = timeout(RESOLVE_TIMEOUT, arming).await else {
            self.pending = true;
            return Ok(());
        };
        self.new_watcher = None;
        let failed = |error: tokio::task::JoinError| WatchError {
            path: self.dir.clone(),
            source: notify::Error::generic(&error.to_string()),
        };
        self._watcher = Some(result.map_err(failed)??);
        Ok(())
    }
}

/// Creates a watcher for the current targets of the path.
fn create_watcher(
    dir: &Path,
    filter: NameFilter,
    notify: &Arc<Notify>,
) -> Result<RecommendedWatcher, WatchError> {
    let failed = |source| WatchError {
        path: dir.to_owned(),
        source,
    };
    let mut targets = Targets::of(dir, filter);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let filter_targets = targets.clone();
        let waker = Arc::clone(notify);
        let handler = move |event: notify::Result<Event>| {
            // After an error, events may be missing.
            if event.map_or(true, |event| filter_targets.is_relevant(&event, filter)) {
                waker.notify_one();
            }
        };
        let config = Config::default().with_event_kinds(EVENT_KINDS);
        let mut watcher = RecommendedWatcher::new(handler, config).map_err(failed)?;
        let mut is_changed = false;
        for place in targets.places() {
            match watcher.watch(place, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                // Removed since the path was resolved: the result below differs then.
                Err(error) if is_absent(&error) => is_changed = true,
                Err(error) => return Err(failed(error)),
            }
        }
        // Resolves the path again, to detect changes between the first resolution and the watch.
        let now = Targets::of(dir, filter);
        if now == targets && !is_changed {
            return Ok(watcher);
        }
        if attempts == MAX_ATTEMPTS {
            // Links keep changing. The notification causes another attempt.
            notify.notify_one();
            return Ok(watcher);
        }
        targets = now;
    }
}

fn is_absent(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The paths to watch, which also filter the events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Targets {
    /// The resolved directory; its entries are filtered by name.
    folder: Option<PathBuf>,
    /// Links and files on the path; other entries of their directories are ignored.
    exact: BTreeSet<PathBuf>,
}

impl Targets {
    /// Resolves the path of the directory and the symbolic links in it.
    fn of(dir: &Path, filter: NameFilter) -> Self {
        let mut targets = Self::default();
        let Some(folder) = targets.walk(dir) else {
            return targets;
        };
        if let Ok(entries) = std::fs::read_dir(&folder) {
            for entry in entries.flatten() {
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                if is_link && filter(&entry.file_name()) {
                    targets.walk(&entry.path());
                }
            }
        }
        targets.folder = Some(folder);
        targets
    }

    /// Resolves `path` and adds every link on it and its end. Returns `None` if it does not exist: then its first missing component
    /// is added.
    fn walk(&mut self, path: &Path) -> Option<PathBuf> {
        let mut components: Vec<PathBuf> = parts(path);
        let mut resolved = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = components.pop() {
            if part == Path::new("..") {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&part);
            let Ok(kind) = std::fs::symlink_metadata(&next).map(|meta| meta.file_type()) else {
                self.exact.insert(next);
                return None;
            };
            if !kind.is_symlink() {
                resolved = next;
                continue;
            }
            self.exact.insert(next.clone());
            links += 1;
            let target = std::fs::read_link(&next).ok()?;
            if links > MAX_LINKS {
                return None;
            }
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            components.extend(parts(&target));
        }
        self.exact.insert(resolved.clone());
        Some(resolved)
    }

    /// The directories to watch: the resolved directory, and the parent of each exact path.
    fn places(&self) -> BTreeSet<&Path> {
        let parents = self.exact.iter().filter_map(|path| path.parent());
        self.folder.as_deref().into_iter().chain(parents).collect()
    }

    fn is_relevant(&self, event: &Event, filter: NameFilter) -> bool {
        if event.need_rescan() {
            return true;
        }
        match event.kind {
            // Our own reads open files; only a close after writing is relevant.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            EventKind::Access(_) => return false,
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => {}
        }
        event.paths.iter().any(|path| {
            let in_directory = path.parent() == self.folder.as_deref() && self.folder.is_some();
            self.exact.contains(path)
                // A watched directory was itself removed.
                || self.places().contains(path.as_path())
                || in_directory && path.file_name().is_some_and(filter)
        })
    }
}

/// The components of a path in reverse order, without `/` and `.`.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| PathBuf::from(OsStr::from_bytes(part.as_os_str().as_bytes())))
        .collect()
}

#[cfg(test)]
mod tests;
