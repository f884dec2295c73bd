//! Previous owners and ACLs of users' files that were changed for a VMM, and restoring them.
//! Out of scope: changing the files. If the file system supports it, a VMM accesses a user's file through an id-mapped mount and the file
//! is not changed; otherwise an entry is added to its ACL (`opened`).
//!
//! # Why
//! Until 0.1 the owner of a disk that a guest writes to was changed to the VMM's user; the previous owner is in the note next to the run
//! directory, which is memory and does not survive a reboot. A daemon that finds such notes copies them to the state disk,
//! `<state>/disks/.owners/<uid>`, where an ACL is recorded, too, before it is changed. It restores the files when their VM starts again, is
//! deleted, or has not survived a reboot.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid as Owner};
use serde::{Deserialize, Serialize};

use super::RECORD;
use super::note::{self, Change, ChangedFile, Note};
use crate::api::meta::Uid;
use crate::host::acl;
use crate::host::fs::{self, Durability};
use crate::host::process::{self, ProcessState, Record};
use crate::host::{Error, Kind};
use crate::owner::RunDir;

/// Directory of the records, below the disk directory.
const DIR: &str = ".owners";

/// The record of one VM.
#[derive(Debug, Serialize, Deserialize)]
struct OwnerRecord {
    /// The VMM's user.
    user: u32,
    #[serde(rename = "given")]
    changed_files: Vec<ChangedFile>,
}

fn path(disk_dir: &Path, uid: &str) -> PathBuf {
    disk_dir.join(DIR).join(uid)
}

/// Copies the records in notes of an earlier version to the state disk, and restores the files of VMs that do not run.
pub fn recover(run_dir: &RunDir, disk_dir: &Path) -> Result<(), Error> {
    if disk_dir.as_os_str().is_empty() {
        return Ok(());
    }
    if let fs::Dir::Present(uids) = fs::read_dir(&run_dir.0.join("vm"))? {
        for uid in uids.iter().filter_map(|uid| uid.parse::<Uid>().ok()) {
            match note::read(&run_dir.vmm_dir(uid)) {
                Ok(Some(note)) => copy_note(disk_dir, &uid.to_string(), &note)?,
                Ok(None) => {}
                // The stage of this VM reports it; the files of other VMs are restored.
                Err(error) if error.kind == Kind::Undecodable => {}
                Err(error) => return Err(error),
            }
        }
    }
    let fs::Dir::Present(recorded) = fs::read_dir(&disk_dir.join(DIR))? else {
        return Ok(());
    };
    for uid in recorded {
        let is_running = match uid.parse::<Uid>() {
            Ok(known) => is_running(&run_dir.vm_dir(known).join(RECORD)),
            // An incomplete or foreign file.
            Err(_) => continue,
        };
        if !is_running {
            restore_all(disk_dir, &uid)?;
        }
    }
    Ok(())
}

/// Whether the recorded process runs. If its state cannot be read, it counts as running.
fn is_running(record: &Path) -> bool {
    match process::read_record(record) {
        Ok(Record::Of(identity)) => !matches!(process::open(&identity), Ok(ProcessState::Ended(_))),
        Ok(Record::None | Record::Unborn) => false,
        Err(_) => true,
    }
}

fn copy_note(disk_dir: &Path, uid: &str, note: &Note) -> Result<(), Error> {
    match (note.user, note.given.is_empty()) {
        (Some(user), false) => record(disk_dir, uid, user, &note.given),
        _ => Ok(()),
    }
}

/// Records the previous attributes of files on the state disk before they are changed.
pub(super) fn record(
    disk_dir: &Path,
    uid: &str,
    user: u32,
    given: &[ChangedFile],
) -> Result<(), Error> {
    let path = path(disk_dir, uid);
    // An existing record is kept: it contains the attributes from before the first change.
    if fs::read(&path)?.is_some() {
        return Ok(());
    }
    fs::make_dir(disk_dir, 0o711)?;
    fs::make_dir(&disk_dir.join(DIR), 0o700)?;
    let owners = OwnerRecord {
        user,
        changed_files: given.to_vec(),
    };
    let text = serde_json::to_vec(&owners)
        .map_err(|error| Error::other("write", path.display().to_string(), error))?;
    fs::write(&path, &text, 0o600, Durability::Disk)
}

/// Restores the users' files that were changed for a VM, unless they have been changed since. A file that cannot be restored stays recorded
/// and is reported, but does not prevent the removal of the VM.
pub(super) fn restore_all(disk_dir: &Path, uid: &str) -> Result<(), Error> {
    if disk_dir.as_os_str().is_empty() {
        return Ok(());
    }
    let path = path(disk_dir, uid);
    let Some(text) = fs::read(&path)? else {
        return Ok(());
    };
    let owners: OwnerRecord = match serde_json::from_slice(&text) {
        Ok(owners) => owners,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot decode the record of a disk's owner, it is kept");
            return Ok(());
        }
    };
    let mut failed = false;
    for given in &owners.changed_files {
        if let Err(error) = restore(given, owners.user) {
            failed = true;
            tracing::warn!(path = %given.path.display(), %error, "cannot restore the owner of a disk");
        }
    }
    match failed {
        true => Ok(()),
        false => fs::remove(&path),
    }
}

/// Restores a regular file if this VM's user owns it or its ACL names the user: outside its run directory only this daemon can have caused
/// that.
pub(super) fn restore(given: &ChangedFile, user: u32) -> Result<(), Error> {
    let wrap = |error| {
        Error::io(
            "restore the owner of",
            given.path.display().to_string(),
            error,
        )
    };
    let open = |path: &Path, flags| {
        let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        fd.map_err(|error| wrap(error.into()))
    };
    let found = match open(&given.path, OFlags::PATH) {
        Ok(found) => found,
        Err(error) if error.kind == Kind::Absent => return Ok(()),
        Err(error) => return Err(error),
    };
    let link = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let attributes = std::fs::metadata(&link).map_err(wrap)?;
    if !attributes.is_file() {
        return Ok(());
    }
    let file = File::from(open(&link, OFlags::RDONLY | OFlags::NONBLOCK)?);
    let changed = match &given.change {
        Change::Owner => attributes.uid() == user,
        Change::Acl(_) => acl::has_user(acl::get(&file).map_err(wrap)?.as_deref(), user),
    };
    match changed {
        true => restore_attributes(&file, given).map_err(wrap),
        false => Ok(()),
    }
}

fn restore_attributes(file: &File, given: &ChangedFile) -> io::Result<()> {
    match &given.change {
        Change::Owner => {
            let (owner, group) = (Owner::from_raw(given.user), Gid::from_raw(given.group));
            rustix::fs::fchown(file, Some(owner), Some(group))?;
        }
        Change::Acl(before) => acl::restore(file, before.as_deref())?,
    }
    rustix::fs::fchmod(file, given.mode.into())?;
    file.sync_all()
}
