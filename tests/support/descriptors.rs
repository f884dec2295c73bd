//! Copies of this process' descriptors, as every child has them between its fork and its exec.
//! Out of scope: tests.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Copies a descriptor of this file, as soon as this process has one open. The copy belongs to the same open file description.
pub fn copy_of(file: &Path) -> OwnedFd {
    loop {
        for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            if std::fs::read_link(fd.path()).is_ok_and(|path| path == file) {
                let fd: i32 = fd.file_name().to_str().unwrap().parse().unwrap();
                // SAFETY: only copied; if it was closed meanwhile, that fails.
                let fd = unsafe { BorrowedFd::borrow_raw(fd) };
                if let Ok(copy) = fd.try_clone_to_owned()
                    && is_of(&copy, file)
                {
                    return copy;
                }
            }
        }
    }
}

/// Its number may have been reused between the look and the copy.
fn is_of(copy: &OwnedFd, file: &Path) -> bool {
    let link = format!("/proc/self/fd/{}", copy.as_raw_fd());
    std::fs::read_link(link).is_ok_and(|path| path == file)
}
