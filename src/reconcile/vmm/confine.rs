//! What a VMM may have of the host: its run directory, the files of its VM, its share of processor and memory.
//! Out of scope: which user it is (the store), how a process is confined ([`crate::host::process`]).

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::note::Note;
use super::{CONSOLE, CONSOLE_OLD, Confined, Desired, HOME_BYTES, LABEL_VAR, Launch, owners};
use crate::host::cgroup::{self, Limits};
use crate::host::named::Named;
use crate::host::process::{self, Identity};
use crate::host::{Error, fs, ramdir};

/// Of a VMM for itself: QEMU's code and tables, a translation cache, the page cache of its disks as far as it cannot be let go.
const MEMORY_OVERHEAD: u64 = 256 << 20;
/// Of a VMM for itself, in thousandths of a processor: it moves packets and blocks while the guest computes.
const CPU_OVERHEAD: u64 = 500;
/// Threads.
const PIDS: u64 = 1024;

/// Makes a run directory that is fit for a start. Of what a confined VMM before has made, only its logs stay: nothing of it is in the
/// way of the next.
pub(super) fn make_home(desired: &Desired) -> Result<(), Error> {
    let dir = &desired.dir;
    fs::make_dir(dir, 0o700)?;
    let Some(confined) = &desired.confined else {
        return Ok(());
    };
    match ramdir::is_mounted(dir)? {
        true => clear(dir, &[CONSOLE, CONSOLE_OLD]),
        false => {
            clear(dir, &[])?;
            ramdir::mount(dir, HOME_BYTES, confined.user)
        }
    }
}

/// Takes away what a confined VMM has made. Of another's run directory, nothing.
pub(super) fn clear_home(desired: &Desired) -> Result<(), Error> {
    let dir = &desired.dir;
    if ramdir::is_mounted(dir)? {
        return ramdir::unmount(dir);
    }
    match owner(dir)? {
        None | Some(0) => Ok(()),
        Some(_) => clear(dir, &[]),
    }
}

/// The same, but for its logs.
pub(super) fn clear_around_the_log(desired: &Desired) -> Result<(), Error> {
    match owner(&desired.dir)? {
        None | Some(0) => Ok(()),
        Some(_) => clear(&desired.dir, &[CONSOLE, CONSOLE_OLD]),
    }
}

/// Who may write in the run directory: the VMM's user. Root, if that is what it runs as. None: it is not there.
pub(super) fn owner(dir: &Path) -> Result<Option<u32>, Error> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) => Ok(Some(found.uid())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", dir.display().to_string(), error)),
    }
}

/// Empties a directory, but for plain files of these names.
fn clear(dir: &Path, kept: &[&str]) -> Result<(), Error> {
    let fail = |error| Error::io("clear", dir.display().to_string(), error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let is_kept = kept.iter().any(|name| entry.file_name() == *name);
        let is_plain = || entry.metadata().is_ok_and(|found| found.is_file());
        if !(is_kept && is_plain()) {
            remove_strange(&entry.path())?;
        }
    }
    Ok(())
}

/// Gives the run directory with what is in it to the VMM's user.
pub(super) fn give(desired: &Desired) -> Result<(), Error> {
    let Some(confined) = &desired.confined else {
        return Ok(());
    };
    let (dir, user) = (&desired.dir, confined.user);
    give_contents(dir, user)?;
    let fail = |error| Error::io("give to a VMM", dir.display().to_string(), error);
    hand_over(dir, (user, user, 0o700)).map_err(fail)
}

/// Gives a disk that we have made to the VMM's user.
pub(super) fn give_own_disk(disk: &Named, path: &Path, user: u32) -> Result<(), Error> {
    let give = || -> io::Result<()> {
        let file = disk.open()?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        Ok(rustix::fs::fchmod(&file, 0o600.into())?)
    };
    give().map_err(|error| Error::io("give to a VMM", path.display().to_string(), error))
}

/// Gives back what the VMM's user still has of others' files, from an earlier version's note.
pub(super) fn give_back(noted: &Note) {
    let Some(user) = noted.user else { return };
    for given in &noted.given {
        if let Err(error) = owners::restore(given, user) {
            tracing::warn!(path = %given.path.display(), %error, "a disk is not given back to its owner");
        }
    }
}

/// What was written for it before the start, its configuration for one, is its own: it could not read it otherwise. A file of
/// several names may be somebody's elsewhere, and what is neither plain nor a pipe is of no use to it.
fn give_contents(dir: &Path, user: u32) -> Result<(), Error> {
    let fail = |error| Error::io("give to a VMM", dir.display().to_string(), error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let found = entry.metadata().map_err(fail)?;
        let of_use = found.is_file() || found.file_type().is_fifo();
        if of_use && found.uid() == 0 && found.nlink() == 1 {
            hand_over(&entry.path(), (user, user, 0o600)).map_err(fail)?;
        }
    }
    Ok(())
}

