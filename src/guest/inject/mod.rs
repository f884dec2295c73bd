//! The agent in a guest with an image that does not contain it: `agent: inject`.
//! Out of scope: how it gets there ([`crate::vmm`]); the agent itself ([`super::agent`]).
//!
//! The kernel executes this program as [`INIT`] of an initramfs. It starts a process that keeps the agent running, and executes the init of
//! the user's initrd, or, where there is none, mounts the root file system and executes its init. Nothing is written to the image.
//!
//! # Why
//! - That process stays in the initramfs, and the user's init deletes the files there: its program lives as long as it is executed. It starts the
//!   agent in the root directory of PID 1, so that requests find the files of the guest, and again if the agent ends.
//! - Its `argv[0]` begins with `@`: systemd and others do not kill such a process when they leave an initrd (systemd,
//!   `ROOT_STORAGE_DAEMONS`). The agent has an ordinary name, and ends when the guest powers off.
//! - It sees `/proc` through a mount of its own that has no path: the user's init mounts, moves and unmounts `/proc` as it likes.
//!
//! | file | content |
//! |---|---|
//! | `parameters` | pure: the kernel command line |
//! | `supervise` | keeps the agent running |
//! | `boot` | without an init in the initrd: mounts the root file system and executes its init |
//! | `device` | finds the device of the root file system |
//! | `superblock` | pure: UUIDs and labels of file systems and partitions |

mod boot;
mod device;
mod parameters;
mod superblock;
mod supervise;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use self::parameters::Parameters;
pub use self::supervise::supervise;

/// The path of this program in the initramfs, and of the init that the kernel executes.
pub const INIT: &str = "/.slice/init";
/// The name of the process that keeps the agent running.
const SUPERVISOR: &str = "@slice-agent";
/// The maximum size of the kernel command line that is read, in bytes; that of the kernel is smaller.
const CMDLINE_LIMIT: u64 = 64 << 10;

/// Whether the kernel has executed this program as [`INIT`].
pub fn is_injected_init() -> bool {
    rustix::process::getpid().is_init()
        && std::env::args_os().next().is_some_and(|name| name == INIT)
}

/// PID 1: starts the process that keeps the agent running, then becomes the init of the guest. Returns only if there is none; then the
/// kernel panics.
pub fn init() -> ExitCode {
    let parameters = match Proc::mount().and_then(|proc| proc.command_line()) {
        Ok(line) => Parameters::parse(&line),
        Err(error) => {
            report(&format!("read the kernel command line: {error}"));
            Parameters::default()
        }
    };
    // The guest boots also without an agent.
    if let Err(error) = Command::new(INIT).arg0(SUPERVISOR).arg("supervise").spawn() {
        report(&format!("start the agent: {error}"));
    }
    let program = parameters.ramdisk_init.as_deref().unwrap_or("/init");
    if Path::new(program).exists() {
        let error = become_init(program);
        report(&format!("execute {program} of the initrd: {error}"));
        return ExitCode::FAILURE;
    }
    report(&boot::boot(&parameters));
    ExitCode::FAILURE
}

/// Executes an init with the arguments and the environment from the kernel. Returns only if that fails.
fn become_init(program: &str) -> io::Error {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    Command::new(program).args(arguments).exec()
}

/// A mount of procfs without a path.
#[derive(Debug)]
struct Proc(OwnedFd);

impl Proc {
    fn mount() -> io::Result<Self> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self(mount))
    }

    fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(
            &self.0,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }

    /// The root directory of PID 1.
    fn root_of_init(&self) -> io::Result<OwnedFd> {
        self.open("1/root", OFlags::PATH | OFlags::DIRECTORY)
    }

    fn command_line(&self) -> io::Result<String> {
        let file = File::from(self.open("cmdline", OFlags::RDONLY)?);
        let mut line = Vec::new();
        file.take(CMDLINE_LIMIT).read_to_end(&mut line)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Prints a line on the console.
fn report(text: &str) {
    eprintln!("slice-agent: {text}");
}
