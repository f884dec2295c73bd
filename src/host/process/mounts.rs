//! A mount of an open file, created before the fork and attached to the file system of a process between fork and exec.
//! Out of scope: which files.
//!
//! # How
//! open_tree(2) with `OPEN_TREE_CLONE` creates a detached mount of an open file: the path is not resolved again. While the mount is
//! detached, mount_setattr(2) makes it read-only and, if the file belongs to another user than the process, ID-mapped: in this mount
//! only, the file belongs to the user of the process, and what this user writes belongs to the owner on disk. Owner, mode and ACL of the
//! file do not change. The mapping is that of a user namespace, which a short-lived child creates.
//!
//! # Limitations
//! Linux before 5.12, and file systems that cannot map IDs (overlayfs before 6.x, NFS, FUSE), return EINVAL. An ACL entry is used instead.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

use crate::host::syscall;

/// An ID mapping of one owner to one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// User and group on disk.
    pub owner: (u32, u32),
    /// The user, and group of the same number, that owns the file in the mount.
    pub shown_as: u32,
}

/// Creates a detached mount of an open file, with these attributes.
pub(super) fn detached(
    file: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    map: Option<IdMap>,
) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(file, c"", flags)?;
    let namespace = map.map(user_namespace).transpose()?;
    let mapped = match namespace {
        Some(_) => MountAttrFlags::MOUNT_ATTR_IDMAP,
        None => MountAttrFlags::empty(),
    };
    let change = libc::mount_attr {
        attr_set: (attributes | mapped).bits().into(),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: namespace.as_ref().map_or(0, AsRawFd::as_raw_fd) as u64,
    };
    syscall::mount_setattr(mount.as_fd(), c"", libc::AT_EMPTY_PATH, &change)?;
    Ok(mount)
}

/// Whether an ID-mapped mount of the file can be created. `false`: the kernel or the file system does not support it.
pub fn can_be_mapped(file: BorrowedFd<'_>, map: IdMap) -> io::Result<bool> {
    match detached(file, MountAttrFlags::empty(), Some(map)) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EOPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Attaches a detached mount at a path. Makes only a system call.
pub(super) fn attach(mount: &OwnedFd, to: &CStr) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, c"", CWD, to, flags)?)
}

/// Creates a user namespace with this mapping. A child creates it and waits until the parent has opened it: a namespace can only be opened
/// through a process in it (user_namespaces(7)).
fn user_namespace(map: IdMap) -> io::Result<OwnedFd> {
    let (mut ready, its_ready) = io::pipe()?;
    let (its_go, mut go) = io::pipe()?;
    // SAFETY: until it exits, the child makes only system calls, on memory and descriptors from before the fork. rustix has fork(2) only in
    // its hidden module `runtime`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // Otherwise the child would wait for its own descriptor of the pipe.
        drop((ready, go));
        let mut byte = [u8::from(syscall::unshare(UnshareFlags::NEWUSER).is_err())];
        let _ = rustix::io::write(&its_ready, &byte);
        let _ = rustix::io::read(&its_go, &mut byte);
        syscall::exit(0);
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop((its_ready, its_go));
    let made = (|| {
        let mut failed = [1];
        ready.read_exact(&mut failed)?;
        if failed != [0] {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let ((user, group), shown) = (map.owner, map.shown_as);
        let write = |name: &str, text: String| {
            let path = format!("/proc/{pid}/{name}");
            File::options()
                .write(true)
                .open(path)?
                .write_all(text.as_bytes())
        };
        write("uid_map", format!("{user} {shown} 1\n"))?;
        write("gid_map", format!("{group} {shown} 1\n"))?;
        Ok(OwnedFd::from(File::open(format!("/proc/{pid}/ns/user"))?))
    })();
    // The child ends when it reads this, or when the pipe is closed.
    let _ = go.write_all(&[0]);
    drop(go);
    // No other code waits for this child.
    let wait = || rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty());
    let _ = rustix::io::retry_on_intr(wait);
    made
}
