//! READS: the manifests folder into what the store is to be told.
//! Not here: parsing; the watcher only wakes us, the whole folder is re-read.
//!
//! # Why
//! A save is not one event. `cp` empties a file before it fills it, vim moves the old one away before it writes the new one,
//! `git checkout` does both to many files in a row. What is half-written and wrong is harmless: a broken file changes nothing.
//! What is half-written and *sound* is not: it is an emptier folder, and groups would be torn down. So a deletion, and only
//! a deletion, must be asked for by two readings in a row, with [`SETTLE`] between them.

mod folder;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::api::allowed::Allowed;
use crate::api::host_group::{HostGroup, Origin};
use crate::api::manifest::{self, Draft, Problem};
use crate::api::meta::Name;
use crate::api::validate::{self, Claim};

pub use folder::{Error, FileReading, is_manifest, read_folder};
pub use watch::{Watch, WatchError};

/// How long after a reading that missed groups the folder is to be read again.
pub const SETTLE: Duration = Duration::from_millis(150);

/// What follows from one reading of the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intake {
    /// Groups to store: new, changed, or moved to another file. What is stored already is not repeated.
    pub upserts: Vec<(Draft, Origin)>,
    /// Groups that are in no file any more, seen twice.
    pub deletions: Vec<Name>,
    /// Groups that are in no file, seen once: read again after [`SETTLE`].
    pub missing: BTreeSet<Name>,
    /// Groups that are in no file and were adopted after the state was lost: missing input is no request to delete them.
    pub kept: Vec<Name>,
    /// What is wrong, by file. Such a file's groups stay as they are.
    pub problems: Vec<(PathBuf, Vec<Problem>)>,
    /// What is allowed but surely not meant, by file.
    pub warnings: Vec<(PathBuf, Vec<String>)>,
}

/// The config folder, and what its last reading missed.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    allowed: Allowed,
    missing: BTreeSet<Name>,
}

impl Folder {
    /// The folder at `dir`. Two spellings of one path are two origins: hand in one and the same.
    pub fn new(dir: impl Into<PathBuf>, allowed: Allowed) -> Self {
        Self {
            dir: dir.into(),
            allowed,
            missing: BTreeSet::new(),
        }
    }

    /// The path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads the folder (blocking, at most 1 MiB a file) and says what follows. When [`Intake::missing`] is not empty,
    /// read again after [`SETTLE`], changed or not. When listing fails nothing follows, and nothing is forgotten.
    pub fn read(&mut self, stored: &[HostGroup]) -> Result<Intake, Error> {
        let readings = read_folder(&self.dir)?;
        let intake = plan(stored, &readings, &self.missing, &self.allowed);
        self.missing.clone_from(&intake.missing);
        Ok(intake)
    }
}

/// What follows from `readings`, given what is stored and what the reading before this one missed. Pure.
pub fn plan(
    stored: &[HostGroup],
    readings: &[FileReading],
    missing_before: &BTreeSet<Name>,
    allowed: &Allowed,
) -> Intake {
    let stored: Vec<HostGroup> = stored
        .iter()
        .filter(|group| !group.meta.deleting)
        .cloned()
        .collect();
    let mut files = Files::parse(readings, allowed);
    files.settle_conflicts(&stored);
    let claims = files.claims();
    let by_name: HashMap<&Name, &HostGroup> = stored.iter().map(|g| (&g.meta.name, g)).collect();

    let mut intake = Intake::default();
    for (draft, path) in &claims {
        let origin = Origin::File((*path).clone());
        let same = |group: &&HostGroup| {
            group.spec == draft.spec && group.origin == origin && !group.adopted
        };
        if by_name.get(&draft.name).filter(|g| same(g)).is_none() {
            intake.upserts.push(((*draft).clone(), origin));
        }
    }
    let claimed: HashSet<&Name> = claims.iter().map(|(draft, _)| &draft.name).collect();
    for group in &stored {
        let name = &group.meta.name;
        if claimed.contains(name) || files.holds(group) {
            continue;
        }
        if group.adopted {
            intake.kept.push(name.clone());
            continue;
        }
        match missing_before.contains(name) {
            true => intake.deletions.push(name.clone()),
            false => {
                intake.missing.insert(name.clone());
            }
        }
    }
    for (path, drafts) in &files.sound {
        let warnings: Vec<String> = drafts.iter().flat_map(|d| d.warnings.clone()).collect();
        if !warnings.is_empty() {
            intake.warnings.push((path.clone(), warnings));
        }
    }
    intake.problems = files.broken.into_iter().collect();
    intake
}

/// The groups of a file that name only programs and images that are allowed.
fn parse(source: &manifest::Source, allowed: &Allowed) -> Result<Vec<Draft>, Vec<Problem>> {
    let drafts = manifest::parse(source)?;
    let problems: Vec<Problem> = drafts.iter().flat_map(|d| allowed.objections(d)).collect();
    match problems.is_empty() {
        true => Ok(drafts),
        false => Err(problems),
    }
}

/// The files, judged one by one and then together.
struct Files {
    sound: BTreeMap<PathBuf, Vec<Draft>>,
    broken: BTreeMap<PathBuf, Vec<Problem>>,
}

impl Files {
    fn parse(readings: &[FileReading], allowed: &Allowed) -> Self {
        let mut files = Self {
            sound: BTreeMap::new(),
            broken: BTreeMap::new(),
        };
        for reading in readings {
            match reading {
                FileReading::Readable { path, source } => match parse(source, allowed) {
                    Ok(drafts) => {
                        files.sound.insert(path.clone(), drafts);
                    }
                    Err(problems) => {
                        files.broken.insert(path.clone(), problems);
                    }
                },
                FileReading::Unreadable { path, error } => {
                    let name = path.display().to_string();
                    let problem = Problem::of_file(&name, format!("cannot be read: {error}"));
                    files.broken.insert(path.clone(), vec![problem]);
                }
            }
        }
        files
    }

    /// Moves files that are at odds with others to the broken ones. Each that goes leaves its stored groups standing, which
    /// may put another at odds; every round takes a file away, so this ends.
    fn settle_conflicts(&mut self, stored: &[HostGroup]) {
        loop {
            let standing: Vec<&HostGroup> = stored.iter().filter(|g| self.holds(g)).collect();
            let claim = |(draft, path): (_, &PathBuf)| Claim {
                draft,
                origin: Origin::File(path.clone()),
            };
            let claims =
                validate::by_precedence(stored, self.claims().into_iter().map(claim).collect());
            let refused: Vec<(Origin, Problem)> = validate::conflicts(&standing, &claims)
                .into_iter()
                .chain(validate::objections_of_orders(stored, &claims))
                .map(|(index, problem)| (claims[index].origin.clone(), problem))
                .collect();
            if refused.is_empty() {
                return;
            }
            for (origin, problem) in refused {
                if let Origin::File(path) = origin {
                    self.sound.remove(&path);
                    self.broken.entry(path).or_default().push(problem);
                }
            }
        }
    }

    /// Whether a stored group stays as it is whatever the sound files say.
    fn holds(&self, group: &HostGroup) -> bool {
        match &group.origin {
            Origin::Apply => true,
            Origin::File(path) => self.broken.contains_key(path),
        }
    }

    fn claims(&self) -> Vec<(&Draft, &PathBuf)> {
        self.sound
            .iter()
            .flat_map(|(path, drafts)| drafts.iter().map(move |draft| (draft, path)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
