//! Copies an image atomically: shares blocks if the file system can, otherwise preserves holes.
//! Out of scope: whether a copy is required.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::hold::{Use, lock_file};
use super::{Edition, SECTOR, open_nofollow};
use crate::host::Error;
use crate::host::named::Named;

/// Bytes copied between two checks of [`Progress::stop`].
const STEP: u64 = 8 << 20;
/// Bytes copied between two flushes: a single one at the end could take long without reporting progress.
const FLUSH_INTERVAL: u64 = 64 << 20;

/// Source and destination of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'a> {
    /// The image.
    pub image: &'a Named,
    /// The image's path in errors.
    pub display_path: &'a Path,
    /// The path of the incomplete copy; in the same directory as `to`.
    pub temp: &'a Path,
    /// The path of the copy. It must not exist.
    pub target: &'a Path,
    /// The minimum size of the copy, in bytes.
    pub min_size: u64,
}

/// How a copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It shares blocks with the image until one of the two is written to (`ioctl_ficlone(2)`).
    Shared,
    /// The number of bytes copied, without holes.
    Copied(u64),
}

/// The progress of a copy, shared with other tasks, which can also stop it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes copied.
    pub done: AtomicU64,
    /// Bytes to copy; 0: not yet known.
    pub total: AtomicU64,
    /// Set it to cancel the copy.
    pub stop: AtomicBool,
}

/// Makes the copy: it is complete and synced to disk before it appears at its path. On failure nothing is left. Blocks.
///
/// # Errors
/// Among others: the image is being written to, there is not enough space, [`Progress::stop`] was set.
pub fn copy(request: &Copy<'_>, progress: &Progress) -> Result<How, Error> {
    let image = lock_file(request.image, request.display_path, Use::Read)?;
    let result = fill(request, &image, progress).and_then(|method| {
        // The caller may have given up waiting, and another copy to the same path may be running.
        if progress.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled: it is no longer required"));
        }
        publish(request)?;
        Ok(method)
    });
    result.map_err(|error| {
        // The first error is the one to return.
        let _ = std::fs::remove_file(request.temp);
        let object = format!(
            "{} to {}",
            request.display_path.display(),
            request.target.display()
        );
        Error::io("copy", object, error)
    })
}

/// Extends a shorter file to `bytes` with a hole. The caller holds its lock.
pub fn grow(path: &Path, bytes: u64) -> Result<(), Error> {
    let grow = || -> io::Result<()> {
        let file = open_nofollow(path, OpenOptions::new().write(true))?;
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        Ok(())
    };
    grow().map_err(|error| Error::io("grow", path.display().to_string(), error))
}

fn fill(request: &Copy<'_>, image: &File, progress: &Progress) -> io::Result<How> {
    let before = image.metadata()?;
    let temp = open_nofollow(
        request.temp,
        OpenOptions::new().write(true).create_new(true).mode(0o600),
    )?;
    let method = match rustix::fs::ioctl_ficlone(&temp, image) {
        Ok(()) => How::Shared,
        Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
        Err(Errno::DQUOT) => return Err(Errno::DQUOT.into()),
        // EOPNOTSUPP, EXDEV, EINVAL and other errors of file systems that cannot share blocks.
        Err(_) => {
            let bytes = before.blocks().saturating_mul(512).min(before.len());
            check_free_space(request, &temp, bytes)?;
            progress.total.store(bytes, Ordering::Relaxed);
            How::Copied(copy_data(image, &temp, before.len(), progress)?)
        }
    };
    let length = before.len().max(request.min_size).next_multiple_of(SECTOR);
    temp.set_len(length)?;
    temp.sync_all()?;
    if Edition::of(&image.metadata()?) != Edition::of(&before) {
        return Err(io::Error::other("the image was modified during the copy"));
    }
    Ok(method)
}

fn publish(request: &Copy<'_>) -> io::Result<()> {
    rustix::fs::renameat_with(
        CWD,
        request.temp,
        CWD,
        request.target,
        RenameFlags::NOREPLACE,
    )?;
    let dir = request.target.parent().unwrap_or(Path::new("/"));
    File::open(dir)?.sync_all()
}

/// Checks the free space before copying.
fn check_free_space(request: &Copy<'_>, draft: &File, bytes: u64) -> io::Result<()> {
    let space = rustix::fs::fstatvfs(draft)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    let dir = request.target.parent().unwrap_or(Path::new("/")).display();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let (needs, has) = (mib(bytes), free >> 20);
    let reason = format!("not enough space: needs {needs} MiB, {dir} has {has} MiB free");
    Err(io::Error::new(io::ErrorKind::StorageFull, reason))
}

/// Copies the data between holes (`lseek(2)`, SEEK_DATA). A file system without support for holes reports the whole file as data.
fn copy_data(from: &File, to: &File, length: u64, progress: &Progress) -> io::Result<u64> {
    let (mut at, mut copied, mut flushed) = (0, 0, 0);
    while at < length {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data from here to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?.min(length);
        at = data;
        while at < hole {
            if progress.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("cancelled: it is no longer required"));
            }
            let copied_now = copy_chunk(from, to, at, (hole - at).min(STEP))?;
            at += copied_now;
            copied += copied_now;
            if copied - flushed >= FLUSH_INTERVAL {
                to.sync_data()?;
                flushed = copied;
            }
            progress.done.store(copied, Ordering::Relaxed);
        }
    }
    Ok(copied)
}

/// Copies at least one byte; in the kernel if the file systems support it (`copy_file_range(2)`).
fn copy_chunk(from: &File, to: &File, at: u64, most: u64) -> io::Result<u64> {
    let (mut source, mut target) = (at, at);
    let limit = usize::try_from(most).unwrap_or(usize::MAX);
    match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), limit) {
        Ok(copied @ 1..) => return Ok(copied as u64),
        Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
        Err(Errno::DQUOT) => return Err(Errno::DQUOT.into()),
        // Not supported between these two files; read and write report any other error.
        Ok(0) | Err(_) => {}
    }
    let mut buffer = vec![0; limit.min(1 << 20)];
    let read = from.read_at(&mut buffer, at)?;
    if read == 0 {
        return Err(io::Error::other("the image was truncated during the copy"));
    }
    to.write_all_at(&buffer[..read], at)?;
    Ok(read as u64)
}
