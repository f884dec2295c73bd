//! What is in the config folder now.
//! Out of scope: what follows from it, notification of changes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::directory::{self, Stamp};
use crate::api::host_group::DirectoryId;
use crate::api::manifest::{MAX_BYTES, Source};
use crate::host::image::is_written;

/// A folder and everything in it that concerns us.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Which directory the path led to, before and after the files were read.
    pub id: DirectoryId,
    /// The manifests, in the order of their names.
    pub files: Vec<FileReading>,
    /// Files that look like manifests and are none, by their names.
    pub others: Vec<PathBuf>,
    /// Part of it lies on a file system that does not report changes by others (inotify(7)).
    pub is_silent: bool,
    /// What [`directory::stamp`] found before the files were read.
    pub stamp: Stamp,
}

/// One manifest file, as it was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileReading {
    /// It was read.
    Readable {
        /// In the folder as it was named to us.
        path: PathBuf,
        /// Its text.
        source: Source,
        /// A process has it open for writing: there may be more to come.
        is_written: bool,
    },
    /// It is there and could not be read. This says nothing of its groups.
    Unreadable {
        /// In the folder as it was named to us.
        path: PathBuf,
        /// Why, for people.
        error: String,
    },
}

impl FileReading {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Readable { path, .. } | Self::Unreadable { path, .. } => path,
        }
    }
}

/// The folder could not be listed. Nothing is known then, least of all that it is empty.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the config folder {}", path.display())]
pub struct Error {
    /// The folder.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Reads every manifest directly in `dir`, in the order of their names, through symbolic links.
/// A file that goes away while we look is not there; whatever else has the name of a manifest and cannot be read, a directory or a
/// link that leads nowhere included, is `Unreadable`.
///
/// # Errors
/// It cannot be listed to its end, or another directory was put in its place meanwhile.
pub fn read_folder(dir: &Path) -> Result<Listing, Error> {
    let failed = |source| Error {
        path: dir.to_owned(),
        source,
    };
    let id = directory::id(dir).map_err(failed)?;
    let stamp = directory::stamp(dir).map_err(failed)?;
    let mut is_silent = directory::is_silent(&File::open(dir).map_err(failed)?);
    let (mut paths, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if is_manifest(&name) {
            paths.push(dir.join(name));
        } else if resembles_a_manifest(&name) {
            others.push(dir.join(name));
        }
    }
    paths.sort();
    others.sort();
    let mut files = Vec::new();
    for path in paths {
        if let Some((reading, silent)) = read_file(path) {
            files.push(reading);
            is_silent |= silent;
        }
    }
    if directory::id(dir).map_err(failed)? != id {
        let why = "another directory was put in its place while it was read";
        return Err(failed(io::Error::other(why)));
    }
    Ok(Listing {
        id,
        files,
        others,
        is_silent,
        stamp,
    })
}

/// Whether a file of this name is a manifest: `*.yaml` or `*.yml`, and no dotfile. Editors' own files (`.x.yaml.swp`, `4913`,
/// `x.yaml~`, `#x.yaml#`, `sedAbCdEf`) are not.
pub fn is_manifest(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let suffix = [&b".yaml"[..], b".yml"].iter().any(|s| name.ends_with(s));
    suffix && !name.starts_with(b".") && !name.starts_with(b"#")
}

/// Whether somebody may take a file of this name for a manifest: another spelling, or JSON, which is YAML.
pub fn resembles_a_manifest(name: &OsStr) -> bool {
    let lower = name.as_bytes().to_ascii_lowercase();
    let json = lower.ends_with(b".json") && !lower.starts_with(b".") && !lower.starts_with(b"#");
    !is_manifest(name) && (json || is_manifest(OsStr::from_bytes(&lower)))
}

/// The file, and whether it lies on a file system that reports no changes.
fn read_file(path: PathBuf) -> Option<(FileReading, bool)> {
    match read_text(&path) {
        Ok(read) => {
            let name = path.display().to_string();
            let reading = FileReading::Readable {
                path,
                source: Source {
                    name,
                    text: read.text,
                },
                is_written: read.is_written,
            };
            Some((reading, read.is_silent))
        }
        // Gone since the listing. A link that leads nowhere is still there: its target is being swapped, or not mounted.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                && fs::symlink_metadata(&path)
                    .is_err_and(|gone| gone.kind() == io::ErrorKind::NotFound) =>
        {
            None
        }
        // Where it lies is not known: what makes it readable may make no event.
        Err(error) => {
            let linked = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
            let reading = FileReading::Unreadable {
                path,
                error: error.to_string(),
            };
            Some((reading, linked))
        }
    }
}

struct Contents {
    text: String,
    is_written: bool,
    is_silent: bool,
}

/// The text of a regular file. A pipe or device is an error and never waited for.
fn read_text(path: &Path) -> io::Result<Contents> {
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Err(io::Error::other("this is a directory, expected a file"));
    }
    if !kind.is_file() {
        return Err(io::Error::other("this is no regular file"));
    }
    let is_silent = directory::is_silent(&file);
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the parser sees that it is too long.
    (&mut file)
        .take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    // After it was read: who opens it later makes an event.
    let is_written = is_written(&file).unwrap_or(false);
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::other(format!("this is no UTF-8 text, from byte {at}"))
    })?;
    Ok(Contents {
        text,
        is_written,
        is_silent,
    })
}
