//! The errors for a file that is not accepted.
//! Out of scope: the checks.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::Kind;

/// Why a file is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The path does not exist.
    #[error("{0} does not exist")]
    Absent(PathBuf),
    /// The path exists but is not accepted.
    #[error("{path}: found {found}, expected {expected}")]
    NotAccepted {
        /// The component that is not accepted.
        path: PathBuf,
        /// The actual file and its properties.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// The kernel returned an error.
    #[error("cannot open {0}: {1}")]
    Kernel(PathBuf, String),
}

impl Refusal {
    /// Whether the path does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

pub(super) fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Program => "an executable file that only root can write",
        Kind::Image => "a regular file without other hard links, or a block device",
        Kind::Internal => "a regular file",
    }
}

pub(super) fn shown(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a file behind a symbolic link",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::BlockDevice => "a block device",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::Unknown => "a file of an unknown type",
    }
}

pub(super) fn writable_by_others(path: &Path, stat: &Stat) -> Refusal {
    Refusal::NotAccepted {
        path: path.to_owned(),
        found: format!(
            "a directory owned by user {} with mode {:04o}",
            stat.st_uid,
            stat.st_mode & 0o7777
        ),
        expected: "a directory that only root, or the owner of the file, can write",
    }
}

pub(super) fn kernel(path: &Path, error: Errno) -> Refusal {
    Refusal::Kernel(path.to_owned(), io::Error::from(error).to_string())
}
