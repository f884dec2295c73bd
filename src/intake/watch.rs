//! Being woken when something in the config folder may have changed.
//! Out of scope: what changed; whoever is woken reads the whole folder again.
//!
//! # Why
//! inotify watches an inode, and a config folder is a *path*: through symbolic links that are swapped, in directories that
//! are deleted and come back. So after every wake the path is walked again and a new watcher is made for what lies there
//! now, before the old one goes. The path may lead to a file system with a server that does not answer: it is walked on a thread that
//! may block, one at a time, and meanwhile the old watcher stays. Saves are rare and a watcher is cheap; detecting a stale watch is not.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::folder::{is_manifest, resembles_a_manifest};

/// A save is over when nothing has happened for so long.
const QUIET: Duration = Duration::from_millis(60);
/// Someone who never stops saving is not waited for longer than this.
const PATIENCE: Duration = Duration::from_millis(500);
/// For a walk along the path; then the folder is read without waiting for it.
const WALK_DEADLINE: Duration = Duration::from_secs(10);
/// As many links as the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// How often a path that changes under our eyes is looked at again at once.
const MAX_TRIES: u32 = 8;

/// The folder cannot be watched: the inotify limits are used up, or nothing on its path can be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch the config folder {}", path.display())]
pub struct WatchError {
    /// The folder.
    pub path: PathBuf,
    /// What `notify` said.
    #[source]
    pub source: notify::Error,
}

/// Which files of a folder matter, by their names.
pub type Wanted = fn(&OsStr) -> bool;

/// Wake-ups for one folder, which need not exist.
pub struct Watch {
    dir: PathBuf,
    wanted: Wanted,
    woken: Arc<Notify>,
    /// Woken, and not yet reported: so that dropping the future of [`Watch::changed`] loses nothing.
    pending: bool,
    /// Held for its thread and its watches. None: the path has not been walked to its end yet.
    _watcher: Option<RecommendedWatcher>,
    /// A new watcher that is being made.
    arming: Option<JoinHandle<Result<RecommendedWatcher, WatchError>>>,
}

impl Watch {
    /// Watches the manifests in a folder, see [`Watch::of`].
    pub async fn new(dir: &Path) -> Result<Self, WatchError> {
        Self::of(dir, |name| is_manifest(name) || resembles_a_manifest(name)).await
    }

    /// Starts watching. What happens from now on ends in a wake-up; what is there already does not.
    /// A relative `dir` is taken from the current directory.
    pub async fn of(dir: &Path, wanted: Wanted) -> Result<Self, WatchError> {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let woken = Arc::new(Notify::new());
        let mut watch = Self {
            dir,
            wanted,
            woken,
            pending: false,
            _watcher: None,
            arming: None,
        };
        watch.arm().await?;
        Ok(watch)
    }

    /// Waits for a change and then for quiet. Changes while nobody waits are one wake-up later. An error means that the
    /// folder is still watched as it lay before the change: the caller reads it all the same, and says so.
    pub async fn changed(&mut self) -> Result<(), WatchError> {
        if !self.pending {
            self.woken.notified().await;
            self.pending = true;
        }
        let quiet = async { while timeout(QUIET, self.woken.notified()).await.is_ok() {} };
        // Whether quiet came or patience ended, it is time to read.
        let _ = timeout(PATIENCE, quiet).await;
        self.pending = false;
        // Before the caller reads: what happens after the new watcher is in place wakes us again.
        self.arm().await
    }

    /// A new watcher. If the path does not answer in time, the old one stays, and the next call goes on waiting for the new one.
    async fn arm(&mut self) -> Result<(), WatchError> {
        let arming = self.arming.get_or_insert_with(|| {
            let (dir, wanted) = (self.dir.clone(), self.wanted);
            let woken = Arc::clone(&self.woken);
            tokio::task::spawn_blocking(move || arm(&dir, wanted, &woken))
        });
        let Ok(armed) = timeout(WALK_DEADLINE, arming).await else {
            self.pending = true;
            return Ok(());
        };
        self.arming = None;
        let failed = |error: tokio::task::JoinError| WatchError {
            path: self.dir.clone(),
            source: notify::Error::generic(&error.to_string()),
        };
        self._watcher = Some(armed.map_err(failed)??);
        Ok(())
    }
}

