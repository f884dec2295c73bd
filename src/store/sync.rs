//! Writes files, directory entries and directory trees to stable storage.
//! Out of scope: their content.
//!
//! # Why
//! A file's content is on the disk after `fdatasync`, its name only after an `fsync` of the directory. sled 0.34 does neither
//! on Linux: its flush is `sync_file_range`, which writes pages, but neither the file's size nor its extents, and does not flush
//! the disk's write cache. So everything that sled has written is synced here again.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Flushes a directory's entries to the disk.
pub(super) fn dir(path: &Path) -> io::Result<()> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC);
    options.open(path)?.sync_all()
}

/// Creates a directory and its missing ancestors; the entry of each new directory is on the disk when this returns.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .collect();
    std::fs::create_dir_all(path)?;
    for created in missing {
        match created.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => dir(parent)?,
            _ => dir(Path::new("."))?,
        }
    }
    Ok(())
}

/// Flushes a directory and everything in it to the disk.
pub(super) fn tree(path: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    dir(path)
}

/// Replaces a file atomically: a reader, or a boot after a power failure, sees either the old or the new content. Returns the file,
/// open for reading and writing.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<File> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // An interrupted call may have left the file.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        Ok(file)
    });
    match written {
        Ok(file) => {
            dir(path.parent().unwrap_or(Path::new("/")))?;
            Ok(file)
        }
        Err(error) => {
            let _ = std::fs::remove_file(&new);
            Err(error)
        }
    }
}

/// The files that sled writes while the database is open, with separate descriptors.
#[derive(Debug)]
pub(super) struct SledFiles {
    log: File,
    /// The directory of values that are too large for the log; each is in a file that is written once.
    blobs: PathBuf,
    synced: HashSet<OsString>,
}

impl SledFiles {
    /// Opens the files of the database in `path`. Everything in it is on the disk when this returns.
    pub fn of(path: &Path) -> io::Result<Self> {
        tree(path)?;
        if let Some(parent) = path.parent() {
            dir(parent)?;
        }
        let blobs = path.join("blobs");
        let synced = names(&blobs)?;
        Ok(Self {
            log: File::open(path.join("db"))?,
            blobs,
            synced,
        })
    }

    /// Flushes everything that was written since the last call to the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        let found = names(&self.blobs)?;
        if !found.is_subset(&self.synced) {
            for name in found.difference(&self.synced) {
                match File::open(self.blobs.join(name)) {
                    Ok(blob) => blob.sync_data()?,
                    // sled removes files that it has replaced.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            dir(&self.blobs)?;
        }
        self.synced = found;
        self.log.sync_data()
    }
}

fn names(dir: &Path) -> io::Result<HashSet<OsString>> {
    std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}
