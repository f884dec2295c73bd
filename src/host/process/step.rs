//! One step in the construction of a confined process' file system, executed between fork and exec.
//! Out of scope: which steps (`confine`, `jail`).

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Dev, FileType, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::bind::{bind_all, bind_alone};
use super::mounts::attach;

pub(super) enum Step {
    Dir(CString),
    File(CString, Mode),
    Bind {
        from: CString,
        to: CString,
        flags: MountFlags,
        below: Below,
    },
    /// A detached mount.
    Attach {
        mount: OwnedFd,
        to: CString,
    },
    Device {
        path: CString,
        kind: FileType,
        mode: Mode,
        number: Dev,
    },
    Fresh {
        kind: CString,
        source: CString,
        to: CString,
        flags: MountFlags,
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
    /// Executes the step. Created device nodes belong to `user`. Makes only system calls; rustix would copy paths that are not C strings.
    pub(super) fn take(&self, user: u32) -> io::Result<()> {
        match self {
            Self::Dir(path) => exists_is_done(rustix::fs::mkdir(
                path.as_c_str(),
                Mode::from_raw_mode(0o755),
            )),
            Self::File(path, mode) => {
                let path = path.as_c_str();
                exists_is_done(rustix::fs::mknodat(
                    CWD,
                    path,
                    FileType::RegularFile,
                    *mode,
                    0,
                ))
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
            Self::Attach { mount, to } => attach(mount, to),
            Self::Device {
                path,
                kind,
                mode,
                number,
            } => {
                let path = path.as_c_str();
                rustix::fs::mknodat(CWD, path, *kind, *mode, *number)?;
                let (owner, group) = (Uid::from_raw(user), Gid::from_raw(user));
                Ok(rustix::fs::chown(path, Some(owner), Some(group))?)
            }
            Self::Fresh {
                kind,
                source,
                to,
                flags,
                options,
            } => Ok(rustix::mount::mount(
                source.as_c_str(),
                to.as_c_str(),
                kind.as_c_str(),
                *flags,
                options.as_c_str(),
            )?),
        }
    }
}

fn exists_is_done(done: rustix::io::Result<()>) -> io::Result<()> {
    match done {
        Err(Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

pub(super) fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
