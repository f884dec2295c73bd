//! Boots the root file system where the initrd has no init: mounts it and executes its init, as the kernel does without an initrd.
//! Out of scope: finding the device (`device`); root file systems on a network, in LVM, on RAID or encrypted, which need an initrd.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::parameters::Parameters;
use super::{become_init, device, report};
use crate::guest::init::prepare;

/// Where the root file system is mounted in the initrd.
const ROOT: &str = "/.slice/root";
/// File systems that the init of the root file system expects or mounts again.
const MOVED: [&str; 3] = ["dev", "proc", "sys"];
/// What the kernel tries without `init=`.
const INITS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// Returns only if the guest cannot boot: the reason.
pub fn boot(parameters: &Parameters) -> String {
    match prepare_root(parameters) {
        Ok(()) => {}
        Err(reason) => return reason,
    }
    match &parameters.init {
        Some(init) => {
            let error = become_init(init);
            format!("execute {init} of the root file system: {error}")
        }
        None => {
            let errors = INITS.map(|init| format!("{init}: {}", become_init(init)));
            format!("no init in the root file system: {}", errors.join("; "))
        }
    }
}

/// Mounts the root file system and makes it the root directory.
fn prepare_root(parameters: &Parameters) -> Result<(), String> {
    prepare::kernel_file_systems();
    // An initrd that has no init may contain the drivers.
    prepare::modules();
    let root = parameters.root.as_deref().ok_or(
        "the initrd has no init, and the kernel command line no root=: set initrd_file, or add a disk",
    )?;
    let device = device::wait_for(root, parameters)?;
    fs::create_dir_all(ROOT).map_err(|error| format!("create {ROOT}: {error}"))?;
    mount(&device, parameters)?;
    enter().map_err(|error| format!("make {} the root file system: {error}", device.display()))
}

/// Tries the file systems of the command line, else all that the kernel knows.
fn mount(device: &Path, parameters: &Parameters) -> Result<(), String> {
    let mut names = parameters.file_systems.clone();
    if names.is_empty() {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        names = on_devices(&known);
    }
    let flags = match parameters.is_writable {
        true => MountFlags::empty(),
        false => MountFlags::RDONLY,
    };
    let options = CString::new(parameters.options.as_str()).unwrap_or_default();
    let mut errors = Vec::new();
    for name in &names {
        match rustix::mount::mount(device, ROOT, name.as_str(), flags, options.as_c_str()) {
            Ok(()) => return Ok(()),
            // Another file system.
            Err(Errno::INVAL) => {}
            Err(error) => errors.push(format!("{name}: {error}")),
        }
    }
    let reason = match errors.is_empty() {
        true => format!("it contains none of the file systems {}", names.join(", ")),
        false => errors.join("; "),
    };
    Err(format!("mount {}: {reason}", device.display()))
}

/// The names in `/proc/filesystems` of those that are on a device.
fn on_devices(known: &str) -> Vec<String> {
    let names = known.lines().filter_map(|line| line.strip_prefix('\t'));
    names.map(|name| name.trim().to_owned()).collect()
}

/// Makes the mounted file system the root directory, with the file systems of the kernel, and frees the memory of the initrd.
fn enter() -> io::Result<()> {
    for name in MOVED {
        let (from, to) = (Path::new("/").join(name), Path::new(ROOT).join(name));
        // An image without the directory has no use for it.
        if rustix::mount::mount_move(&from, &to).is_err() {
            let _ = rustix::mount::unmount(&from, UnmountFlags::DETACH);
        }
    }
    let initrd = fs::metadata("/")?.dev();
    for entry in fs::read_dir("/")?.flatten() {
        remove(&entry.path(), initrd);
    }
    std::env::set_current_dir(ROOT)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(c".")?;
    std::env::set_current_dir("/")
}

/// Removes what is on this device; mounts stay.
fn remove(path: &PathBuf, device: u64) {
    let Ok(found) = path.symlink_metadata() else {
        return;
    };
    if found.dev() != device {
        return;
    }
    let removed = match found.is_dir() {
        false => fs::remove_file(path),
        true => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.for_each(|entry| remove(&entry.path(), device));
            match fs::remove_dir(path) {
                // A mount point.
                Err(error) if is_in_use(&error) => Ok(()),
                result => result,
            }
        }
    };
    if let Err(error) = removed {
        report(&format!("remove {}: {error}", path.display()));
    }
}

fn is_in_use(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_without_a_device_are_not_tried() {
        let known = "nodev\tsysfs\nnodev\ttmpfs\n\text4\n\tvfat\nnodev\tovl\n";
        assert_eq!(on_devices(known), ["ext4", "vfat"]);
    }

    #[test]
    fn only_files_of_the_initrd_are_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b")).expect("created");
        fs::write(top.join("a/file"), "").expect("written");
        std::os::unix::fs::symlink("/", top.join("link")).expect("created");
        let device = fs::metadata(&top).expect("there").dev();
        remove(&top, device + 1);
        assert!(top.join("a/file").exists());
        remove(&top, device);
        assert!(!top.exists() && Path::new("/etc").exists());
    }
}
