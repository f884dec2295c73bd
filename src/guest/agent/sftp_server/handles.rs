//! Open files and directories, and their numbers.
//! Out of scope: opening them.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Dir;
use rustix::io::Errno;

use super::Failure;

/// The maximum number of handles, below the usual limit of descriptors, two of which a directory has.
const MAX_HANDLES: usize = 256;

/// An open file or directory.
#[derive(Debug)]
pub enum Handle {
    /// A file, and whether data is always appended.
    File(File, bool),
    /// A directory, and the state of reading it.
    Directory(OwnedFd, Dir),
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file, _) => file.as_fd(),
            Self::Directory(directory, _) => directory.as_fd(),
        }
    }
}

/// All handles.
#[derive(Debug, Default)]
pub struct Handles {
    next: u32,
    open: HashMap<u32, Handle>,
}

impl Handles {
    /// Whether another one may be opened.
    pub fn check_limit(&self) -> Result<(), Failure> {
        match self.open.len() < MAX_HANDLES {
            true => Ok(()),
            false => Err(Errno::MFILE.into()),
        }
    }

    /// The number of a handle.
    pub fn add(&mut self, handle: Handle) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(number, handle);
        number
    }

    /// The handle with this number, as a request contains it.
    pub fn get(&mut self, number: &[u8]) -> Result<&mut Handle, Failure> {
        let number = number.try_into().map(u32::from_be_bytes);
        let found = number.ok().and_then(|number| self.open.get_mut(&number));
        found.ok_or_else(|| Errno::BADF.into())
    }

    /// Closes a handle.
    pub fn close(&mut self, number: &[u8]) -> Result<(), Failure> {
        let number = number.try_into().map(u32::from_be_bytes);
        let found = number.ok().and_then(|number| self.open.remove(&number));
        found.map(drop).ok_or_else(|| Errno::BADF.into())
    }
}
