//! Archives of directory trees: tar (POSIX ustar, with PAX records for what does not fit), written and extracted as a stream.
//! Out of scope: HTTP; which tree is copied where (`copy`, `agent::files`).
//!
//! Both sides use it, and for each side the other one is hostile: the host extracts what a guest sends, and the agent extracts what
//! a client of the host sends. Extraction never leaves its destination:
//!
//! - Each directory is opened with openat2(2) and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, relative to the destination; the last
//!   component is only used with the `*at` functions, which do not follow it. So neither a link in the archive nor one that another
//!   process creates meanwhile is followed. openat2 exists since Linux 5.6.
//! - A file is written under a temporary name and renamed (rename(2)): a reader finds the old file or the new one, an interrupted copy
//!   leaves nothing, and a program that is being executed can be replaced (no `ETXTBSY`).
//! - Absolute names, `..`, hard links, devices, FIFOs and unknown types are errors; setuid, setgid and sticky bits are removed.
//! - The reader bounds the number of entries, the size of names and, if the caller requests it, the size of contents.
//!
//! | file | content |
//! |---|---|
//! | `entry` | an entry, and its header |
//! | `reader` | the entries of a stream |
//! | `names` | which names are accepted |
//! | `beneath` | changes below a directory |
//! | `draft` | a file under a temporary name |
//! | `extract` | a stream to a directory tree |
//! | `writer` | a directory tree to a stream |
//! | `exclude` | patterns of paths that are left out |
//! | `stream` | between threads that block and async streams |

pub mod beneath;
pub mod draft;
mod entry;
pub mod exclude;
mod extract;
mod names;
mod reader;
pub mod stream;
#[cfg(test)]
pub mod tests;
mod writer;

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub use self::extract::{Extraction, extract};
pub use self::names::component;
pub use self::writer::{Root, copy, write};

/// Why an archive could not be written or extracted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or changed.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What failed, such as `create the directory`.
        doing: &'static str,
        /// The file; relative to the destination if it is part of an archive.
        path: PathBuf,
        /// The error of the kernel. Not a `source()`, since the message contains it.
        #[source]
        source: io::Error,
    },
    /// The stream could not be read or written.
    #[error("connection closed unexpectedly: {0}")]
    Stream(io::Error),
    /// The archive is not accepted.
    #[error("invalid archive: {0}")]
    Invalid(String),
    /// The archive is larger than the caller allows.
    #[error("the limit of {limit} {unit} is exceeded")]
    Limit {
        /// The limit.
        limit: u64,
        /// Its unit, such as `bytes`.
        unit: &'static str,
    },
}

impl Error {
    /// An error of the kernel about a file.
    pub fn file(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    /// The error of the kernel, if it is about a file.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::File { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// What is read from an archive at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of entries.
    pub entries: u64,
    /// Size of all contents, in bytes.
    pub bytes: u64,
}

impl Default for Limits {
    /// As many entries as a large tree has; as many bytes as a file can have.
    fn default() -> Self {
        Self {
            entries: 4 << 20,
            bytes: i64::MAX as u64,
        }
    }
}

/// Who owns the files that are created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The process.
    #[default]
    Process,
    /// This user and group own new files; a file that is replaced keeps its owner.
    New {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// This user and group own all files.
    All {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
}

/// The time of a file: seconds since the epoch, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtime {
    /// Seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

impl Mtime {
    /// The modification time of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        }
    }

    /// As a time for a response; the epoch if it cannot be represented.
    pub fn timestamp(self) -> Timestamp {
        let nanoseconds = i32::try_from(self.nanoseconds).unwrap_or(0);
        Timestamp::new(self.seconds, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl From<Timestamp> for Mtime {
    fn from(time: Timestamp) -> Self {
        let total = time.as_nanosecond();
        Self {
            seconds: i64::try_from(total.div_euclid(NANOSECONDS)).unwrap_or(0),
            nanoseconds: u32::try_from(total.rem_euclid(NANOSECONDS)).unwrap_or(0),
        }
    }
}

const NANOSECONDS: i128 = 1_000_000_000;
