//! Parses and validates the manifests of a read, first each file and then all together.
//! Out of scope: groups that none of the files defines.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::folder::FileResult;
use super::{History, Input, IntakePlan};
use crate::api::allowed::AllowedDirectories;
use crate::api::host_group::{HostGroup, Origin};
use crate::api::manifest::{self, Draft, Location, Position, Problem, Source};
use crate::api::meta::Name;

/// The files of a read.
pub(super) struct Files<'l> {
    sound: BTreeMap<PathBuf, Vec<Draft>>,
    broken: BTreeMap<PathBuf, Vec<Problem>>,
    /// Files that are open for writing and changed within the grace period: they are parsed later.
    changing: BTreeSet<PathBuf>,
    /// Files that are open for writing.
    written: BTreeSet<PathBuf>,
    /// The text of each readable file.
    texts: HashMap<&'l Path, &'l str>,
}

impl<'l> Files<'l> {
    pub(super) fn parse(
        look: &Input<'l>,
        stored: &[HostGroup],
        memory: &mut History,
        intake: &mut IntakePlan,
    ) -> Self {
        let mut files = Self {
            sound: BTreeMap::new(),
            broken: BTreeMap::new(),
            changing: BTreeSet::new(),
            written: BTreeSet::new(),
            texts: HashMap::new(),
        };
        for reading in &look.listing.files {
            match reading {
                FileResult::Readable {
                    path,
                    source,
                    is_written,
                } => {
                    files.texts.insert(path, &source.text);
                    if *is_written {
                        files.written.insert(path.clone());
                    }
                    files.take(look, stored, memory, intake, (path, source));
                }
                FileResult::Unreadable { path, error } => {
                    let name = path.display().to_string();
                    let problem = Problem::of_file(&name, format!("cannot read the file: {error}"));
                    files.broken.insert(path.clone(), vec![problem]);
                }
            }
        }
        let paths: BTreeSet<&Path> = look.listing.files.iter().map(FileResult::path).collect();
        memory.texts.retain(|path, _| paths.contains(&**path));
        memory
            .written
            .retain(|path, _| files.written.contains(path));
        files
    }

    fn take(
        &mut self,
        look: &Input<'_>,
        stored: &[HostGroup],
        memory: &mut History,
        intake: &mut IntakePlan,
        (path, source): (&PathBuf, &Source),
    ) {
        if self.written.contains(path) {
            let (text, since) = memory
                .written
                .entry(path.clone())
                .or_insert_with(|| (source.text.clone(), look.now));
            if *text != source.text {
                (*text, *since) = (source.text.clone(), look.now);
            }
            let settled_at = *since + look.grace;
            let is_accepted = memory.texts.get(path) == Some(&source.text);
            if look.now < settled_at && !is_accepted {
                self.changing.insert(path.clone());
                intake.schedule_read(settled_at);
                return;
            }
        }
        let previous = memory.texts.get(path);
        let drafts = parse(source, look.allowed).and_then(|drafts| {
            match truncation(source, previous, path, &drafts, stored) {
                Some(problem) => Err(vec![problem]),
                None => Ok(drafts),
            }
        });
        match drafts {
            Ok(drafts) => {
                memory.texts.insert(path.clone(), source.text.clone());
                self.sound.insert(path.clone(), drafts);
            }
            Err(problems) => {
                self.broken.insert(path.clone(), manifest::shown(problems));
            }
        }
    }

    /// Moves a valid file to the broken ones.
    pub(super) fn refuse(&mut self, path: PathBuf, problem: Problem) {
        self.sound.remove(&path);
        self.broken.entry(path).or_default().push(problem);
    }

    /// Whether a stored group is kept unchanged, regardless of the valid files.
    pub(super) fn holds(&self, group: &HostGroup) -> bool {
        match &group.origin {
            Origin::Apply | Origin::Fleet { .. } => true,
            Origin::File(path) => self.broken.contains_key(path) || self.changing.contains(path),
        }
    }

