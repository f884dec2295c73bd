//! READS: the manifests folder into what the store is to be told.
//! Out of scope: parsing; the watcher only wakes us, the whole folder is re-read.
//!
//! # Why
//! A save is not one event. `cp` empties a file before it fills it, vim moves the old one away before it writes the new one,
//! `git checkout` does both to many files in a row. A disk that is full, a mount that is missing and a machine that lost its power
//! leave an emptier folder, too. So input that is missing is no request to delete anything. A group is deleted when its file states that
//! it has no groups (`host_groups: []`), or when the group's file, or the group in it, is gone from the very directory in which it was
//! last seen. Both must last for as long as the caller asks (`--removal-grace`), over at least two readings.

mod directory;
mod files;
mod folder;
mod missing;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::api::allowed::Allowed;
use crate::api::host_group::{DirectoryId, HostGroup, Origin};
use crate::api::manifest::{Draft, Problem};
use crate::api::meta::Name;

pub use directory::{Stamp, id};
pub use folder::{Error, FileReading, Listing, is_manifest, read_folder};
pub use missing::Kept;
pub use watch::{Watch, WatchError};

use files::Files;

/// How long a removal must last by default.
pub const REMOVAL_GRACE: Duration = Duration::from_secs(2);

/// What follows from one reading of the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intake {
    /// Which directory was read.
    pub directory: Option<DirectoryId>,
    /// Groups to store: new, changed, or moved to another file. What is stored already is not repeated.
    pub upserts: Vec<(Draft, Origin)>,
    /// Groups that are stored as their files specify, from files that were last seen in another directory.
    pub seen: Vec<Name>,
    /// Groups that have been absent for the whole removal grace period.
    pub deletions: Vec<Name>,
    /// Groups that are in no file and stay, and why.
    pub kept: BTreeMap<Name, Kept>,
    /// What is wrong, by file. Such a file's groups stay as they are.
    pub problems: Vec<(PathBuf, Vec<Problem>)>,
    /// What is allowed but surely not meant, by file.
    pub warnings: Vec<(PathBuf, Vec<String>)>,
    /// Files that somebody may take for manifests, and that are none.
    pub others: Vec<PathBuf>,
    /// When the folder is to be read again although nothing changes: a removal, or a file that is being written, is waited for.
    pub again: Option<Instant>,
    /// Part of the folder lies on a file system that reports no changes.
    pub is_silent: bool,
}

impl Intake {
    /// Asks for another reading, at that moment or earlier.
    fn look_again(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |before| before.min(at)));
    }
}

/// What earlier readings found. It is lost with the process: without it more is kept.
#[derive(Debug, Default)]
pub struct Memory {
    /// Since when a group could be removed.
    missing: BTreeMap<Name, Instant>,
    /// What was last taken from each file.
    texts: BTreeMap<PathBuf, String>,
    /// Files that somebody writes: what is in them, and since when.
    written: BTreeMap<PathBuf, (String, Instant)>,
}

/// The config folder, and what its last readings found.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    allowed: Allowed,
    grace: Duration,
    memory: Memory,
    stamp: Option<Stamp>,
}

impl Folder {
    /// The folder at `dir`; a removal must last for `grace`. Two spellings of one path are two origins: hand in one and the same.
    pub fn new(dir: impl Into<PathBuf>, allowed: Allowed, grace: Duration) -> Self {
        Self {
            dir: dir.into(),
            allowed,
            grace,
            memory: Memory::default(),
            stamp: None,
        }
    }

    /// The path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the folder (blocking, at most 1 MiB a file) and returns what follows; see [`Intake::again`]. When listing fails
    /// nothing follows, and what was missing before must be missing for the whole time again.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn read(&mut self, stored: &[HostGroup], now: Instant) -> Result<Intake, Error> {
        self.stamp = None;
        let listing = read_folder(&self.dir).inspect_err(|_| self.memory.missing.clear())?;
        let look = Look {
            stored,
            listing: &listing,
            allowed: &self.allowed,
            now,
            grace: self.grace,
        };
        let intake = plan(&look, &mut self.memory);
        self.stamp = Some(listing.stamp);
        Ok(intake)
    }

    /// Whether the folder is, as far as `stat` shows, what the last reading found. Blocking.
    pub fn is_unchanged(&self) -> bool {
        let now = directory::stamp(&self.dir).ok();
        now.is_some() && now == self.stamp
    }
}

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Every group of the store.
    pub stored: &'a [HostGroup],
    /// What was read.
    pub listing: &'a Listing,
    /// Programs and images that manifests may name.
    pub allowed: &'a Allowed,
    /// When it was read.
    pub now: Instant,
    /// How long a removal must last.
    pub grace: Duration,
}

/// What follows from a reading, given what is stored and what was read before. Pure.
pub fn plan(look: &Look<'_>, memory: &mut Memory) -> Intake {
    let living = |group: &&HostGroup| !group.meta.deleting;
    let stored: Vec<HostGroup> = look.stored.iter().filter(living).cloned().collect();
    let mut intake = Intake {
        directory: Some(look.listing.id.clone()),
        others: look.listing.others.clone(),
        is_silent: look.listing.is_silent,
        ..Intake::default()
    };
    let mut files = Files::parse(look, &stored, memory, &mut intake);
    files.settle_conflicts(&stored, look);
    let claims = files.claims();
    let by_name: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();
    for (draft, path) in &claims {
        let origin = Origin::File((*path).clone());
        let before = by_name.get(&draft.name);
        let mut draft = (*draft).clone();
        // More may come: until the writer is done, nothing is taken away.
        if let Some(group) = before
            && draft.spec.count < group.spec.count
            && files.is_written(path)
        {
            draft.spec.count = group.spec.count;
            let why = Kept::Written((*path).clone());
            intake.kept.insert(draft.name.clone(), why);
        }
        let is_same = before.is_some_and(|group| {
            group.spec == draft.spec && group.origin == origin && !group.adopted
        });
        let was_here = before.is_some_and(|g| g.seen_in.as_ref() == Some(&look.listing.id));
        match (is_same, was_here) {
            (true, true) => {}
            (true, false) => intake.seen.push(draft.name),
            (false, _) => intake.upserts.push((draft, origin)),
        }
    }
    missing::plan(look, &stored, &files, memory, &mut intake);
    for (path, drafts) in files.sound() {
        let warnings: Vec<String> = drafts.iter().flat_map(|d| d.warnings.clone()).collect();
        if !warnings.is_empty() {
            intake.warnings.push((path.clone(), warnings));
        }
    }
    intake.problems = files.into_problems();
    intake
}

#[cfg(test)]
mod tests;
