//! Reads the content of the manifest directory.
//! Out of scope: the changes to the store, notification of changes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::directory::{self, Stamp};
use crate::api::host_group::DirectoryId;
use crate::api::manifest::{MAX_BYTES, Source};
use crate::api::manifest::{is_manifest, resembles_manifest};
use crate::host::image::is_written;

/// The manifests of a directory.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The directory; it was the same before and after the files were read.
    pub id: DirectoryId,
    /// The manifests, sorted by name.
    pub files: Vec<FileResult>,
    /// Files that are not manifests, but have names that resemble one; sorted.
    pub others: Vec<PathBuf>,
    /// Whether part of the directory is on a file system that does not report all changes (inotify(7)).
    pub is_silent: bool,
    /// The result of [`directory::stamp`] before the files were read.
    pub stamp: Stamp,
}

/// The result of reading a manifest file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileResult {
    /// The file was read.
    Readable {
        /// Path, below the directory as it was specified.
        path: PathBuf,
        /// Content.
        source: Source,
        /// Whether a process has the file open for writing: it may be incomplete.
        is_written: bool,
    },
    /// The file exists and cannot be read, so its groups are unknown.
    Unreadable {
        /// Path, below the directory as it was specified.
        path: PathBuf,
        /// The error, for users.
        error: String,
    },
}

impl FileResult {
    /// Path of the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Readable { path, .. } | Self::Unreadable { path, .. } => path,
        }
    }
}

/// The directory cannot be listed. Its content is unknown then, not empty.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the manifest directory {}", path.display())]
pub struct Error {
    /// The directory.
    pub path: PathBuf,
    /// The system error.
    #[source]
    pub source: io::Error,
}

/// Reads all manifests directly in `dir`, sorted by name; follows symbolic links.
/// A file that is removed meanwhile is omitted. Any other entry with the name of a manifest that cannot be read, including a directory
/// or a dangling link, is `Unreadable`.
///
/// # Errors
/// The directory cannot be listed completely, or it was replaced by another directory meanwhile.
pub fn read_directory(dir: &Path) -> Result<Listing, Error> {
    let list_error = |source| Error {
        path: dir.to_owned(),
        source,
    };
    let id = directory::id(dir).map_err(list_error)?;
    let stamp = directory::stamp(dir).map_err(list_error)?;
    let mut needs_polling = directory::is_silent(&File::open(dir).map_err(list_error)?);
    let (mut paths, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(list_error)? {
        let name = entry.map_err(list_error)?.file_name();
        if is_manifest(&name) {
            paths.push(dir.join(name));
        } else if resembles_manifest(&name) {
            others.push(dir.join(name));
        }
    }
    paths.sort();
    others.sort();
    let mut files = Vec::new();
    for path in paths {
        if let Some((result, polled)) = read_file(path) {
            files.push(result);
            needs_polling |= polled;
        }
    }
    if directory::id(dir).map_err(list_error)? != id {
        let message = "it was replaced by another directory while it was read";
        return Err(list_error(io::Error::other(message)));
    }
    Ok(Listing {
        id,
        files,
        others,
        is_silent: needs_polling,
        stamp,
    })
}

/// Reads a file. Also returns whether it is on a file system that does not report all changes; `None` if the file does not exist.
fn read_file(path: PathBuf) -> Option<(FileResult, bool)> {
    match read_text(&path) {
        Ok(contents) => {
            let name = path.display().to_string();
            let result = FileResult::Readable {
                path,
                source: Source {
                    name,
                    text: contents.text,
                },
                is_written: contents.is_written,
            };
            Some((result, contents.is_silent))
        }
        // Removed since the listing. A dangling link still exists: its target is being replaced, or not mounted.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && fs::symlink_metadata(&path)
                    .is_err_and(|gone| gone.kind() == io::ErrorKind::NotFound) =>
        {
            None
        }
        // The file system of a link's target is unknown, so a change that makes it readable may not be reported.
        Err(error) => {
            let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
            let reading = FileResult::Unreadable {
                path,
                error: error.to_string(),
            };
            Some((reading, is_link))
        }
    }
}

struct Contents {
    text: String,
    is_written: bool,
    is_silent: bool,
}

/// Reads a regular file. A pipe or device is an error and does not block.
fn read_text(path: &Path) -> io::Result<Contents> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other(
            "found a directory, expected a regular file",
        ));
    }
    if !kind.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let needs_polling = directory::is_silent(&file);
    let mut bytes = Vec::new();
    // One byte more than the limit, so that the parser detects a file that is too long.
    (&mut file)
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    // Checked after the read: a later open for writing causes an event when it is closed.
    let is_written = is_written(&file).unwrap_or(false);
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::other(format!("invalid UTF-8 at byte {at}"))
    })?;
    Ok(Contents {
        text,
        is_written,
        is_silent: needs_polling,
    })
}
