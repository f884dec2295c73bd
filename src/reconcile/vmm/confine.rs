//! What a VMM may have of the host: its run directory, the files of its VM, its share of processor and memory.
//! Not here: which user it is (the store), how a process is confined ([`crate::host::process`]).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Access, Confined, Desired, Launch};
use crate::host::cgroup::{self, Limits};
use crate::host::process::Reach;
use crate::host::{Error, fs};

/// Of a VMM for itself: QEMU's code and tables, a translation cache, the page cache of its disks as far as it cannot be let go.
const MEMORY_OVERHEAD: u64 = 256 << 20;
/// Of a VMM for itself, in thousandths of a processor: it moves packets and blocks while the guest computes.
const CPU_OVERHEAD: u64 = 500;
/// Threads.
const PIDS: u64 = 1024;

/// Makes the run directory if it is gone, and gives it, and the disks that are written, to the VMM's user.
pub(super) fn give_dir(desired: &Desired) -> Result<(), Error> {
    fs::make_dir(&desired.dir, 0o700)?;
    let Some(confined) = &desired.confined else {
        return Ok(());
    };
    give(&desired.dir, confined.user, 0o700)?;
    give_contents(&desired.dir, confined.user)?;
    for disk in written(confined) {
        give(&disk.path, confined.user, 0o600)?;
    }
    Ok(())
}

/// What was written for it before the start, its configuration for one, is its own: it could not read it otherwise. A file of
/// several names may be somebody's elsewhere, and what is not plain is of no use to it.
fn give_contents(dir: &Path, user: u32) -> Result<(), Error> {
    let fail = |error| Error::io("give to a VMM", dir.display().to_string(), error);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let found = entry.metadata().map_err(fail)?;
        if found.is_file() && found.uid() == 0 && found.nlink() == 1 {
            give(&entry.path(), user, 0o600)?;
        }
    }
    Ok(())
}

/// Block devices are not given: the VMM gets a node of its own.
fn give(path: &Path, user: u32, mode: u32) -> Result<(), Error> {
    let done = || -> io::Result<()> {
        let file = open(path)?;
        if file.metadata()?.file_type().is_block_device() {
            return Ok(());
        }
        let user = (
            rustix::fs::Uid::from_raw(user),
            rustix::fs::Gid::from_raw(user),
        );
        rustix::fs::fchown(&file, Some(user.0), Some(user.1))?;
        Ok(rustix::fs::fchmod(&file, mode.into())?)
    };
    done().map_err(|error| Error::io("give to a VMM", path.display().to_string(), error))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

fn written(confined: &Confined) -> impl Iterator<Item = &super::Disk> {
    let files = confined.files.iter();
    files.filter(|file| file.access == Access::ReadWrite)
}

/// What it sees beside its run directory and the host's programs: the VM's files, and itself.
pub(super) fn reach<'a>(desired: &'a Desired, launch: &'a Launch) -> Vec<Reach<'a>> {
    let files = desired.confined.iter().flat_map(|c| &c.files);
    let files = files.map(|file| Reach {
        path: &file.path,
        writable: file.access == Access::ReadWrite,
    });
    let program = launch.argv.first().map(Path::new);
    let program = program.filter(|path| path.is_absolute()).map(|path| Reach {
        path,
        writable: false,
    });
    files.chain(program).collect()
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
