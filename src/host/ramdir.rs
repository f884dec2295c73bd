//! A small file system in memory over a directory: nothing in it outgrows it, and all of it goes at once.
//! Out of scope: what is kept in one.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use super::Error;

/// Of one such file system: files, directories, links, sockets.
const FILES: u32 = 256;
/// Two crashes in a row leave two on top of each other at most.
const MOST_LAYERS: u32 = 8;

/// Mounts one over `dir`, for `user` and its group alone: mode 0700, at most `bytes`; no device, no program, no change of user.
pub fn mount(dir: &Path, bytes: u64, user: u32) -> Result<(), Error> {
    let options = format!("size={bytes},nr_inodes={FILES},mode=0700,uid={user},gid={user}");
    let mount = || -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = CString::new(options)?;
        rustix::mount::mount("slice", dir, "tmpfs", flags, options.as_c_str())?;
        Ok(())
    };
    mount().map_err(|error| Error::io("mount a tmpfs on", dir.display().to_string(), error))
}

/// Whether something is mounted on `dir`. One that is not there is not.
pub fn is_mounted(dir: &Path) -> Result<bool, Error> {
    let look = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found.dev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path.display().to_string(), error)),
    };
    let above = dir.parent().unwrap_or(Path::new("/"));
    Ok(look(dir)?.is_some_and(|dev| look(above).is_ok_and(|above| above != Some(dev))))
}

/// Takes it away, with all that is in it; whoever still uses it keeps it until the end. None there is no error.
pub fn unmount(dir: &Path) -> Result<(), Error> {
    for _ in 0..MOST_LAYERS {
        if !is_mounted(dir)? {
            return Ok(());
        }
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(dir, flags).map_err(|error| {
            Error::io("unmount", dir.display().to_string(), io::Error::from(error))
        })?;
    }
    Ok(())
}
