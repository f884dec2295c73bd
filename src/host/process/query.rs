//! Runs a program to query it, confined: for its version, or for whether it can use KVM.
//! Out of scope: programs that outlive the daemon.
//!
//! # How
//! The program is executed from its descriptor, in a minimal file system with the host's programs, as a user of its own, without
//! capabilities and without a way to gain any, in network, PID and IPC namespaces of its own, with limits on memory, CPU time,
//! processes and files. It writes to a pipe, of which a bounded part is read. When it has written the output, or at the deadline, the init
//! process of its PID namespace is killed, and with it everything it has started.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use tokio::process::Command;

use super::bind::check_long;
use super::confine::Cell;
use super::run::{Outcome, listen_to};
use super::spawn::check;
use crate::host::Error;
use crate::host::named::Named;

/// User and group of the program: the ID before the first default ID of VMMs, unused on hosts for the same reasons
/// (`crate::api::vmm_ids`).
pub const USER: u32 = 0x7800_0000 - 1;
/// Bytes of memory that it may map: more than any VMM with a guest of a few MiB needs, including QEMU's translation cache.
const MEMORY: u64 = 4 << 30;
/// Seconds of processor time.
const CPU: u64 = 10;
/// Processes and threads.
const THREADS: u64 = 64;
/// Open files.
const FILES: u64 = 256;

/// The program to run, its arguments and its environment.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The program.
    pub program: &'a Named,
    /// Its arguments, without its name.
    pub args: &'a [&'a str],
    /// Directories that were installed with it, mounted read-only.
    pub beside: &'a [PathBuf],
    /// The content of its standard input, which it may open again as `/proc/self/fd/0`. `None`: its standard input is empty.
    pub input: Option<&'a [u8]>,
    /// Whether it has `/dev/kvm`.
    pub kvm: bool,
}

/// Runs the query. Returns when `enough` is true of the standard output, when the program ends, or at the deadline.
pub async fn query(
    what: &Query<'_>,
    deadline: Duration,
    enough: impl Fn(&str) -> bool,
) -> Result<Outcome, Error> {
    let shown = what.program.real().display().to_string();
    let wrap = |error| Error::io("query", &shown, error);
    let cell = Cell::for_query(what, USER).map_err(wrap)?;
    let program = what.program.real();
    let mut command = std::process::Command::new(program);
    command
        .args(what.args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(match what.input {
            Some(bytes) => Stdio::from(in_memory(bytes).map_err(wrap)?),
            None => Stdio::null(),
        });
    let host = CString::new("slice-query").map_err(|error| wrap(error.into()))?;
    // SAFETY: between fork and exec only system calls are made, on descriptors and memory made before the fork.
    unsafe { command.pre_exec(move || in_the_child(&cell, &host)) };
    listen_to(Command::from(command), &shown, deadline, enough).await
}

/// A sealed file in memory: no process can write to it (memfd_create(2)).
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("slice-input", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// Only a child of the calling process is in the new PID namespace, so there are two processes: the first waits for the second and ends
/// with it, and the second is killed when the first ends.
fn in_the_child(cell: &Cell, host: &CString) -> io::Result<()> {
    // SAFETY: plain system calls on memory from before the fork.
    unsafe {
        check(libc::unshare(
            libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
        ))?;
        let child = libc::fork();
        check(child)?;
        if child > 0 {
            wait_for(child);
        }
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::sethostname(host.as_ptr(), host.count_bytes()))?;
        cell.enter()?;
        // The change of the user has reset it.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        for (which, limit) in [
            (libc::RLIMIT_AS, MEMORY),
            (libc::RLIMIT_CPU, CPU),
            (libc::RLIMIT_NPROC, THREADS),
            (libc::RLIMIT_NOFILE, FILES),
            (libc::RLIMIT_FSIZE, 1 << 20),
            (libc::RLIMIT_CORE, 0),
        ] {
            let limit = libc::rlimit {
                rlim_cur: limit,
                rlim_max: limit,
            };
            check(libc::setrlimit(which, &raw const limit))?;
        }
        libc::umask(0o077);
        let closed = libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
        check_long(closed)
    }
}

/// Waits for the child and exits with its status. Closes all descriptors, so that the reader of the pipes does not wait for this process.
/// When this process is killed, so is the child, which is the init of the PID namespace, and with it all processes in the namespace.
unsafe fn wait_for(child: libc::pid_t) -> ! {
    // SAFETY: plain system calls; the pointer is to a local.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) < 0
            && *libc::__errno_location() == libc::EINTR
        {}
        libc::_exit(match libc::WIFEXITED(status) {
            true => libc::WEXITSTATUS(status),
            false => 1,
        })
    }
}
