//! What the kernel answered, with its errno normalised once.
//! Out of scope: what to do about it.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use tokio::sync::Notify;

/// What ran out last, 0 for nothing yet.
static EXHAUSTED: AtomicI32 = AtomicI32::new(0);
static EXHAUSTION: Notify = Notify::const_new();

/// Notes an errno that says that descriptors are used up: ours (EMFILE) or the host's (ENFILE).
pub fn note_exhaustion(error: &io::Error) {
    if let Some(errno @ (libc::EMFILE | libc::ENFILE)) = error.raw_os_error() {
        EXHAUSTED.store(errno, Ordering::Relaxed);
        EXHAUSTION.notify_one();
    }
}

/// Comes back when descriptors have been used up since it came back last; what the kernel said.
pub async fn exhaustion() -> io::Error {
    EXHAUSTION.notified().await;
    io::Error::from_raw_os_error(EXHAUSTED.load(Ordering::Relaxed))
}

/// The five answers that a caller may act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ENOENT, ENODEV, ENXIO, ESRCH, EADDRNOTAVAIL: the thing is not there.
    Absent,
    /// EEXIST: it is there already.
    Exists,
    /// EBUSY, EAGAIN: not now.
    Busy,
    /// EPERM, EACCES.
    Denied,
    /// Anything else.
    Other,
}

/// What we were doing, to which thing, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {thing}")]
pub struct Error {
    /// A verb: `create`, `read`, `list the addresses of`.
    pub doing: &'static str,
    /// The thing's name or path.
    pub thing: String,
    /// The answer, normalised.
    pub kind: Kind,
    /// The answer itself.
    #[source]
    pub source: io::Error,
}

impl Error {
    /// Wraps an I/O error.
    pub fn io(doing: &'static str, thing: impl Into<String>, source: io::Error) -> Self {
        note_exhaustion(&source);
        Self {
            doing,
            thing: thing.into(),
            kind: Kind::of(&source),
            source,
        }
    }

    /// Wraps an error that has no errno.
    pub fn other(
        doing: &'static str,
        thing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            doing,
            thing: thing.into(),
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

/// Absent is an answer, too.
pub fn absent_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == Kind::Absent => Ok(None),
        Err(error) => Err(error),
    }
}

/// Absent on delete is success: somebody was faster.
pub fn absent_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind == Kind::Absent => Ok(()),
        other => other,
    }
}

/// Present on create is success: the next look decides whether it is the right one.
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
    async fn that_descriptors_are_used_up_is_noted_wherever_it_is_met_and_nothing_else_is() {
        for errno in [libc::EMFILE, libc::ENFILE] {
            drop(Error::io("open", "it", io::Error::from_raw_os_error(errno)));
            drop(Error::io(
                "open",
                "it",
                io::Error::from_raw_os_error(libc::ENOENT),
            ));
            assert_eq!(exhaustion().await.raw_os_error(), Some(errno));
        }
    }
}
