//! Watches of directories with inotify(7).
//! Out of scope: which changes are of interest.
//!
//! inotify watches an inode. A file that is named in a request is watched through its directory: editors and copies replace it by
//! another inode, and it need not exist. Subdirectories have a watch each; one that appears is read after it is watched, so that nothing
//! in it is missed, and what appears between the two may be reported twice. Links to directories are not followed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};

use super::super::super::error::Error;
use super::super::refusal;
use crate::guest::archive;

/// The maximum number of directories of one stream.
const DIRECTORIES: usize = 8192;

/// The maximum number of files in new directories that are reported for one event.
const FILES: usize = 16 << 10;

/// Size of the buffer for events, in bytes: some dozens of events.
const BUFFER: usize = 8 << 10;

/// What has happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It exists under a new name.
    Create,
    /// Its content has changed.
    Write,
    /// It was removed.
    Remove,
    /// It has another name now; the new one is [`Self::Create`].
    Rename,
    /// Its permissions, owner or times have changed.
    Chmod,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Create,
        Self::Write,
        Self::Remove,
        Self::Rename,
        Self::Chmod,
    ];

    /// As in requests and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::Chmod => "chmod",
        }
    }

    fn of(mask: EventMask) -> Option<Self> {
        match mask {
            _ if mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) => Some(Self::Create),
            _ if mask.contains(EventMask::MODIFY) => Some(Self::Write),
            _ if mask.intersects(EventMask::DELETE | EventMask::DELETE_SELF) => Some(Self::Remove),
            _ if mask.intersects(EventMask::MOVED_FROM | EventMask::MOVE_SELF) => {
                Some(Self::Rename)
            }
            _ if mask.contains(EventMask::ATTRIB) => Some(Self::Chmod),
            _ => None,
        }
    }
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What has happened.
    pub kind: Kind,
    /// To which file.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A directory with a watch.
#[derive(Debug)]
struct Dir {
    path: PathBuf,
    /// The names of interest; `None`: all.
    only: Option<BTreeSet<OsString>>,
    /// Whether the request names it: no watch of its parent reports its removal.
    is_root: bool,
}

/// The watches.
pub struct Tree {
    events: EventStream<Vec<u8>>,
    watches: Watches,
    dirs: HashMap<WatchDescriptor, Dir>,
    is_recursive: bool,
}

impl Tree {
    /// Watches directories, or files through their directories. Blocks.
    ///
    /// # Errors
    /// 404: neither the path nor its parent exists. 400: there are too many directories. 503: a limit of inotify is reached.
    pub fn new(paths: &[PathBuf], is_recursive: bool) -> Result<Self, Error> {
        let unavailable = |error: io::Error| Error::unavailable(format!("inotify: {error}"));
        let inotify = Inotify::init().map_err(unavailable)?;
        let events = inotify.into_event_stream(vec![0; BUFFER]);
        let events = events.map_err(unavailable)?;
        let mut tree = Self {
            watches: events.watches(),
            events,
            dirs: HashMap::new(),
            is_recursive,
        };
        for path in paths {
            tree.add_root(path)?;
        }
        Ok(tree)
    }

