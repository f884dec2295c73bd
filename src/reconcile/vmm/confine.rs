//! The host resources of a VMM: its run directory, the files of its VM, its limits of processor time and memory.
//! Out of scope: which user it has (the store), how a process is confined ([`crate::host::process`]).

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::note::Note;
use super::{CONSOLE, CONSOLE_OLD, Confined, Desired, LABEL_VAR, RUN_DIR_BYTES, owners};
use crate::host::cgroup::{self, Limits};
use crate::host::named::Named;
use crate::host::process::{self, Identity};
use crate::host::{Error, fs, ramdir};
use crate::vmm::Launch;

/// Memory of the VMM itself in bytes: QEMU's code and tables, a translation cache, the part of the page cache of its disks that cannot be
/// reclaimed.
const MEMORY_OVERHEAD: u64 = 256 << 20;
/// Processor time of the VMM itself, in thousandths of a processor: it processes packets and blocks while the guest runs.
const CPU_OVERHEAD: u64 = 500;
/// Maximum number of threads.
const PIDS: u64 = 1024;

/// Prepares the run directory for a start. Of the files of a previous confined VMM only the logs stay, so that none is in the way of the
/// next one.
pub(super) fn prepare_run_dir(desired: &Desired) -> Result<(), Error> {
    let dir = &desired.dir;
    fs::make_dir(dir, 0o700)?;
    let Some(confined) = &desired.confined else {
        return Ok(());
    };
    match ramdir::is_mounted(dir)? {
        true => clear(dir, &[CONSOLE, CONSOLE_OLD]),
        false => {
            clear(dir, &[])?;
            ramdir::mount(dir, RUN_DIR_BYTES, confined.user)
        }
    }
}

/// Removes all files of a confined VMM. A run directory of root is not changed.
pub(super) fn clear_run_dir(desired: &Desired) -> Result<(), Error> {
    let dir = &desired.dir;
    if ramdir::is_mounted(dir)? {
        return ramdir::unmount(dir);
    }
    match owner(dir)? {
        None | Some(0) => Ok(()),
        Some(_) => clear(dir, &[]),
    }
}

/// Like [`clear_run_dir`], but keeps the logs.
pub(super) fn clear_except_logs(desired: &Desired) -> Result<(), Error> {
    match owner(&desired.dir)? {
        None | Some(0) => Ok(()),
        Some(_) => clear(&desired.dir, &[CONSOLE, CONSOLE_OLD]),
    }
}

/// The owner of the run directory: the VMM's user, or root for a VMM that runs as root. `None`: it does not exist.
pub(super) fn owner(dir: &Path) -> Result<Option<u32>, Error> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) => Ok(Some(found.uid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("stat", dir.display().to_string(), error)),
    }
}

/// Empties a directory, except for regular files with these names.
fn clear(dir: &Path, kept: &[&str]) -> Result<(), Error> {
    let fail = |error| Error::io("clear", dir.display().to_string(), error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let is_kept = kept.iter().any(|name| entry.file_name() == *name);
        let is_regular = || entry.metadata().is_ok_and(|found| found.is_file());
        if !(is_kept && is_regular()) {
            remove_untrusted(&entry.path())?;
        }
    }
    Ok(())
}

/// Changes the owner of the run directory and its contents to the VMM's user.
pub(super) fn chown_run_dir(desired: &Desired) -> Result<(), Error> {
    let Some(confined) = &desired.confined else {
        return Ok(());
    };
    let (dir, user) = (&desired.dir, confined.user);
    chown_contents(dir, user)?;
    let fail = |error| Error::io("change the owner of", dir.display().to_string(), error);
    set_owner_and_mode(dir, (user, user, 0o700)).map_err(fail)
}

/// Changes the owner of a disk that this daemon has created to the VMM's user.
pub(super) fn chown_own_disk(disk: &Named, path: &Path, user: u32) -> Result<(), Error> {
    let chown = || -> io::Result<()> {
        let file = disk.open()?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        Ok(rustix::fs::fchmod(&file, 0o600.into())?)
    };
    chown().map_err(|error| Error::io("change the owner of", path.display().to_string(), error))
}

/// Restores the owners of users' files that an earlier version has given to the VMM's user, according to its note.
pub(super) fn restore_owners(note: &Note) {
    let Some(user) = note.user else { return };
    for given in &note.given {
        if let Err(error) = owners::restore(given, user) {
            tracing::warn!(path = %given.path.display(), %error, "cannot restore the owner of a disk");
        }
    }
}

