//! Groups that are in no file any more: which are to be deleted, and why the others stay.
//! Out of scope: which groups the files have.

use std::fmt;
use std::path::{Path, PathBuf};

use super::files::Files;
use super::{Intake, Look, Memory};
use crate::api::host_group::{HostGroup, Origin};

/// Why a group stays that is in no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was adopted after the state was lost, and its file was not seen since.
    Adopted,
    /// Its file was last seen in another directory than the one that lies on the path now.
    OtherDirectory(PathBuf),
    /// Somebody has its file open for writing.
    Written(PathBuf),
    /// A file that cannot be understood may have it.
    Hidden(PathBuf),
    /// A file of nearly the same name is there, and is no manifest.
    Renamed(PathBuf),
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopted => f.write_str(
                "it was adopted after the state was lost, and no file names it: it stays until its file was seen again, or `slicectl delete` removes it",
            ),
            Self::OtherDirectory(dir) => write!(
                f,
                "no file in {} names it, and this is not the directory in which its file was last seen (a file system that is not mounted, or another directory in its place): nothing is deleted; bring the file back, or `slicectl delete` removes it",
                dir.display()
            ),
            Self::Written(path) => write!(
                f,
                "a process has {} open for writing: nothing is taken away before it is closed",
                path.display()
            ),
            Self::Hidden(path) => write!(
                f,
                "no file names it, but {} cannot be used and may have it: nothing is deleted until that file is corrected or removed",
                path.display()
            ),
            Self::Renamed(path) => write!(
                f,
                "its file seems to be {} now, which is not a manifest (*.yaml, *.yml): nothing is deleted; rename or remove that file",
                path.display()
            ),
        }
    }
}

/// Sorts the groups that no file names into those that stay, those that are waited for and those that go.
pub(super) fn plan(
    look: &Look<'_>,
    stored: &[HostGroup],
    files: &Files<'_>,
    memory: &mut Memory,
    intake: &mut Intake,
) {
    let named = files.names();
    let mut missing = std::mem::take(&mut memory.missing);
    for group in stored {
        let name = &group.meta.name;
        if named.contains(name) || files.holds(group) {
            continue;
        }
        if let Some(why) = reason(look, stored, files, group) {
            intake.kept.insert(name.clone(), why);
            continue;
        }
        let before = missing.remove(name);
        let since = before.unwrap_or(look.now);
        let until = since + look.grace;
        match before.is_some() && look.now >= until {
            true => intake.deletions.push(name.clone()),
            false => intake.look_again(until),
        }
        // Whoever cannot store the deletion finds it due at the next reading.
        memory.missing.insert(name.clone(), since);
    }
}

/// Why a group stays that no file names. None: its removal is asked for.
pub(super) fn reason(
    look: &Look<'_>,
    stored: &[HostGroup],
    files: &Files<'_>,
    group: &HostGroup,
) -> Option<Kept> {
    let Origin::File(path) = &group.origin else {
        return None;
    };
    if files.is_written(path) {
        return Some(Kept::Written(path.clone()));
    }
    if files.says_none(path) {
        return None;
    }
    if group.adopted {
        return Some(Kept::Adopted);
    }
    if group.seen_in.as_ref() != Some(&look.listing.id) {
        let dir = path.parent().unwrap_or(path).to_owned();
        return Some(Kept::OtherDirectory(dir));
    }
    if let Some(hiding) = files.may_hide(&group.meta.name, stored) {
        return Some(Kept::Hidden(hiding.clone()));
    }
    let renamed = look.listing.others.iter().find(|other| {
        let stem = |path: &Path| path.file_stem().map(std::ffi::OsStr::to_ascii_lowercase);
        !look.listing.files.iter().any(|file| file.path() == path) && stem(other) == stem(path)
    });
    renamed.cloned().map(Kept::Renamed)
}
