//! Keeps files open in a process that closes all its descriptors but the standard three.
//! Out of scope: which files; why (`crate::host::image`).
//!
//! # How
//! Firecracker's jailer closes all inherited descriptors (`close_inherited_fds` in its `src/jailer/src/main.rs`) but its standard input,
//! output and error. So its standard error is one end of a pair of Unix sockets, and the files are sent to that end (`SCM_RIGHTS`, unix(7))
//! and never received: a file in the receive queue of a socket stays open until the socket is closed, that is until the last process
//! that has it ends. The kernel does this alone: neither the daemon's end nor a crash of the daemon matters.
//!
//! The other end is sent with them, so that the socket always has a reader: without one, a message of the process would end it (EPIPE).
//! After the start the socket is not read, and a write to a full buffer fails (it does not block): a VMM writes its messages to its
//! standard output.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::host::Error;

/// Files per message: about half of the kernel's limit (SCM_MAX_FD, 253).
const FILES_A_MESSAGE: usize = 120;
/// Maximum number of bytes that [`StderrReader::read`] returns.
const MAX_STDERR: usize = 16 << 10;

/// Files for a process that has not been started yet. The daemon keeps them open, too, while this value exists.
#[derive(Debug)]
pub struct Keep {
    its: OwnedFd,
    ours: OwnedFd,
}

/// The standard error of a process that was started with a [`Keep`].
#[derive(Debug)]
pub struct StderrReader(OwnedFd);

impl Keep {
    /// Keeps these files open until every process with [`Keep::standard_error`] as its standard error has ended.
    pub fn of(files: &[BorrowedFd<'_>]) -> Result<Self, Error> {
        let make = || -> io::Result<Self> {
            let (its, ours) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            let all: Vec<BorrowedFd<'_>> = files.iter().copied().chain([ours.as_fd()]).collect();
            for some in all.chunks(FILES_A_MESSAGE) {
                send(&ours, some)?;
            }
            Ok(Self { its, ours })
        };
        make().map_err(|error| Error::io("keep files open in", "a new process", error))
    }

    /// The standard error to start the process with.
    pub fn standard_error(&self) -> BorrowedFd<'_> {
        self.its.as_fd()
    }

    /// Closes the daemon's copies after the start, or after its failure: only the process keeps the files open now.
    pub fn let_go(self) -> StderrReader {
        StderrReader(self.ours)
    }
}

impl StderrReader {
    /// Reads the output that has not been read before, at most 16 KiB. Does not block.
    pub fn read(&self) -> Vec<u8> {
        let mut output = Vec::new();
        let mut buffer = [0_u8; 1024];
        while output.len() < MAX_STDERR {
            match rustix::io::read(&self.0, &mut buffer) {
                Err(Errno::INTR) => {}
                // End of file; no output yet (EAGAIN); or the other end was closed with unread data (ECONNRESET).
                Ok(0) | Err(_) => break,
                Ok(length) => output.extend_from_slice(&buffer[..length]),
            }
        }
        output
    }
}

fn send(through: &OwnedFd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_A_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files in one message"));
    }
    // Ancillary data needs at least one byte of data.
    rustix::net::sendmsg(
        through,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use rustix::fs::FlockOperation;

    use super::*;

    fn is_free(file: &File) -> bool {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Whether a child of this process has not called exec yet.
    fn has_forked_children() -> bool {
        let us = std::fs::read_link("/proc/self/exe").unwrap();
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let children = tasks.flat_map(|task| {
            let pids = std::fs::read_to_string(task.path().join("children"));
            let pids = pids.unwrap_or_default();
            pids.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        let mut exes = children.map(|pid| std::fs::read_link(format!("/proc/{pid}/exe")));
        exes.any(|exe| exe.is_ok_and(|exe| exe == us))
    }

    #[test]
    fn a_lock_is_kept_until_a_process_that_has_closed_the_file_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let locked = File::open(file.path()).unwrap();
        rustix::fs::flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
        // More than fit in one message.
        let many: Vec<File> = (0..300).map(|_| locked.try_clone().unwrap()).collect();
        let fds: Vec<BorrowedFd<'_>> = many.iter().map(AsFd::as_fd).collect();
        let keep = Keep::of(&fds).unwrap();
        let errors = keep.standard_error().try_clone_to_owned().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "for fd in 3 4 5 6 7 8 9; do eval \"exec $fd>&-\"; done; echo words >&2; echo done; exec sleep 600"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let stderr = keep.let_go();
        drop(fds);
        drop((many, locked));
        let mut buffer = [0; 5];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut buffer).unwrap();
        assert_eq!(stderr.read(), b"words\n");
        drop(stderr);
        let other = File::open(file.path()).unwrap();
        assert!(!is_free(&other), "the process runs");
        child.kill().unwrap();
        child.wait().unwrap();
        // Only a child that another test has forked, which has a copy of every descriptor until its exec, may keep it a moment longer.
        while !is_free(&other) {
            assert!(
                has_forked_children() || is_free(&other),
                "the process has ended"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn unread_output_of_a_process_does_not_block_or_end_it() {
        let keep = Keep::of(&[]).unwrap();
        let errors = keep.standard_error().try_clone_to_owned().unwrap();
        drop(keep.let_go());
        let mut last = Ok(0);
        for _ in 0..10_000 {
            last = rustix::io::write(&errors, &[b'x'; 1024]);
        }
        assert_eq!(last, Err(Errno::AGAIN), "no block, no EPIPE");
    }
}
