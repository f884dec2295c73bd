//! Runs a program to query it, confined: for its version, or for whether it can use KVM.
//! Out of scope: programs that outlive the daemon.
//!
//! # How
//! The program is executed from its descriptor, in a minimal file system with the host's programs, as a user of its own, without
//! capabilities and without a way to gain any, in network, PID and IPC namespaces of its own, with limits on memory, CPU time,
//! processes and files. It writes to a pipe, of which a bounded part is read. When it has written the output, or at the deadline, the init
//! process of its PID namespace is killed, and with it everything it has started.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Resource, Signal, WaitOptions, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use tokio::process::Command;

use super::child::{Setup, before_exec};
use super::confine::{Cell, End, LOCKED_DOWN, set_limit};
use super::confinement::Reach;
use super::run::{Outcome, listen_to};
use crate::host::Error;
use crate::host::named::Named;
use crate::host::syscall::{close_on_exec_from, exit, unshare};

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
    before_exec(&mut command, QuerySetup { cell });
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

impl Cell {
    /// The confinement of a [`Query`]: no home, no network and no files of its own.
    fn for_query(what: &Query<'_>, user: u32) -> io::Result<Self> {
        let mut cell = Self::empty(user, c"/".to_owned(), c"slice-query".to_owned(), End::User);
        cell.add_system()?;
        cell.add_devices(what.kvm)?;
        let alone = LOCKED_DOWN | MountFlags::NOEXEC;
        cell.fresh(("proc", "proc"), Path::new("/proc"), alone, "hidepid=2")?;
        for path in what.beside {
            cell.show(&Reach {
                path,
                writable: false,
                named: None,
                map: None,
            })?;
        }
        cell.show(&Reach {
            path: what.program.real(),
            writable: false,
            named: Some(what.program),
            map: None,
        })?;
        Ok(cell)
    }
}

/// The data that the child needs between fork and exec.
struct QuerySetup {
    cell: Cell,
}

impl Setup for QuerySetup {
    /// Only a child of the calling process is in the new PID namespace, so there are two processes: the first waits for the second and ends
    /// with it, and the second is killed when the first ends. Makes only system calls.
    fn in_the_child(&self) -> io::Result<()> {
        let namespaces = UnshareFlags::NEWPID
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS;
        unshare(namespaces)?;
        // SAFETY: like its parent, itself a child of the daemon before its exec, the child makes only system calls. rustix has fork(2) only
        // in its hidden module `runtime`.
        let child = unsafe { libc::fork() };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some(child) = Pid::from_raw(child) {
            wait_for(child);
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::system::sethostname(b"slice-query")?;
        self.cell.enter()?;
        // The change of the user has reset it.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        for (which, limit) in [
            (Resource::As, MEMORY),
            (Resource::Cpu, CPU),
            (Resource::Nproc, THREADS),
            (Resource::Nofile, FILES),
            (Resource::Fsize, 1 << 20),
            (Resource::Core, 0),
        ] {
            set_limit(which, limit)?;
        }
        rustix::process::umask(Mode::RWXG | Mode::RWXO);
        close_on_exec_from(3)
    }
}

/// Waits for the child and exits with its status. Closes all descriptors, so that the reader of the pipes does not wait for this process.
/// When this process is killed, so is the child, which is the init of the PID namespace, and with it all processes in the namespace.
fn wait_for(child: Pid) -> ! {
    // SAFETY: close_range(2) takes three integers. This process uses no descriptor until it exits, and none of its values is dropped.
    // rustix does not have close_range(2), because descriptors have owners.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let wait = || rustix::process::waitpid(Some(child), WaitOptions::empty());
    exit(match rustix::io::retry_on_intr(wait) {
        Ok(Some((_, status))) => status.exit_status().unwrap_or(1),
        Ok(None) | Err(_) => 0,
    })
}