/// Files that were written for the VMM before the start, e.g. its configuration, must belong to its user: it could not read them
/// otherwise. A file with several hard links may belong to another directory, and the VMM uses nothing but regular files and pipes.
fn chown_contents(dir: &Path, user: u32) -> Result<(), Error> {
    let fail = |error| Error::io("change the owner of", dir.display().to_string(), error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let found = entry.metadata().map_err(fail)?;
        let is_used = found.is_file() || found.file_type().is_fifo();
        if is_used && found.uid() == 0 && found.nlink() == 1 {
            set_owner_and_mode(&entry.path(), (user, user, 0o600)).map_err(fail)?;
        }
    }
    Ok(())
}

/// Sets user, group and mode. Symbolic links are not followed, because the VMM may have created them.
fn set_owner_and_mode(path: &Path, (user, group, mode): (u32, u32, u32)) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    Ok(rustix::fs::fchmod(&file, mode.into())?)
}

/// Whether the VMM needs `/dev/kvm`. Only QEMU runs without it, with TCG.
pub(super) fn needs_kvm(launch: &Launch) -> bool {
    !launch.argv.iter().any(|word| word.starts_with("tcg"))
}

/// The control group of the VM, if the controllers are available. A limit that cannot be set does not prevent the start.
pub(super) fn cgroup(desired: &Desired) -> Option<PathBuf> {
    let confined = desired.confined.as_ref()?;
    let created = cgroup::make(
        cgroup::base().ok()?,
        &desired.uid.to_string(),
        &limits(confined),
    );
    match created {
        Ok(group) => Some(group),
        Err(error) => {
            tracing::warn!(%error, "no control group: a VMM is started without limits");
            None
        }
    }
}

fn limits(confined: &Confined) -> Limits {
    let ram = confined.ram_bytes;
    Limits {
        cpu_millis: u64::from(confined.vcpu) * 1000 + CPU_OVERHEAD,
        memory: ram.saturating_add(ram / 8).saturating_add(MEMORY_OVERHEAD),
        pids: PIDS,
    }
}

/// Kills all processes that a confined VMM has started: a child would keep the TAP and disks open. Blocks until all have ended.
pub(super) fn kill_processes(desired: &Desired, user: u32) -> Result<(), Error> {
    kill_cgroup(desired);
    let own = desired.label.to_string();
    // The user belongs to this VM only; but if a VMM of another VM should run as it, that one is not killed. The environment is not
    // used: a process of this VM could claim there to belong to another VM, and survive.
    let belongs_to_other_vm = |pid| {
        let origin = Identity::of(pid).and_then(|found| match found {
            Some(identity) => process::origin(&identity),
            None => Ok(None),
        });
        let root = origin.ok().flatten().map(|origin| origin.root);
        let label = root.as_ref().and_then(|root| root.label(LABEL_VAR));
        label.is_some_and(|label| label != own)
    };
    process::kill_user(user, belongs_to_other_vm)
}

/// Kills all processes in the VM's control group.
pub(super) fn kill_cgroup(desired: &Desired) {
    if let Ok(base) = cgroup::base() {
        cgroup::kill(base, &desired.uid.to_string());
    }
}

/// Removes the VM's control group. One that still contains processes stays until the next cleanup.
pub(super) fn remove_cgroup(desired: &Desired) {
    let removed = cgroup::base().map(|base| cgroup::remove(base, &desired.uid.to_string()));
    if let Ok(Err(error)) = removed {
        tracing::debug!(%error, "cannot remove a control group");
    }
}

/// Removes a file or directory that a VMM may have created at a path of this daemon. Links are removed, not followed.
pub(super) fn remove_untrusted(path: &Path) -> Result<(), Error> {
    let is_dir = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    if !is_dir {
        return fs::remove(path);
    }
    std::fs::remove_dir_all(path)
        .map_err(|error| Error::io("remove directory", path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_include_the_overhead_of_the_vmm() {
        let confined = Confined {
            user: 70_000,
            vcpu: 2,
            ram_bytes: 1 << 30,
            files: Vec::new(),
            injected: None,
        };
        let limits = limits(&confined);
        assert_eq!(limits.cpu_millis, 2500);
        assert_eq!(limits.memory, (1 << 30) + (128 << 20) + (256 << 20));
    }

    #[test]
    fn a_directory_in_place_of_a_log_is_removed_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let (log, other) = (dir.path().join("console.log"), dir.path().join("other"));
        std::fs::create_dir_all(log.join("deep")).unwrap();
        std::fs::write(&other, "mine").unwrap();
        std::os::unix::fs::symlink(&other, log.join("deep/link")).unwrap();
        remove_untrusted(&log).unwrap();
        remove_untrusted(&log).unwrap();
        assert!(!log.exists() && other.exists());
    }
}
