//! A VMM that was started when the state directory, and so the VM's own disk, had another path still matches the desired state.
//! Out of scope: the paths of disks ([`crate::reconcile::disk`]).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Desired;
use super::note::{self, Note};
use crate::host::{Error, process};
use crate::owner::Owner;
use crate::vmm::{Launch, NewFile, jailer};

/// The VM's own disk, below `<state>/disks`.
pub(super) struct OwnDisk {
    path: String,
    /// The end of its path, which does not depend on the state directory.
    end: String,
}

impl OwnDisk {
    /// `None`: the VM has no disk of its own, or the path is not valid UTF-8.
    pub(super) fn of(desired: &Desired) -> Option<Self> {
        let Owner::Vm { name, .. } = &desired.label.owner else {
            return None;
        };
        let end = format!("/disks/{name}.img");
        let mut paths = desired.disks.iter().filter_map(|disk| disk.path.to_str());
        let path = paths.find(|path| path.ends_with(&end))?.to_owned();
        Some(Self { path, end })
    }

    /// The disk's earlier path, if that is the only difference between the desired argument and the one that the VMM was started with.
    fn before<'t>(&self, desired: &str, actual: &'t str) -> Option<&'t str> {
        let (head, tail) = desired.split_once(&self.path)?;
        let path = actual.strip_prefix(head)?.strip_suffix(tail)?;
        let is_path =
            path.starts_with('/') && path.ends_with(&self.end) && !path.contains([',', '"']);
        (is_path && path != self.path).then_some(path)
    }

    /// The arguments that a VMM was started with, with the current path of the disk.
    pub(super) fn argv_now(&self, launch: &Launch, actual: Vec<String>) -> Vec<String> {
        if launch.argv.len() != actual.len() {
            return actual;
        }
        let now = |(desired, given): (&String, String)| match self.before(desired, &given) {
            Some(_) => desired.clone(),
            None => given,
        };
        launch.argv.iter().zip(actual).map(now).collect()
    }

    /// Whether a VMM has read this file, apart from the path of the disk.
    pub(super) fn is_same_file(&self, desired: &NewFile, actual: &NewFile) -> bool {
        desired.name == actual.name && self.before(&desired.text, &actual.text).is_some()
    }

    fn previous_disk(
        &self,
        launch: &Launch,
        argv: &[String],
        note: Option<&Note>,
    ) -> Option<PathBuf> {
        let arguments = launch.argv.iter().zip(argv);
        let of_argv = arguments.filter_map(|(desired, given)| self.before(desired, given));
        let files = note.into_iter().flat_map(|noted| noted.files().iter());
        let pairs =
            files.flat_map(|given| launch.files.iter().map(move |desired| (desired, given)));
        let of_files = pairs.filter_map(|(desired, given)| self.before(&desired.text, &given.text));
        of_argv.chain(of_files).next().map(PathBuf::from)
    }
}

impl Note {
    /// The names of those files of `launch` that differ from what the VMM has read.
    pub(super) fn stale(
        note: Option<&Self>,
        launch: &Launch,
        own: Option<&OwnDisk>,
    ) -> Vec<String> {
        let is_same = |file: &NewFile, given_file: &NewFile| {
            file == given_file || own.is_some_and(|own| own.is_same_file(file, given_file))
        };
        let was_read = |file: &&NewFile| {
            note.is_some_and(|noted| {
                noted
                    .files()
                    .iter()
                    .any(|given_file| is_same(file, given_file))
            })
        };
        let stale = launch.files.iter().filter(|file| !was_read(file));
        stale.map(|file| file.name.clone()).collect()
    }
}

/// The message for a VMM that does not use the disk below the state directory any more: that disk is a copy, made while the VMM ran.
///
/// # Errors
/// The state of the process cannot be read.
pub fn uses_another_disk(desired: &Desired, pid: u32) -> Result<Option<String>, Error> {
    let (Some(own), Some(launch)) = (OwnDisk::of(desired), &desired.launch) else {
        return Ok(None);
    };
    let argv = jailer::without_jailer(process::argv(pid)?, Some(launch));
    let note = note::read(&desired.dir)?;
    let Some(old) = own.previous_disk(launch, &argv, note.as_ref()) else {
        return Ok(None);
    };
    // The path in the root file system of the process.
    let seen = Path::new("/proc").join(pid.to_string()).join("root");
    let seen = seen.join(old.strip_prefix("/").unwrap_or(&old));
    let id = |path: &Path| {
        std::fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .ok()
    };
    let (used, now) = (id(&seen), id(Path::new(&own.path)));
    Ok((used.is_some() && used != now).then(|| {
        format!(
            "it still writes to {}, of which {} is a copy: stop the VM before its state directory is copied to another file system",
            old.display(),
            own.path
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_before_the_disk_may_differ() {
        let own = OwnDisk {
            path: "/big/disks/web-1.img".into(),
            end: "/disks/web-1.img".into(),
        };
        let desired = "path=/big/disks/web-1.img,readonly=off";
        for (given, same) in [
            ("path=/old/state/disks/web-1.img,readonly=off", true),
            ("path=/disks/web-1.img,readonly=off", true),
            ("path=/big/disks/web-1.img,readonly=off", false),
            ("path=/old/disks/web-1.img,readonly=on", false),
            ("path=/old/disks/web-2.img,readonly=off", false),
            (
                "path=/old/disks/web-1.img,path=/x/disks/web-1.img,readonly=off",
                false,
            ),
            ("path=old/disks/web-1.img,readonly=off", false),
            ("path=/old/web-1.img,readonly=off", false),
            ("", false),
        ] {
            assert_eq!(own.before(desired, given).is_some(), same, "{given}");
        }
        assert_eq!(own.before("--kernel /k", "--kernel /other"), None);
    }
}
