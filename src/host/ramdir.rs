//! A small tmpfs mounted over a directory: its size is bounded, and unmounting removes all files at once.
//! Out of scope: the files in it.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};

use super::Error;

/// The inode limit of one such file system: files, directories, links, sockets.
const MAX_INODES: u32 = 256;
/// The maximum number of stacked mounts that [`unmount`] removes; repeated crashes may leave several.
const MAX_STACKED: u32 = 8;

/// Mounts a tmpfs over `dir`, owned by `user` and its group: mode 0700, at most `bytes`; nodev, noexec, nosuid.
pub fn mount(dir: &Path, bytes: u64, user: u32) -> Result<(), Error> {
    let options = format!("size={bytes},nr_inodes={MAX_INODES},mode=0700,uid={user},gid={user}");
    let mount = || -> io::Result<()> {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let options = CString::new(options)?;
        rustix::mount::mount("slice", dir, "tmpfs", flags, options.as_c_str())?;
        Ok(())
    };
    mount().map_err(|error| Error::io("mount a tmpfs on", dir.display().to_string(), error))
}

/// Whether something is mounted on `dir`; `false` if `dir` does not exist.
pub fn is_mounted(dir: &Path) -> Result<bool, Error> {
    let device = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found.dev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("stat", path.display().to_string(), error)),
    };
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(device(dir)?.is_some_and(|dev| device(parent).is_ok_and(|above| above != Some(dev))))
}

/// Unmounts it with all its files; processes that still use it keep it. It is not an error if nothing is mounted.
pub fn unmount(dir: &Path) -> Result<(), Error> {
    for _ in 0..MAX_STACKED {
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
