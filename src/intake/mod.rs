//! Reads the manifest directory and determines the changes to the store.
//! Out of scope: parsing. Events of the watcher only trigger a read of the whole directory.
//!
//! # Why
//! A save is not one event. `cp` truncates a file before it writes it, vim renames the old file before it writes the new one, and
//! `git checkout` does both to many files in sequence. A full disk, a missing mount and a power failure can also leave files or groups
//! missing. So missing input alone is not a request to delete. A group is deleted when its file specifies that it has no groups
//! (`host_groups: []`), or when the group's file, or the group in it, is missing from the same directory in which it was last seen. Both
//! must persist for a grace period (`--removal-grace`) and over at least two reads.

mod conflicts;
mod directory;
mod files;
mod folder;
mod missing;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::api::allowed::AllowedDirectories;
use crate::api::host_group::{DirectoryId, HostGroup, Origin};
use crate::api::manifest::{Draft, Problem};
use crate::api::meta::Name;

pub use directory::{Stamp, id};
pub use folder::{Error, FileResult, Listing, read_directory};
pub use missing::KeptReason;
pub use watch::{Watch, WatchError};

use files::Files;

/// Default of the removal grace period.
pub const REMOVAL_GRACE: Duration = Duration::from_secs(2);

/// The result of a read of the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntakePlan {
    /// The directory that was read.
    pub directory: Option<DirectoryId>,
    /// Groups to store: new, changed, or moved to another file. Unchanged groups are not included.
    pub upserts: Vec<(Draft, Origin)>,
    /// Groups that are stored as their files specify, from files that were last seen in another directory.
    pub relocated: Vec<Name>,
    /// Groups that have been absent for the whole removal grace period.
    pub deletions: Vec<Name>,
    /// Groups that no file defines and that are kept, and why.
    pub kept: BTreeMap<Name, KeptReason>,
    /// The files without errors.
    pub sound: BTreeSet<PathBuf>,
    /// Errors by file. The groups of such a file are not changed.
    pub problems: Vec<(PathBuf, Vec<Problem>)>,
    /// Warnings by file: input that is valid, but probably a mistake.
    pub warnings: Vec<(PathBuf, Vec<String>)>,
    /// Files that are not manifests, but have names that resemble one.
    pub others: Vec<PathBuf>,
    /// When to read the directory again without a change: the end of a grace period, for a removal or for a file that is being written.
    pub again: Option<Instant>,
    /// Whether part of the directory is on a file system that does not report all changes.
    pub is_silent: bool,
}

impl IntakePlan {
    /// Schedules another read at `at` or earlier.
    fn schedule_read(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |other| other.min(at)));
    }
}

/// Results of earlier reads. Not persistent: after a restart, grace periods start again.
#[derive(Debug, Default)]
pub struct History {
    /// Since when each group has been missing.
    missing: BTreeMap<Name, Instant>,
    /// The text of each file that was last accepted.
    texts: BTreeMap<PathBuf, String>,
    /// Files that are open for writing: their text, and since when it has not changed.
    written: BTreeMap<PathBuf, (String, Instant)>,
}

/// The manifest directory and the results of earlier reads.
#[derive(Debug)]
pub struct ManifestDir {
    dir: PathBuf,
    allowed: AllowedDirectories,
    grace: Duration,
    memory: History,
    stamp: Option<Stamp>,
}

impl ManifestDir {
    /// The directory at `dir`; a group must be missing for `grace` before it is deleted. `dir` is part of the origin of groups, so it must
    /// be spelled the same way after a restart.
    pub fn new(dir: impl Into<PathBuf>, allowed: AllowedDirectories, grace: Duration) -> Self {
        Self {
            dir: dir.into(),
            allowed,
            grace,
            memory: History::default(),
            stamp: None,
        }
    }

    /// The path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the directory (blocking, at most 1 MiB per file) and determines the changes; see [`IntakePlan::again`] for the next read. If
    /// listing fails, nothing is changed, and the grace periods of missing groups start again.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn read(&mut self, stored: &[HostGroup], now: Instant) -> Result<IntakePlan, Error> {
        self.stamp = None;
        let listing = read_directory(&self.dir).inspect_err(|_| self.memory.missing.clear())?;
        let input = Input {
            stored,
            listing: &listing,
            allowed: &self.allowed,
            now,
            grace: self.grace,
        };
        let intake = plan(&input, &mut self.memory);
        self.stamp = Some(listing.stamp);
        Ok(intake)
    }

    /// Whether `stat(2)` shows no change since the last read. Blocking.
    pub fn is_unchanged(&self) -> bool {
        let now = directory::stamp(&self.dir).ok();
        now.is_some() && now == self.stamp
    }
}

/// The input of [`plan`].
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// All groups of the store.
    pub stored: &'a [HostGroup],
    /// The content of the directory.
    pub listing: &'a Listing,
    /// Programs and images that manifests may name.
    pub allowed: &'a AllowedDirectories,
    /// Time of the read.
    pub now: Instant,
    /// The removal grace period.
    pub grace: Duration,
}

/// Determines the changes to the store from the listing, the stored groups and earlier reads. Pure.
pub fn plan(input: &Input<'_>, history: &mut History) -> IntakePlan {
    let is_live = |group: &&HostGroup| !group.meta.deleting;
    let stored: Vec<HostGroup> = input.stored.iter().filter(is_live).cloned().collect();
    let mut intake = IntakePlan {
        directory: Some(input.listing.id.clone()),
        others: input.listing.others.clone(),
        is_silent: input.listing.is_silent,
        ..IntakePlan::default()
    };
    let mut files = Files::parse(input, &stored, history, &mut intake);
    conflicts::remove_conflicts(&mut files, &stored, input);
    let claims = files.claims();
    let by_name: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();
    for (draft, path) in &claims {
        let origin = Origin::File((*path).clone());
        let stored_group = by_name.get(&draft.name);
        let mut draft = (*draft).clone();
        // The file may be incomplete: the count is not lowered until the writer has closed it.
        if let Some(group) = stored_group
            && draft.spec.count < group.spec.count
            && files.is_written(path)
        {
            draft.spec.count = group.spec.count;
            let reason = KeptReason::Written((*path).clone());
            intake.kept.insert(draft.name.clone(), reason);
        }
        let is_same = stored_group.is_some_and(|group| {
            group.spec == draft.spec && group.origin == origin && !group.adopted
        });
        let seen_here = stored_group.is_some_and(|g| g.seen_in.as_ref() == Some(&input.listing.id));
        match (is_same, seen_here) {
            (true, true) => {}
            (true, false) => intake.relocated.push(draft.name),
            (false, _) => intake.upserts.push((draft, origin)),
        }
    }
    missing::plan(input, &stored, &files, history, &mut intake);
    for (path, drafts) in files.sound() {
        let warnings: Vec<String> = drafts.iter().flat_map(|d| d.warnings.clone()).collect();
        if !warnings.is_empty() {
            intake.warnings.push((path.clone(), warnings));
        }
    }
    intake.sound = files.sound().keys().cloned().collect();
    intake.problems = files.into_problems();
    intake
}

#[cfg(test)]
mod tests;
