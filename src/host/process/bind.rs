//! Bind mounts and other mounts between fork and exec.
//! Out of scope: what a confined process sees.

use std::ffi::CStr;
use std::io;

use super::spawn::check;

/// Bind-mounts a file or directory without the mounts below it.
///
/// # Safety
/// Makes only system calls; must be called between fork and exec.
pub(super) unsafe fn bind_alone(from: &CStr, to: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the caller upholds the contract of this function.
    unsafe {
        mount(Some(from), to, None, libc::MS_BIND, None)?;
        let flags = flags | libc::MS_REMOUNT | libc::MS_BIND;
        mount(None, to, None, flags, None)
    }
}

/// Bind-mounts a directory and all mounts below it. Linux before 5.12 cannot make all of them read-only at once: there they are omitted.
///
/// # Safety
/// Makes only system calls; must be called between fork and exec.
pub(super) unsafe fn bind_all(from: &CStr, to: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the caller upholds the contract of this function; the struct is a local and its length is passed.
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

/// Converts `MS_*` flags to the `MOUNT_ATTR_*` attributes of mount_setattr(2).
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
/// Makes only a system call; must be called between fork and exec.
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

/// Like `check`, for the result of syscall(2).
pub(super) fn check_long(answer: libc::c_long) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
