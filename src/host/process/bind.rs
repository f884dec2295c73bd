//! Showing one part of a file system in another place, between fork and exec.
//! Out of scope: what a confined process is shown.

use std::ffi::CStr;
use std::io;

use super::spawn::check;

/// # Safety
/// Only system calls; to be called between fork and exec.
pub(super) unsafe fn bind_alone(from: &CStr, to: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: as of this function.
    unsafe {
        mount(Some(from), to, None, libc::MS_BIND, None)?;
        let flags = flags | libc::MS_REMOUNT | libc::MS_BIND;
        mount(None, to, None, flags, None)
    }
}

/// With what is mounted below. Linux before 5.12 cannot make all of that read-only at once: there it is not shown.
///
/// # Safety
/// Only system calls; to be called between fork and exec.
pub(super) unsafe fn bind_all(from: &CStr, to: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: as of this function; the struct is a local and its length is passed.
    unsafe {
        mount(Some(from), to, None, libc::MS_BIND | libc::MS_REC, None)?;
        let mut attributes = std::mem::zeroed::<libc::mount_attr>();
        attributes.attr_set = attributes_of(flags);
        let set = libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        );
        match check_long(set) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                check(libc::umount2(to.as_ptr(), libc::MNT_DETACH))?;
                bind_alone(from, to, flags)
            }
            done => done,
        }
    }
}

/// The same flags as mount_setattr(2) calls them.
pub(super) fn attributes_of(flags: libc::c_ulong) -> u64 {
    let pairs = [
        (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    ];
    let set = pairs.iter().filter(|(flag, _)| flags & flag != 0);
    set.fold(0, |all, (_, attribute)| all | attribute)
}

/// mount(2).
///
/// # Safety
/// Only a system call; to be called between fork and exec.
pub(super) unsafe fn mount(
    from: Option<&CStr>,
    to: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or to a C string that outlives the call.
    check(unsafe {
        libc::mount(
            pointer(from),
            to.as_ptr(),
            pointer(kind),
            flags,
            pointer(options).cast(),
        )
    })
}

/// For system calls by their number.
pub(super) fn check_long(answer: libc::c_long) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
