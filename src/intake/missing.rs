//! Groups that no file defines any more: which are deleted, and why others are kept.
//! Out of scope: which groups the files define.

use std::fmt;
use std::path::{Path, PathBuf};

use super::files::Files;
use super::{History, Input, IntakePlan};
use crate::api::host_group::{HostGroup, Origin};

/// Why a group that no file defines is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptReason {
    /// It was adopted after the state was lost, and its file has not been seen since.
    Adopted,
    /// Its file was last seen in a different directory than the one that is at the path now.
    OtherDirectory(PathBuf),
    /// A process has its file open for writing.
    Written(PathBuf),
    /// An invalid or unreadable file may define it.
    MaybeDefinedIn(PathBuf),
    /// A file with a similar name exists that is not a manifest.
    Renamed(PathBuf),
}

impl fmt::Display for KeptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adopted => f.write_str(
                "no file defines it, and it was adopted after the state was lost: it is kept until its file is found again; remove it with `slicectl delete`",
            ),
            Self::OtherDirectory(dir) => write!(
                f,
                "no file in {} defines it, and this is not the directory in which its file was last seen (it is not mounted, or was replaced): it is kept; restore the file, or remove the group with `slicectl delete`",
                dir.display()
            ),
            Self::Written(path) => write!(
                f,
                "a process has {} open for writing: nothing is removed until it is closed",
                path.display()
            ),
            Self::MaybeDefinedIn(path) => write!(
                f,
                "no file defines it, but {} is invalid or unreadable and may define it: it is kept until that file is corrected or removed",
                path.display()
            ),
            Self::Renamed(path) => write!(
                f,
                "its file seems to be renamed to {}, which is not a manifest (*.yaml, *.yml): it is kept; rename or remove that file",
                path.display()
            ),
        }
    }
}

/// Decides for each group that no file defines whether it is kept, is in its grace period, or is deleted.
pub(super) fn plan(
    input: &Input<'_>,
    stored: &[HostGroup],
    files: &Files<'_>,
    memory: &mut History,
    intake: &mut IntakePlan,
) {
    let names = files.names();
    let mut missing = std::mem::take(&mut memory.missing);
    for group in stored {
        let name = &group.meta.name;
        if names.contains(name) || files.holds(group) {
            continue;
        }
        if let Some(reason) = reason(input, stored, files, group) {
            intake.kept.insert(name.clone(), reason);
            continue;
        }
        let missing_since = missing.remove(name);
        let since = missing_since.unwrap_or(input.now);
        let deadline = since + input.grace;
        match missing_since.is_some() && input.now >= deadline {
            true => intake.deletions.push(name.clone()),
            false => intake.schedule_read(deadline),
        }
        // If the caller cannot store the deletion, it is due at the next read.
        memory.missing.insert(name.clone(), since);
    }
}

/// Why a group that no file defines is kept. `None` means that its removal is requested.
pub(super) fn reason(
    look: &Input<'_>,
    stored: &[HostGroup],
    files: &Files<'_>,
    group: &HostGroup,
) -> Option<KeptReason> {
    let Origin::File(path) = &group.origin else {
        return None;
    };
    if files.is_written(path) {
        return Some(KeptReason::Written(path.clone()));
    }
    if files.is_empty_list(path) {
        return None;
    }
    if group.adopted {
        return Some(KeptReason::Adopted);
    }
    if group.seen_in.as_ref() != Some(&look.listing.id) {
        let dir = path.parent().unwrap_or(path).to_owned();
        return Some(KeptReason::OtherDirectory(dir));
    }
    if let Some(hiding) = files.may_define(&group.meta.name, stored) {
        return Some(KeptReason::MaybeDefinedIn(hiding.clone()));
    }
    let renamed = look.listing.others.iter().find(|candidate| {
        let stem = |path: &Path| path.file_stem().map(std::ffi::OsStr::to_ascii_lowercase);
        !look.listing.files.iter().any(|file| file.path() == path) && stem(candidate) == stem(path)
    });
    renamed.cloned().map(KeptReason::Renamed)
}
