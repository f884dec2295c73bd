//! Detached mounts of procfs for looking up the settings of network namespaces. They are not visible to other processes.
//! Out of scope: reading and writing settings.
//!
//! # Why
//! `/proc/sys/net` is one directory entry for all network namespaces, and the entries below it (`ipv4`, `ipv6`) have the same names in
//! each. The kernel keeps all of them in one hash chain and compares them one by one (`__d_lookup`, `proc_sys_compare`), so with 1,024
//! namespaces a lookup walks a chain of 1,024 entries. Each mount of procfs has its own directory entries (since Linux 5.8), so its
//! chain contains only the namespaces that are looked up through it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// The maximum number of mounts. Each uses one descriptor and is created when the first namespace needs it.
pub const MOUNTS: usize = 32;

static CACHE: [OnceLock<OwnedFd>; MOUNTS] = [const { OnceLock::new() }; MOUNTS];

/// Opens a directory below /proc/sys for the calling thread's namespace; `namespace` is its inode number.
pub(super) fn open_dir(namespace: u64, dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = mount(namespace).and_then(|mount| {
        let below = dir.strip_prefix("/proc").map_err(io::Error::other)?;
        Ok(rustix::fs::openat(mount, below, flags, Mode::empty())?)
    });
    // Where procfs cannot be mounted (an older kernel, a sandbox), the shared /proc gives the same result, but more slowly.
    opened.or_else(|_| Ok(rustix::fs::open(dir, flags, Mode::empty())?))
}

/// Returns the same mount for a namespace each time.
fn mount(namespace: u64) -> io::Result<BorrowedFd<'static>> {
    let slot = &CACHE[(namespace % MOUNTS as u64) as usize];
    if slot.get().is_none() {
        let created = make()?;
        // If another thread was faster, its mount is used and this one is dropped.
        slot.get_or_init(|| created);
    }
    slot.get()
        .map(AsFd::as_fd)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn make() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}