/// A new watcher for what lies on the path now.
fn arm(dir: &Path, wanted: Wanted, woken: &Arc<Notify>) -> Result<RecommendedWatcher, WatchError> {
    let failed = |source| WatchError {
        path: dir.to_owned(),
        source,
    };
    let mut targets = Targets::of(dir, wanted);
    let mut tries = 0;
    loop {
        tries += 1;
        let concern = targets.clone();
        let waker = Arc::clone(woken);
        let told = move |event: notify::Result<Event>| {
            // An error of the queue may hide anything.
            if event.map_or(true, |event| concern.concerned_by(&event, wanted)) {
                waker.notify_one();
            }
        };
        let mut watcher = RecommendedWatcher::new(told, Config::default()).map_err(failed)?;
        let mut gone = false;
        for place in targets.places() {
            match watcher.watch(place, RecursiveMode::NonRecursive) {
                Ok(()) => {}
                // Gone since we looked: the look below is different then.
                Err(error) if is_absent(&error) => gone = true,
                Err(error) => return Err(failed(error)),
            }
        }
        // What changed between the look and the watch would be lost: look once more.
        let now = Targets::of(dir, wanted);
        if now == targets && !gone {
            return Ok(watcher);
        }
        if tries == MAX_TRIES {
            // Someone keeps swapping links; the change that we cannot catch wakes us again.
            woken.notify_one();
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

/// What to watch, and which events matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Targets {
    /// The folder itself, resolved: what is in it matters by its name.
    folder: Option<PathBuf>,
    /// Links and files on the way: these matter, their neighbours do not.
    exact: BTreeSet<PathBuf>,
}

impl Targets {
    /// Walks to the folder, and from it to whatever its manifests link to.
    fn of(dir: &Path, wanted: Wanted) -> Self {
        let mut targets = Self::default();
        let Some(folder) = targets.walk(dir) else {
            return targets;
        };
        if let Ok(entries) = std::fs::read_dir(&folder) {
            for entry in entries.flatten() {
                let link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                if link && wanted(&entry.file_name()) {
                    targets.walk(&entry.path());
                }
            }
        }
        targets.folder = Some(folder);
        targets
    }

    /// Notes every link on `path`, and its end. `None` when it leads nowhere: the first missing part is noted then,
    /// in the nearest directory there is.
    fn walk(&mut self, path: &Path) -> Option<PathBuf> {
        let mut left: Vec<PathBuf> = parts(path);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == Path::new("..") {
                here.pop();
                continue;
            }
            let next = here.join(&part);
            let Ok(kind) = std::fs::symlink_metadata(&next).map(|meta| meta.file_type()) else {
                self.exact.insert(next);
                return None;
            };
            if !kind.is_symlink() {
                here = next;
                continue;
            }
            self.exact.insert(next.clone());
            links += 1;
            let target = std::fs::read_link(&next).ok()?;
            if links > MAX_LINKS {
                return None;
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            left.extend(parts(&target));
        }
        self.exact.insert(here.clone());
        Some(here)
    }

    /// The directories to watch: the folder, and where each exact thing stands.
    fn places(&self) -> BTreeSet<&Path> {
        let parents = self.exact.iter().filter_map(|path| path.parent());
        self.folder.as_deref().into_iter().chain(parents).collect()
    }

    fn concerned_by(&self, event: &Event, wanted: Wanted) -> bool {
        if event.need_rescan() {
            return true;
        }
        match event.kind {
            // Our own reading opens files; only the end of a writing matters.
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
            EventKind::Access(_) => return false,
            EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Remove(_)
            | EventKind::Other => {}
        }
        event.paths.iter().any(|path| {
            let inside = path.parent() == self.folder.as_deref() && self.folder.is_some();
            self.exact.contains(path)
                // A watched directory itself went away.
                || self.places().contains(path.as_path())
                || inside && path.file_name().is_some_and(wanted)
        })
    }
}

/// The parts of a path, last first, without `/` and `.`.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components()
        .rev()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .map(|part| PathBuf::from(OsStr::from_bytes(part.as_os_str().as_bytes())))
        .collect()
}

#[cfg(test)]
mod tests;
