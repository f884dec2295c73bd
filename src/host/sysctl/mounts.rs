//! Mounts of procfs for looking up the settings of network namespaces. They are attached nowhere and nobody else sees them.
//! Out of scope: reading and writing settings.
//!
//! # Why
//! `/proc/sys/net` is one directory entry for all network namespaces, and what is below it (`ipv4`, `ipv6`) has the same name in each.
//! The kernel keeps all of them in one hash chain and compares one after the other (`__d_lookup`, `proc_sys_compare`), so with 1,024
//! namespaces a lookup walks a chain of 1,024 entries. Each mount of procfs has directory entries of its own (since Linux 5.8), and a
//! chain of its own that holds only the namespaces that are looked up there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// How many there are at most. Each is a descriptor, and is made when the first namespace needs it.
pub const MOUNTS: usize = 32;

static KNOWN: [OnceLock<OwnedFd>; MOUNTS] = [const { OnceLock::new() }; MOUNTS];

/// Opens a directory below /proc/sys for the calling thread's namespace, which has the number `namespace`.
pub(super) fn open_dir(namespace: u64, dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = mount(namespace).and_then(|mount| {
        let below = dir.strip_prefix("/proc").map_err(io::Error::other)?;
        Ok(rustix::fs::openat(mount, below, flags, Mode::empty())?)
    });
    // Where procfs cannot be mounted (an older kernel, a sandbox), the one that everybody uses gives the same answer later.
    own.or_else(|_| Ok(rustix::fs::open(dir, flags, Mode::empty())?))
}

/// The same one for a namespace each time.
fn mount(namespace: u64) -> io::Result<BorrowedFd<'static>> {
    let known = &KNOWN[(namespace % MOUNTS as u64) as usize];
    if known.get().is_none() {
        let made = make()?;
        // Another thread may have been faster: then its mount is used, and this one ends.
        known.get_or_init(|| made);
    }
    known
        .get()
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
