//! Files that stay open in a process which closes all its descriptors but the standard three.
//! Out of scope: which files; why (`crate::host::image`).
//!
//! # How
//! Firecracker's jailer closes whatever it was born with (`close_inherited_fds` in its `src/jailer/src/main.rs`) but its input, its
//! output and its standard error. So its standard error is one end of a pair of Unix sockets, and the files are sent to that end
//! (`SCM_RIGHTS`, unix(7)) and never received: what lies unread in a socket is open as long as the socket is, and the socket as long as
//! the last process that has it. The kernel alone sees to that: neither our end nor a crash of ours takes part.
//!
//! The other end lies there with them, so that somebody could always read what the process writes: else a complaint would end it
//! (EPIPE). Nobody reads once it is started, and a full buffer refuses (it does not block): a VMM's own words go to its output.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::host::Error;

/// Of one message: half of what the kernel takes (SCM_MAX_FD, 253).
const FILES_A_MESSAGE: usize = 120;
/// Bytes of what is said before a start has failed.
const MOST_WORDS: usize = 16 << 10;

/// What a process is to keep, before it is born. As long as this value lives we keep it, too.
#[derive(Debug)]
pub struct Keep {
    its: OwnedFd,
    ours: OwnedFd,
}

/// What a process that keeps something has said so far.
#[derive(Debug)]
pub struct Words(OwnedFd);

impl Keep {
    /// All of these, until whoever has [`Keep::standard_error`] as its own has ended.
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
        make().map_err(|error| Error::io("keep open for a process", "its files", error))
    }

    /// What the process is to be born with.
    pub fn standard_error(&self) -> BorrowedFd<'_> {
        self.its.as_fd()
    }

    /// The process is born, or will not be: it alone keeps the files now.
    pub fn let_go(self) -> Words {
        Words(self.ours)
    }
}

impl Words {
    /// All of it that has not been read before, 16 KiB at most.
    pub fn read(&self) -> Vec<u8> {
        let mut said = Vec::new();
        let mut buffer = [0_u8; 1024];
        while said.len() < MOST_WORDS {
            match rustix::io::read(&self.0, &mut buffer) {
                Err(Errno::INTR) => {}
                // Its end; nothing more as yet; or its end was closed with what it kept unread (ECONNRESET).
                Ok(0) | Err(_) => break,
                Ok(length) => said.extend_from_slice(&buffer[..length]),
            }
        }
        said
    }
}

fn send(through: &OwnedFd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_A_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files in one message"));
    }
    // A message without a byte is none.
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
    use std::time::{Duration, Instant};

    use rustix::fs::FlockOperation;

    use super::*;

    fn is_free(file: &File) -> bool {
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    #[test]
    fn a_lock_lives_as_long_as_a_process_that_has_closed_it_and_no_longer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = File::open(file.path()).unwrap();
        rustix::fs::flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        // More than one message takes.
        let many: Vec<File> = (0..300).map(|_| held.try_clone().unwrap()).collect();
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
        let words = keep.let_go();
        drop(fds);
        drop((many, held));
        let mut said = [0; 5];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(words.read(), b"words\n");
        drop(words);
        let other = File::open(file.path()).unwrap();
        assert!(!is_free(&other), "it lives");
        child.kill().unwrap();
        child.wait().unwrap();
        // A child that another test has forked meanwhile has a copy of every descriptor until its exec (O_CLOEXEC).
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_free(&other) {
            assert!(Instant::now() < deadline, "it has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn whoever_keeps_something_may_complain_without_end() {
        let keep = Keep::of(&[]).unwrap();
        let errors = keep.standard_error().try_clone_to_owned().unwrap();
        drop(keep.let_go());
        let mut last = Ok(0);
        for _ in 0..10_000 {
            last = rustix::io::write(&errors, &[b'x'; 1024]);
        }
        assert_eq!(last, Err(Errno::AGAIN), "neither blocks nor breaks");
    }
}
