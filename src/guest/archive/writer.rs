//! Writes a directory tree as an archive.
//! Out of scope: what the receiver accepts.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::Error;
use super::beneath::Beneath;
use super::entry::{BLOCK, Entry, Kind, padding};
use super::exclude::Patterns;
use super::stream::Writer;

/// Whether the archive has an entry `./` with the attributes of the directory itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// It has; other clients do not expect it.
    Included,
    /// It has not.
    Omitted,
}

/// Writes regular files, directories and symbolic links below `root`, sorted by name, and the end of the archive. Sockets, FIFOs and
/// devices are left out. Links are not followed, also if the tree changes meanwhile; a file that disappears meanwhile is left out.
pub fn write(
    root: &Beneath,
    of_root: Root,
    exclude: &Patterns,
    output: &mut Writer,
) -> Result<(), Error> {
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let is_root = path.as_os_str().is_empty();
        let dir = match root.read_dir(&path) {
            Err(error) if !is_root && error.kind() == Some(io::ErrorKind::NotFound) => continue,
            dir => dir?,
        };
        if !is_root || of_root == Root::Included {
            let stat = rustix::fs::fstat(&dir)
                .map_err(|error| Error::file("read the directory", &path, error))?;
            header(output, &path, Kind::Directory, &stat)?;
        }
        let mut below = Vec::new();
        for name in names(&dir, &path)? {
            let child = path.join(&name);
            if exclude.matches(&child) {
                continue;
            }
            if add(root, &dir, &name, &child, output)? == FileType::Directory {
                below.push(child);
            }
        }
        // The last one pending is the next one.
        pending.extend(below.into_iter().rev());
    }
    output.write_all(&[0; 2 * BLOCK]).map_err(Error::Stream)
}

fn names(dir: impl AsFd, path: &Path) -> Result<Vec<OsString>, Error> {
    let fail = |error: Errno| Error::file("read the directory", path, error);
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Writes an entry other than a directory, and returns its type.
fn add(
    root: &Beneath,
    dir: impl AsFd,
    name: &OsStr,
    path: &Path,
    output: &mut Writer,
) -> Result<FileType, Error> {
    let fail = |error: Errno| Error::file("read", path, error);
    let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(FileType::Unknown),
        stat => stat.map_err(fail)?,
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => file(root, path, output)?,
        FileType::Symlink => {
            let target = match rustix::fs::readlinkat(&dir, name, Vec::new()) {
                Err(Errno::NOENT) => return Ok(FileType::Unknown),
                target => target.map_err(fail)?,
            };
            let target = PathBuf::from(OsStr::from_bytes(target.to_bytes()));
            header(output, path, Kind::Symlink(target), &stat)?;
        }
        _ => {}
    }
    Ok(kind)
}

/// Writes a regular file with the size that it has when it is opened.
fn file(root: &Beneath, path: &Path, output: &mut Writer) -> Result<(), Error> {
    let file = match root.read_file(path) {
        Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => return Ok(()),
        file => file?,
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| Error::file("read", path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(());
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    header(output, path, Kind::File(size), &stat)?;
    copy(file, size, path, output)?;
    let zeros = [0; BLOCK];
    output
        .write_all(&zeros[..padding(size)])
        .map_err(Error::Stream)
}

/// Copies `size` bytes of a file. A file that has become shorter is an error: the size was sent already.
pub fn copy(mut file: impl Read, size: u64, path: &Path, output: &mut Writer) -> Result<(), Error> {
    let mut rest = size;
    while rest > 0 {
        let space = output.space().map_err(Error::Stream)?;
        let length = space.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let read = file
            .read(&mut space[..length])
            .map_err(|error| Error::file("read", path, error))?;
        if read == 0 {
            let error = io::Error::other("it became shorter while it was read");
            return Err(Error::file("read", path, error));
        }
        output.fill(read);
        rest -= read as u64;
    }
    Ok(())
}

fn header(output: &mut Writer, path: &Path, kind: Kind, stat: &Stat) -> Result<(), Error> {
    let entry = Entry {
        path: path.to_owned(),
        kind,
        mode: stat.st_mode & 0o777,
        mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
    };
    output.write_all(&entry.encode()).map_err(Error::Stream)
}
