//! A lock on a file that is released when it is dropped.
//! Out of scope: locks that a VMM inherits and keeps ([`super::image::hold`]).
//!
//! `flock(2)` locks the open file description, and a forked child shares every open file description of its parent until its exec.
//! If the descriptor were only closed, the file would stay locked while another thread starts a process.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::{Deref, DerefMut};

/// A locked file.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks the file against every other lock. Never waits. `Ok(Err(file))`: it is locked.
    pub fn exclusive(file: File) -> io::Result<Result<Self, File>> {
        let locked = file.try_lock();
        Self::of(file, locked)
    }

    /// Locks the file against exclusive locks. Never waits. `Ok(Err(file))`: it is locked.
    pub fn shared(file: File) -> io::Result<Result<Self, File>> {
        let locked = file.try_lock_shared();
        Self::of(file, locked)
    }

    /// Takes over a file that is locked already.
    pub(super) fn of_locked(file: File) -> Self {
        Self(file)
    }

    fn of(file: File, locked: Result<(), TryLockError>) -> io::Result<Result<Self, File>> {
        match locked {
            Ok(()) => Ok(Ok(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(Err(file)),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The error of an operation that needs a lock which is held: EWOULDBLOCK, as of `flock(2)`.
pub fn held() -> io::Error {
    rustix::io::Errno::WOULDBLOCK.into()
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot unlock a file");
        }
    }
}

impl Deref for FileLock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl DerefMut for FileLock {
    fn deref_mut(&mut self) -> &mut File {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn a_lock_is_released_although_a_copy_of_its_descriptor_is_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for lock in [FileLock::exclusive, FileLock::shared] {
            let held = lock(open(file.path())).unwrap().unwrap();
            let _copy = held.try_clone().unwrap();
            assert!(FileLock::exclusive(open(file.path())).unwrap().is_err());
            drop(held);
            drop(FileLock::exclusive(open(file.path())).unwrap().unwrap());
        }
    }

    #[test]
    fn a_shared_lock_excludes_exclusive_ones_only() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let _held = FileLock::shared(open(file.path())).unwrap().unwrap();
        assert!(FileLock::shared(open(file.path())).unwrap().is_ok());
        assert!(FileLock::exclusive(open(file.path())).unwrap().is_err());
    }
}
