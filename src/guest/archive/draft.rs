//! A file that is written under a temporary name and then renamed to its own (rename(2)).
//! Out of scope: in which directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{Mtime, Owner};

/// The unit in which zeros become holes: the block size of most file systems.
const HOLE: usize = 4096;
const ZEROS: [u8; HOLE] = [0; HOLE];

/// What a file has besides its content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    /// Permissions, at most `0o777`; `None`: those of the replaced file, or `0o644`.
    pub mode: Option<u32>,
    /// Modification time; `None`: now.
    pub mtime: Option<Mtime>,
    /// The owner.
    pub owner: Owner,
}

/// A temporary name in a directory. It is removed unless it was renamed.
struct TemporaryName {
    dir: Arc<OwnedFd>,
    name: String,
}

impl TemporaryName {
    /// A name that others can neither foresee nor use: it is created exclusively.
    fn new(dir: Arc<OwnedFd>) -> Self {
        let name = format!(".slice-{}.tmp", uuid::Uuid::new_v4().simple());
        Self { dir, name }
    }

    /// Renames it. What has the name before is replaced, unless it is a directory or a special file.
    fn rename(self, name: &OsStr) -> io::Result<()> {
        rustix::fs::renameat(&self.dir, &self.name, &self.dir, name)?;
        // The drop would be harmless: the temporary name does not exist any more.
        Ok(())
    }
}

impl Drop for TemporaryName {
    fn drop(&mut self) {
        // ENOENT after the rename. There is nobody to report another error to; the copy has failed already.
        let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
    }
}

/// A file in the making.
pub struct Draft {
    temporary: TemporaryName,
    file: File,
}

impl Draft {
    /// Creates an empty file with a temporary name in a directory; only the process can read it.
    pub fn create(dir: Arc<OwnedFd>) -> io::Result<Self> {
        let temporary = TemporaryName::new(dir);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(
            &temporary.dir,
            &temporary.name,
            flags | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?;
        Ok(Self {
            temporary,
            file: file.into(),
        })
    }

    /// Writes all of `content`; aligned blocks of zeros become holes. Returns the number of bytes. `Ok(Err(_))`: reading has failed.
    pub fn fill(&mut self, content: &mut impl BufRead) -> io::Result<io::Result<u64>> {
        // The start of a block, if the rest of it was not read with it. All others are written from the buffer of the reader.
        let mut block = [0; HOLE];
        let mut begun = 0;
        let mut offset = 0;
        loop {
            let bytes = match content.fill_buf() {
                Ok([]) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Err(error)),
            };
            let used = match bytes.len() / HOLE * HOLE {
                whole if whole > 0 && begun == 0 => {
                    self.write(&bytes[..whole], offset)?;
                    offset += whole as u64;
                    whole
                }
                _ => {
                    let used = bytes.len().min(HOLE - begun);
                    block[begun..begun + used].copy_from_slice(&bytes[..used]);
                    begun += used;
                    used
                }
            };
            content.consume(used);
            if begun == HOLE {
                self.write(&block, offset)?;
                offset += HOLE as u64;
                begun = 0;
            }
        }
        self.write(&block[..begun], offset)?;
        let length = offset + begun as u64;
        // Also the end may be a hole.
        self.file.set_len(length)?;
        Ok(Ok(length))
    }

    /// Writes what is not zero.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_hole = |block: &[u8]| block == &ZEROS[..block.len()];
        let mut begin = 0;
        while begin < bytes.len() {
            let mut end = begin;
            let first_is_hole = is_hole(&bytes[begin..bytes.len().min(begin + HOLE)]);
            while end < bytes.len() {
                let next = bytes.len().min(end + HOLE);
                if is_hole(&bytes[end..next]) != first_is_hole {
                    break;
                }
                end = next;
            }
            if !first_is_hole {
                self.file
                    .write_all_at(&bytes[begin..end], offset + begin as u64)?;
            }
            begin = end;
        }
        Ok(())
    }

    /// Sets the attributes and renames the file to `name`, a single component.
    ///
    /// # Errors
    /// `name` is a directory or a special file; or an error of the kernel.
    pub fn commit(self, name: &OsStr, attributes: Attributes) -> io::Result<()> {
        let replaced = replaced(&self.temporary.dir, name)?;
        let mode = attributes
            .mode
            .unwrap_or_else(|| replaced.as_ref().map_or(0o644, |stat| stat.st_mode & 0o777));
        set_owner(&self.file, attributes.owner, replaced.as_ref())?;
        // After the owner: a change of the owner may clear bits.
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode & 0o777))?;
        if let Some(mtime) = attributes.mtime {
            rustix::fs::futimens(&self.file, &modified(mtime))?;
        }
        self.temporary.rename(name)
    }
}

/// Creates a symbolic link, or replaces a file by it.
pub fn link(
    dir: Arc<OwnedFd>,
    name: &OsStr,
    target: &OsStr,
    attributes: Attributes,
) -> io::Result<()> {
    let replaced = replaced(&dir, name)?;
    let temporary = TemporaryName::new(dir);
    rustix::fs::symlinkat(target, &temporary.dir, &temporary.name)?;
    if let Some((uid, gid)) = desired_owner(attributes.owner, replaced.as_ref()) {
        rustix::fs::chownat(
            &temporary.dir,
            &temporary.name,
            Some(rustix::fs::Uid::from_raw(uid)),
            Some(rustix::fs::Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    if let Some(mtime) = attributes.mtime {
        let times = modified(mtime);
        rustix::fs::utimensat(
            &temporary.dir,
            &temporary.name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    temporary.rename(name)
}

/// What exists under the name, if it can be replaced.
fn replaced(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(stat)),
        // It is replaced, not followed; it has no permissions of its own.
        FileType::Symlink => Ok(None),
        FileType::Directory => Err(Errno::ISDIR.into()),
        // To replace /dev/null or a socket by a file is never what was meant.
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it exists and is not a regular file",
        )),
    }
}

fn desired_owner(owner: Owner, replaced: Option<&Stat>) -> Option<(u32, u32)> {
    match (owner, replaced) {
        (Owner::Process, _) => None,
        (Owner::New { .. }, Some(stat)) => Some((stat.st_uid, stat.st_gid)),
        (Owner::New { uid, gid } | Owner::All { uid, gid }, _) => Some((uid, gid)),
    }
}

/// Changes the owner of an open file or directory, if it is not right already: that needs no privilege.
pub fn set_owner(file: &File, owner: Owner, replaced: Option<&Stat>) -> io::Result<()> {
    let Some((uid, gid)) = desired_owner(owner, replaced) else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(file)?;
    if (stat.st_uid, stat.st_gid) == (uid, gid) {
        return Ok(());
    }
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(uid),
        rustix::fs::Gid::from_raw(gid),
    );
    match rustix::fs::fchown(file, Some(uid), Some(gid)) {
        // Without CAP_CHOWN, a process that replaces a file of another user becomes its owner.
        Err(Errno::PERM) if matches!((owner, replaced), (Owner::New { .. }, Some(_))) => Ok(()),
        changed => Ok(changed?),
    }
}

/// The argument of utimensat(2) that changes the modification time only.
pub fn modified(mtime: Mtime) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(mtime.seconds, mtime.nanoseconds.into()),
    }
}
