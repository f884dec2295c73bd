//! What is in the config folder now.
//! Not here: what follows from it, being told when it changes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::api::manifest::{MAX_BYTES, Source};

/// One manifest file, as it was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileReading {
    /// It was read.
    Readable {
        /// In the folder as it was named to us.
        path: PathBuf,
        /// Its text.
        source: Source,
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
/// A file that goes away while we look is not there; one that is there and cannot be read is `Unreadable`.
pub fn read_folder(dir: &Path) -> Result<Vec<FileReading>, Error> {
    let failed = |source| Error {
        path: dir.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if is_manifest(&name) {
            paths.push(dir.join(name));
        }
    }
    paths.sort();
    Ok(paths.into_iter().filter_map(read_file).collect())
}

/// Whether a file of this name is a manifest: `*.yaml` or `*.yml`, and no dotfile. Editors' own files (`.x.yaml.swp`, `4913`,
/// `x.yaml~`, `#x.yaml#`, `sedAbCdEf`) are not.
pub fn is_manifest(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let suffix = [&b".yaml"[..], b".yml"].iter().any(|s| name.ends_with(s));
    suffix && !name.starts_with(b".") && !name.starts_with(b"#")
}

fn read_file(path: PathBuf) -> Option<FileReading> {
    match read_text(&path) {
        Ok(None) => None,
        Ok(Some(text)) => {
            let name = path.display().to_string();
            Some(FileReading::Readable {
                path,
                source: Source { name, text },
            })
        }
        // Gone since the listing. A link that leads nowhere is still there: its target is being swapped.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() =>
        {
            None
        }
        Err(error) => Some(FileReading::Unreadable {
            path,
            error: error.to_string(),
        }),
    }
}

/// The text of a regular file; `None` for a directory. A pipe or device is an error and never waited for.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_dir() {
        return Ok(None);
    }
    if !kind.is_file() {
        return Err(io::Error::other("this is no regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the parser sees that it is too long.
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::other(format!("this is no UTF-8 text, from byte {at}"))
    })?;
    Ok(Some(text))
}
