//! Kernel errors, with the errno normalised in one place.
//! Out of scope: error handling.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use tokio::sync::Notify;

/// The last errno that reported descriptor exhaustion; 0: none yet.
static LAST_ERRNO: AtomicI32 = AtomicI32::new(0);
static NOTIFY: Notify = Notify::const_new();

/// Records an errno that reports exhausted file descriptors: of the process (EMFILE) or of the host (ENFILE).
pub fn record_exhaustion(error: &io::Error) {
    if let Some(errno @ (libc::EMFILE | libc::ENFILE)) = error.raw_os_error() {
        LAST_ERRNO.store(errno, Ordering::Relaxed);
        NOTIFY.notify_one();
    }
}

/// Waits until descriptors have been exhausted since the last return; returns the kernel's error.
pub async fn exhausted() -> io::Error {
    NOTIFY.notified().await;
    io::Error::from_raw_os_error(LAST_ERRNO.load(Ordering::Relaxed))
}

/// The error classes that a caller may act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ENOENT, ENODEV, ENXIO, ESRCH, EADDRNOTAVAIL: the object does not exist.
    Absent,
    /// EEXIST: it already exists.
    Exists,
    /// EBUSY, EAGAIN: try again later.
    Busy,
    /// EPERM, EACCES.
    Denied,
    /// The content of a file is not what this program has written.
    Undecodable,
    /// Anything else.
    Other,
}

/// The operation, its object and the kernel's error. Its text contains the cause and the causes of that, so no caller can lose them.
#[derive(Debug)]
pub struct Error {
    /// A verb: `create`, `read`, `list the addresses of`.
    pub operation: &'static str,
    /// The object's name or path.
    pub object: String,
    /// The normalised error.
    pub kind: Kind,
    /// The error itself.
    pub source: io::Error,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = error_chain(&self.source);
        write!(f, "cannot {} {}: {cause}", self.operation, self.object)
    }
}

/// An error and its causes, as one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Without `source`: the text contains it.
impl std::error::Error for Error {}

impl Error {
    /// Wraps an I/O error.
    pub fn io(operation: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        record_exhaustion(&source);
        Self {
            operation,
            object: object.into(),
            kind: Kind::of(&source),
            source,
        }
    }

    /// The content of a file cannot be decoded. The file is one of ours that can be removed: the message says so.
    pub fn undecodable(
        path: impl Into<String>,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let why = why.into();
        Self {
            operation: "decode",
            object: path.into(),
            kind: Kind::Undecodable,
            source: io::Error::other(format!(
                "{why}; to continue without this record, remove the file"
            )),
        }
    }

    /// Wraps an error that has no errno.
    pub fn other(
        operation: &'static str,
        object: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            operation,
            object: object.into(),
            kind: Kind::Other,
            source: io::Error::other(source),
        }
    }
}

impl Kind {
    /// Normalises an errno.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ESRCH | libc::EADDRNOTAVAIL) => {
                Self::Absent
            }
            Some(libc::EEXIST) => Self::Exists,
            Some(libc::EBUSY | libc::EAGAIN) => Self::Busy,
            Some(libc::EPERM | libc::EACCES) => Self::Denied,
            Some(_) => Self::Other,
            None => match error.kind() {
                io::ErrorKind::NotFound => Self::Absent,
                io::ErrorKind::AlreadyExists => Self::Exists,
                io::ErrorKind::PermissionDenied => Self::Denied,
                _ => Self::Other,
            },
        }
    }
}

/// Converts [`Kind::Absent`] to `None`.
pub fn absent_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::Absent => Ok(None),
        Err(error) => Err(error),
    }
}

/// Absent on delete is success: another process deleted it first.
pub fn absent_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind == Kind::Absent => Ok(()),
        other => other,
    }
}

/// `Exists` on create is success: the next observation decides whether it has the desired state.
pub fn exists_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind == Kind::Exists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_descriptor_exhaustion_is_recorded() {
        for errno in [libc::EMFILE, libc::ENFILE] {
            drop(Error::io("open", "it", io::Error::from_raw_os_error(errno)));
            drop(Error::io(
                "open",
                "it",
                io::Error::from_raw_os_error(libc::ENOENT),
            ));
            assert_eq!(exhausted().await.raw_os_error(), Some(errno));
        }
    }
}