/// To this user and group, with this mode. Where the VMM may have put a link, none is followed.
fn hand_over(path: &Path, (user, group, mode): (u32, u32, u32)) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    Ok(rustix::fs::fchmod(&file, mode.into())?)
}

/// What a program may need that was installed with it: `/opt/qemu/lib` and `/opt/qemu/share/qemu` of
/// `/opt/qemu/bin/qemu-system-x86_64`. Most are where every program of the host is, and all of that is seen anyway. `real`: where the
/// program is, in directories of root's alone.
pub(super) fn installed(real: &Path) -> Vec<PathBuf> {
    const WITH_IT: [&str; 4] = ["lib", "lib64", "libexec", "share/qemu"];
    let bin = real
        .parent()
        .filter(|dir| dir.file_name().is_some_and(|name| name == "bin"));
    let prefix = bin
        .and_then(Path::parent)
        .filter(|dir| dir.parent().is_some());
    let beside = prefix.map(|prefix| WITH_IT.map(|part| prefix.join(part)));
    let beside = beside.into_iter().flatten();
    beside.filter(|path| path.is_dir()).collect()
}

/// QEMU that translates needs none; the others know nothing else.
pub(super) fn wants_kvm(launch: &Launch) -> bool {
    !launch.argv.iter().any(|word| word.starts_with("tcg"))
}

/// Where the controllers are there; a limit that cannot be set keeps no VM from starting.
pub(super) fn cgroup(desired: &Desired) -> Option<PathBuf> {
    let confined = desired.confined.as_ref()?;
    let made = cgroup::make(
        cgroup::base().ok()?,
        &desired.uid.to_string(),
        &limits(confined),
    );
    match made {
        Ok(group) => Some(group),
        Err(error) => {
            tracing::warn!(%error, source = %error.source, "a VMM is started without limits");
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

/// Whatever a confined VMM has started ends with it: a child of it would go on holding TAP and disks. Blocks until all have ended.
pub(super) fn leave_none(desired: &Desired, user: u32) -> Result<(), Error> {
    kill_cgroup(desired);
    let own = desired.label.to_string();
    // The user is this VM's alone; but should one day another VM's VMM run as it, that one lives. What its environment says does not
    // count: a process of this VM could claim to be another's, and stay.
    let another = |pid| {
        let origin = Identity::of(pid).and_then(|found| match found {
            Some(identity) => process::origin(&identity),
            None => Ok(None),
        });
        let root = origin.ok().flatten().map(|origin| origin.root);
        let label = root.as_ref().and_then(|root| root.mark(LABEL_VAR));
        label.is_some_and(|label| label != own)
    };
    process::kill_user(user, another)
}

/// Everything in the VM's control group.
pub(super) fn kill_cgroup(desired: &Desired) {
    if let Ok(base) = cgroup::base() {
        cgroup::kill(base, &desired.uid.to_string());
    }
}

/// Nobody lives there any more; if somebody does, it stays until the next sweep.
pub(super) fn leave_cgroup(desired: &Desired) {
    let removed = cgroup::base().map(|base| cgroup::remove(base, &desired.uid.to_string()));
    if let Ok(Err(error)) = removed {
        tracing::debug!(%error, "a control group stays");
    }
}

/// Removes what a VMM may have put in the place of a file of ours, whatever it is. Links are removed, not followed.
pub(super) fn remove_strange(path: &Path) -> Result<(), Error> {
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
    fn a_vm_has_what_it_was_promised_and_its_vmm_some_more() {
        let confined = Confined {
            user: 70_000,
            vcpu: 2,
            ram_bytes: 1 << 30,
            files: Vec::new(),
        };
        let limits = limits(&confined);
        assert_eq!(limits.cpu_millis, 2500);
        assert_eq!(limits.memory, (1 << 30) + (128 << 20) + (256 << 20));
    }

    #[test]
    fn what_was_installed_with_a_program_is_seen_with_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let opt = root.join("opt/qemu");
        for part in ["bin", "share/qemu", "share/keys", "lib"] {
            std::fs::create_dir_all(opt.join(part)).unwrap();
        }
        let seen = [opt.join("lib"), opt.join("share/qemu")];
        assert_eq!(installed(&opt.join("bin/qemu")), seen);
        assert_eq!(installed(&opt.join("sbin/qemu")), Vec::<PathBuf>::new());
        assert_eq!(installed(Path::new("/bin/qemu")), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_directory_in_the_place_of_a_log_is_removed_and_what_a_link_points_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (log, other) = (dir.path().join("console.log"), dir.path().join("other"));
        std::fs::create_dir_all(log.join("deep")).unwrap();
        std::fs::write(&other, "mine").unwrap();
        std::os::unix::fs::symlink(&other, log.join("deep/link")).unwrap();
        remove_strange(&log).unwrap();
        remove_strange(&log).unwrap();
        assert!(!log.exists() && other.exists());
    }
}
