//! What users' files were before they were changed for a VMM, and the way back.
//! Out of scope: changing them. Where the file system allows it a user's file is shown to a VMM through an id-mapped mount and stays as
//! it is; elsewhere its ACL gets an entry (`opened`).
//!
//! # Why
//! Until 0.1 a disk that a guest writes to was given to the VMM's user; whose it was is in the note beside the run directory, which is
//! memory and does not survive a reboot. A daemon that finds such notes copies them to the state disk, `<state>/disks/.owners/<uid>`,
//! where an ACL is recorded, too, before it is changed; and gives the files back when their VM starts again, is deleted, or has not survived a reboot.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid as Owner};
use serde::{Deserialize, Serialize};

use super::RECORD;
use super::note::{self, Change, Given, Note};
use crate::api::meta::Uid;
use crate::host::acl;
use crate::host::fs::{self, Durability};
use crate::host::process::{self, Life, Record};
use crate::host::{Error, Kind};
use crate::owner::RunDir;

/// Below the disk directory.
const DIR: &str = ".owners";

/// Of one VM.
#[derive(Debug, Serialize, Deserialize)]
struct Owners {
    /// Who has them now.
    user: u32,
    given: Vec<Given>,
}

fn path(disk_dir: &Path, uid: &str) -> PathBuf {
    disk_dir.join(DIR).join(uid)
}

/// Copies what notes of an earlier version tell to the state disk, and gives back what belongs to VMs that do not run.
pub fn recover(run_dir: &RunDir, disk_dir: &Path) -> Result<(), Error> {
    if disk_dir.as_os_str().is_empty() {
        return Ok(());
    }
    if let fs::Dir::Present(uids) = fs::look_at_dir(&run_dir.0.join("vm"))? {
        for uid in uids.iter().filter_map(|uid| uid.parse::<Uid>().ok()) {
            if let Some(note) = note::read(&run_dir.vmm_dir(uid))? {
                keep(disk_dir, &uid.to_string(), &note)?;
            }
        }
    }
    let fs::Dir::Present(recorded) = fs::look_at_dir(&disk_dir.join(DIR))? else {
        return Ok(());
    };
    for uid in recorded {
        let runs = match uid.parse::<Uid>() {
            Ok(known) => runs(&run_dir.vm_dir(known).join(RECORD)),
            // A half-written one, or none of ours.
            Err(_) => continue,
        };
        if !runs {
            give_back(disk_dir, &uid)?;
        }
    }
    Ok(())
}

/// One that cannot be looked at may run.
fn runs(record: &Path) -> bool {
    match process::read_record(record) {
        Ok(Record::Of(identity)) => !matches!(process::look(&identity), Ok(Life::Ended(_))),
        Ok(Record::None | Record::Unborn) => false,
        Err(_) => true,
    }
}

fn keep(disk_dir: &Path, uid: &str, note: &Note) -> Result<(), Error> {
    match (note.user, note.given.is_empty()) {
        (Some(user), false) => record(disk_dir, uid, user, &note.given),
        _ => Ok(()),
    }
}

/// Puts on the state disk what files were before they are changed.
pub(super) fn record(disk_dir: &Path, uid: &str, user: u32, given: &[Given]) -> Result<(), Error> {
    let path = path(disk_dir, uid);
    // The older record is the truer one: it was made before anything else was.
    if fs::read(&path)?.is_some() {
        return Ok(());
    }
    fs::make_dir(disk_dir, 0o711)?;
    fs::make_dir(&disk_dir.join(DIR), 0o700)?;
    let owners = Owners {
        user,
        given: given.to_vec(),
    };
    let text = serde_json::to_vec(&owners)
        .map_err(|error| Error::other("write", path.display().to_string(), error))?;
    fs::write(&path, &text, 0o600, Durability::Disk)
}

/// Gives back what a VM's user has of others' files, as far as the user still has it. What cannot be given back stays on record, is
/// reported and is no reason for a VM to stay.
pub(super) fn give_back(disk_dir: &Path, uid: &str) -> Result<(), Error> {
    if disk_dir.as_os_str().is_empty() {
        return Ok(());
    }
    let path = path(disk_dir, uid);
    let Some(text) = fs::read(&path)? else {
        return Ok(());
    };
    let owners: Owners = match serde_json::from_slice(&text) {
        Ok(owners) => owners,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the record of a disk's owner cannot be read and stays");
            return Ok(());
        }
    };
    let mut left = false;
    for given in &owners.given {
        if let Err(error) = restore(given, owners.user) {
            left = true;
            tracing::warn!(path = %given.path.display(), %error, source = %error.source, "a disk is not given back to its owner");
        }
    }
    match left {
        true => Ok(()),
        false => fs::remove(&path),
    }
}

/// Only a regular file that this VM's user owns, or whose ACL names it: nobody but us has ever brought that about outside of its run
/// directory.
pub(super) fn restore(given: &Given, user: u32) -> Result<(), Error> {
    let wrap = |error| Error::io("give back", given.path.display().to_string(), error);
    let open = |path: &Path, flags| {
        let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        fd.map_err(|error| wrap(error.into()))
    };
    let found = match open(&given.path, OFlags::PATH) {
        Ok(found) => found,
        Err(error) if error.kind == Kind::Absent => return Ok(()),
        Err(error) => return Err(error),
    };
    let this = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let is = std::fs::metadata(&this).map_err(wrap)?;
    if !is.is_file() {
        return Ok(());
    }
    let file = File::from(open(&this, OFlags::RDONLY | OFlags::NONBLOCK)?);
    let changed = match &given.change {
        Change::Owner => is.uid() == user,
        Change::Acl(_) => acl::names(acl::get(&file).map_err(wrap)?.as_deref(), user),
    };
    match changed {
        true => put_back(&file, given).map_err(wrap),
        false => Ok(()),
    }
}

fn put_back(file: &File, given: &Given) -> io::Result<()> {
    match &given.change {
        Change::Owner => {
            let (owner, group) = (Owner::from_raw(given.user), Gid::from_raw(given.group));
            rustix::fs::fchown(file, Some(owner), Some(group))?;
        }
        Change::Acl(before) => acl::put_back(file, before.as_deref())?,
    }
    rustix::fs::fchmod(file, given.mode.into())?;
    file.sync_all()
}
