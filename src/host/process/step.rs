//! One step in the construction of a confined process' file system, executed between fork and exec.
//! Out of scope: which steps (`confine`, `jail`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::bind::{bind_all, bind_alone, mount};
use super::mounts::attach;
use super::spawn::check;

pub(super) enum Step {
    Dir(CString),
    File(CString, libc::mode_t),
    Bind {
        from: CString,
        to: CString,
        flags: libc::c_ulong,
        below: Below,
    },
    /// A detached mount.
    Attach {
        mount: OwnedFd,
        to: CString,
    },
    Device {
        path: CString,
        kind: libc::mode_t,
        number: libc::dev_t,
    },
    Fresh {
        kind: CString,
        source: CString,
        to: CString,
        flags: libc::c_ulong,
        options: CString,
    },
}

/// Whether a bind mount includes the mounts below it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Below {
    /// It does not.
    Nothing,
    /// It does: `/usr/local` may be a file system of its own.
    All,
}

impl Step {
    /// Executes the step. Created device nodes belong to `user`.
    ///
    /// # Safety
    /// Makes only system calls; must be called between fork and exec.
    pub(super) unsafe fn take(&self, user: u32) -> io::Result<()> {
        // SAFETY: plain system calls; every pointer is to a C string of `self`.
        unsafe {
            match self {
                Self::Dir(path) => exists_is_done(check(libc::mkdir(path.as_ptr(), 0o755))),
                Self::File(path, mode) => {
                    let kind = libc::S_IFREG | mode;
                    exists_is_done(check(libc::mknod(path.as_ptr(), kind, 0)))
                }
                Self::Bind {
                    from,
                    to,
                    flags,
                    below: Below::Nothing,
                } => bind_alone(from, to, *flags),
                Self::Bind {
                    from,
                    to,
                    flags,
                    below: Below::All,
                } => bind_all(from, to, *flags),
                Self::Attach { mount, to } => attach(mount.as_raw_fd(), to),
                Self::Device { path, kind, number } => {
                    check(libc::mknod(path.as_ptr(), *kind, *number))?;
                    check(libc::chown(path.as_ptr(), user, user))
                }
                Self::Fresh {
                    kind,
                    source,
                    to,
                    flags,
                    options,
                } => mount(Some(source), to, Some(kind), *flags, Some(options)),
            }
        }
    }
}

fn exists_is_done(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

pub(super) fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