    fn add_root(&mut self, path: &Path) -> Result<(), Error> {
        let fail = |error| refusal(&archive::Error::file("watch", path, error));
        let is_dir = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            found => found.map_err(fail)?.is_dir(),
        };
        match (is_dir, path.parent(), path.file_name()) {
            (false, Some(parent), Some(name)) => {
                let dir = Dir {
                    path: parent.to_owned(),
                    only: Some(BTreeSet::from([name.to_owned()])),
                    is_root: true,
                };
                let watch = self.watches.add(parent, mask()).map_err(fail)?;
                self.insert(watch, dir);
            }
            _ => {
                let limit = DIRECTORIES.saturating_sub(self.dirs.len());
                let found = scan(
                    &self.watches,
                    path,
                    WatchMask::empty(),
                    self.is_recursive,
                    limit,
                );
                for (watch, dir) in found.map_err(fail)?.dirs {
                    let is_root = dir == path;
                    let path = dir;
                    self.insert(
                        watch,
                        Dir {
                            path,
                            only: None,
                            is_root,
                        },
                    );
                }
            }
        }
        Ok(())
    }

    /// Two paths of a request may be the same directory, which has one watch.
    fn insert(&mut self, watch: WatchDescriptor, dir: Dir) {
        let Some(known) = self.dirs.get_mut(&watch) else {
            self.dirs.insert(watch, dir);
            return;
        };
        known.is_root |= dir.is_root;
        known.only = match (known.only.take(), dir.only) {
            (Some(known), Some(more)) => Some(known.into_iter().chain(more).collect()),
            _ => None,
        };
    }

    /// Whether anything is watched.
    pub fn is_watching(&self) -> bool {
        !self.dirs.is_empty()
    }

    /// The next event, for [`Self::changes`]. Dropping the future loses none.
    pub async fn event(&mut self) -> Option<EventOwned> {
        self.events.next().await?.ok()
    }

    /// What an event means; `None` if events were lost, or if there are too many directories.
    pub async fn changes(&mut self, event: EventOwned) -> Option<Vec<Change>> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return None;
        }
        if event.mask.contains(EventMask::IGNORED) {
            self.dirs.remove(&event.wd);
            return Some(Vec::new());
        }
        // Of a watch that was removed.
        let Some(dir) = self.dirs.get(&event.wd) else {
            return Some(Vec::new());
        };
        let is_dir = event.mask.contains(EventMask::ISDIR);
        let (path, is_dir) = match &event.name {
            Some(name) if dir.only.as_ref().is_some_and(|only| !only.contains(name)) => {
                return Some(Vec::new());
            }
            Some(name) => (dir.path.join(name), is_dir),
            None if dir.is_root && dir.only.is_none() => (dir.path.clone(), true),
            None => return Some(Vec::new()),
        };
        let Some(kind) = Kind::of(event.mask) else {
            return Some(Vec::new());
        };
        let mut changes = vec![Change { kind, path, is_dir }];
        if self.is_recursive && is_dir {
            let path = changes[0].path.clone();
            match kind {
                Kind::Create => changes.extend(self.appeared(path).await?),
                Kind::Rename => self.disappeared(&path),
                _ => {}
            }
        }
        Some(changes)
    }

    /// Watches a new directory; returns what is in it already.
    async fn appeared(&mut self, path: PathBuf) -> Option<Vec<Change>> {
        let watches = self.watches.clone();
        let limit = DIRECTORIES.saturating_sub(self.dirs.len());
        let scan = move || scan(&watches, &path, WatchMask::DONT_FOLLOW, true, limit);
        let found = match tokio::task::spawn_blocking(scan).await.ok()? {
            Ok(found) => found,
            // It was removed already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Vec::new()),
            Err(error) => {
                eprintln!("slice-agent: a stream of changes ends: {error}");
                return None;
            }
        };
        for (watch, path) in found.dirs {
            self.insert(
                watch,
                Dir {
                    path,
                    only: None,
                    is_root: false,
                },
            );
        }
        Some(found.files)
    }

    /// Removes the watches of a directory that has another name, perhaps outside: their paths are wrong.
    fn disappeared(&mut self, path: &Path) {
        let below = self.dirs.extract_if(|_, dir| dir.path.starts_with(path));
        for (watch, _) in below {
            // EINVAL: the kernel has removed it.
            let _ = self.watches.remove(watch);
        }
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE
        | WatchMask::MOVE_SELF
        | WatchMask::ATTRIB
        | WatchMask::ONLYDIR
        | WatchMask::EXCL_UNLINK
}

/// Directories that are watched now, and the files in them.
struct Found {
    dirs: Vec<(WatchDescriptor, PathBuf)>,
    files: Vec<Change>,
}

/// Watches a directory, and those below it.
fn scan(
    watches: &Watches,
    path: &Path,
    additional: WatchMask,
    is_recursive: bool,
    limit: usize,
) -> io::Result<Found> {
    let mut watches = watches.clone();
    let mut found = Found {
        dirs: Vec::new(),
        files: Vec::new(),
    };
    let mut pending = vec![path.to_owned()];
    while let Some(dir) = pending.pop() {
        let is_first = found.dirs.is_empty();
        let flags = if is_first {
            additional
        } else {
            WatchMask::DONT_FOLLOW
        };
        let watch = match watches.add(&dir, mask() | flags) {
            // Removed meanwhile.
            Err(error) if !is_first && error.kind() == io::ErrorKind::NotFound => continue,
            watch => watch?,
        };
        found.dirs.push((watch, dir.clone()));
        if found.dirs.len() > limit {
            let text = format!("it contains more than {limit} directories");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        if !is_recursive {
            continue;
        }
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir {
                pending.push(entry.path());
            }
            if found.files.len() < FILES {
                found.files.push(Change {
                    kind: Kind::Create,
                    path: entry.path(),
                    is_dir,
                });
            }
        }
    }
    Ok(found)
}