    /// Whether a process has the file open for writing.
    pub(super) fn is_written(&self, path: &Path) -> bool {
        self.written.contains(path)
    }

    /// Whether the file specifies an empty list of groups. A file without the list is broken.
    pub(super) fn is_empty_list(&self, path: &Path) -> bool {
        self.sound.get(path).is_some_and(Vec::is_empty)
    }

    /// A file that is not parsed and may define the group: it contains the name of the group, or it cannot be read and is not the file of
    /// another group.
    pub(super) fn may_define(&self, name: &Name, stored: &[HostGroup]) -> Option<&PathBuf> {
        let is_origin = |path: &Path| {
            let mut origins = stored.iter().map(|group| &group.origin);
            origins.any(|origin| matches!(origin, Origin::File(home) if home == path))
        };
        let unparsed = self.broken.keys().chain(&self.changing);
        let may_define = |path: &&PathBuf| match self.texts.get(path.as_path()) {
            Some(text) => text.contains(name.as_str()),
            None => !is_origin(path),
        };
        unparsed.into_iter().find(may_define)
    }

    pub(super) fn sound(&self) -> &BTreeMap<PathBuf, Vec<Draft>> {
        &self.sound
    }

    pub(super) fn claims(&self) -> Vec<(&Draft, &PathBuf)> {
        self.sound
            .iter()
            .flat_map(|(path, drafts)| drafts.iter().map(move |draft| (draft, path)))
            .collect()
    }

    pub(super) fn names(&self) -> BTreeSet<Name> {
        let drafts = self.sound.values().flatten();
        drafts.map(|draft| draft.name.clone()).collect()
    }

    pub(super) fn into_problems(self) -> Vec<(PathBuf, Vec<Problem>)> {
        self.broken.into_iter().collect()
    }
}

/// Parses a file and checks that its groups use only allowed programs and images.
fn parse(source: &Source, allowed: &AllowedDirectories) -> Result<Vec<Draft>, Vec<Problem>> {
    let drafts = manifest::parse(source)?;
    let objections = drafts.iter().flat_map(|d| allowed.objections(d));
    let fleet_only = drafts.iter().flat_map(Draft::fleet_only);
    let problems: Vec<Problem> = fleet_only.chain(objections).collect();
    match problems.is_empty() {
        true => Ok(drafts),
        false => Err(problems),
    }
}

/// A problem if the text seems to be truncated: it ends within a line of the text that was last accepted from the file. If the file
/// was not read before in this process, its last line must end with a line feed before groups are removed or made smaller.
fn truncation(
    source: &Source,
    before: Option<&String>,
    path: &Path,
    drafts: &[Draft],
    stored: &[HostGroup],
) -> Option<Problem> {
    let text = &source.text;
    // A closing bracket shows that the text is complete, too.
    if text.ends_with(['\n', ']', '}']) {
        return None;
    }
    let is_truncated = match before {
        Some(previous) => previous
            .strip_prefix(text.as_str())
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['\n', '\r'])),
        None => removes_groups(path, drafts, stored),
    };
    is_truncated.then(|| {
        let line = text.lines().count().max(1);
        let column = text.lines().last().map_or(0, |last| last.chars().count()) + 1;
        Problem {
            at: Location::new(&source.name, Position { line, column }),
            field: String::new(),
            message: "the file seems truncated within its last line, so nothing is removed; if it is complete, add a line feed at the end"
                .to_owned(),
        }
    })
}

/// Whether the file defines fewer groups than are stored from it, or groups with a lower count.
fn removes_groups(path: &Path, drafts: &[Draft], stored: &[HostGroup]) -> bool {
    let is_own = |group: &&HostGroup| matches!(&group.origin, Origin::File(origin_path) if origin_path == path);
    stored.iter().filter(is_own).any(|group| {
        let draft = drafts.iter().find(|draft| draft.name == group.meta.name);
        draft.is_none_or(|draft| draft.spec.count < group.spec.count)
    })
}
