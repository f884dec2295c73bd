//! Bind mounts between fork and exec.
//! Out of scope: what a confined process sees.

use std::ffi::CStr;
use std::io;

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, MountFlags, UnmountFlags};
use rustix::mount::{mount_bind, mount_bind_recursive, mount_remount, unmount};

use crate::host::syscall::mount_setattr;

/// Bind-mounts a file or directory without the mounts below it.
pub(super) fn bind_alone(from: &CStr, to: &CStr, flags: MountFlags) -> io::Result<()> {
    mount_bind(from, to)?;
    Ok(mount_remount(to, flags | MountFlags::BIND, c"")?)
}

/// Bind-mounts a directory and all mounts below it. Linux before 5.12 cannot make all of them read-only at once: there they are omitted.
pub(super) fn bind_all(from: &CStr, to: &CStr, flags: MountFlags) -> io::Result<()> {
    mount_bind_recursive(from, to)?;
    let change = libc::mount_attr {
        attr_set: attributes_of(flags).bits().into(),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    match mount_setattr(CWD, to, libc::AT_RECURSIVE, &change) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            unmount(to, UnmountFlags::DETACH)?;
            bind_alone(from, to, flags)
        }
        done => done,
    }
}

/// Converts `MS_*` flags to the `MOUNT_ATTR_*` attributes of mount_setattr(2).
pub(super) fn attributes_of(flags: MountFlags) -> MountAttrFlags {
    let pairs = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    let set = pairs.into_iter().filter(|(flag, _)| flags.contains(*flag));
    set.map(|(_, attribute)| attribute).collect()
}
