//! The process beside a QEMU that handles its vsock device: `sliced` in another mode, confined as the VMM is, by the same user.
//! Out of scope: what it does ([`crate::vsock`]).
//!
//! # Lifetime
//! It is started before its QEMU, which connects to it, and ends by itself when QEMU does, so that no daemon is needed for it to end. Its own
//! record next to the run directory names it; it is written before its exec, as that of the VMM. If it ends before QEMU, the guest keeps
//! running without guest access until its VMM is started again.

use std::path::Path;
use std::time::Duration;

use super::{CONSOLE, Desired, LABEL_VAR, LOG_LIMIT, ROLE_VAR, ending};
use crate::host::Error;
use crate::host::process::{
    self, Confine, Identity, ProcessState, Reach, Record, Spawn, StopSignal,
};
use crate::vmm::{Launch, VHOST_VSOCK, VSOCK};
use crate::vsock::ARGUMENT;

/// Deadline for its sockets to exist, and the interval between checks.
const START_DEADLINE: Duration = Duration::from_secs(5);
const START_STEP: Duration = Duration::from_millis(2);
/// Deadline for it to end after SIGKILL, and the interval between checks.
const KILL_DEADLINE: Duration = Duration::from_secs(2);
const KILL_STEP: Duration = Duration::from_millis(2);
/// Number of lines of its output that are reported after a failed start.
const LAST_LINES: usize = 2;

/// The state of the back end of a vsock device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackEndState {
    /// The VMM has none: it handles the device itself, or has no device.
    None,
    /// It runs.
    Running(Identity),
    /// It has ended.
    Ended(process::Exit),
}

impl BackEndState {
    /// Of the VMM with this run directory.
    pub fn of(dir: &Path) -> Result<Self, Error> {
        match process::read_record(&dir.with_file_name(super::BACK_END_RECORD)) {
            Ok(Record::Of(identity)) => Ok(match process::open(&identity)? {
                ProcessState::Alive(_) => Self::Running(identity),
                ProcessState::Ended(exit) => Self::Ended(exit),
            }),
            Ok(Record::Unborn) => Ok(Self::Ended(process::Exit::Unknown)),
            Ok(Record::None) => Ok(Self::None),
            Err(error) => Err(error),
        }
    }
}

/// Starts it and waits until QEMU can connect to it. It limits the files of QEMU when QEMU runs. Blocks.
pub(super) fn start(
    sliced: &Path,
    desired: &Desired,
    launch: &Launch,
    cgroup: Option<&Path>,
    vmm_file_limit: u64,
) -> Result<(), Error> {
    let label = desired.label.to_string();
    let program = sliced.display().to_string();
    let limit = vmm_file_limit.to_string();
    let argv = [&program, ARGUMENT, VSOCK, VHOST_VSOCK, &limit].map(str::to_owned);
    let reach = [Reach {
        path: sliced,
        writable: false,
        named: None,
        map: None,
    }];
    let confine = desired.confined.as_ref().map(|confined| Confine {
        user: confined.user,
        home: &desired.dir,
        reach: &reach,
        kvm: false,
        cgroup,
        jail: None,
    });
    let identity = process::spawn(&Spawn {
        argv: &argv,
        env: &[(LABEL_VAR, &label), (ROLE_VAR, "vsock")],
        cwd: &desired.dir,
        netns: launch.netns(),
        needs_link: &launch.tap,
        input: None,
        log: &desired.dir.join(CONSOLE),
        file_limit: LOG_LIMIT,
        record: &desired.back_end_record(),
        inherits: &[],
        program: None,
        confine,
    })?;
    await_socket(desired, &identity)
}

fn await_socket(desired: &Desired, identity: &Identity) -> Result<(), Error> {
    let socket = desired.dir.join(VHOST_VSOCK);
    let mut waited = Duration::ZERO;
    while !socket.exists() {
        let failed = |reason: String| Error::other("start", "the back end of vsock", reason);
        if let ProcessState::Ended(exit) = process::open(identity)? {
            let output = ending::last_lines(&desired.dir, LAST_LINES).join("; ");
            return Err(failed(format!("it {exit}; last output: {output}")));
        }
        if waited >= START_DEADLINE {
            stop(desired)?;
            let deadline = humantime::format_duration(START_DEADLINE);
            return Err(failed(format!(
                "it has created no socket within {deadline}"
            )));
        }
        std::thread::sleep(START_STEP);
        waited += START_STEP;
    }
    Ok(())
}

/// Kills the recorded process, if it runs, and reaps it. Blocks.
pub(super) fn stop(desired: &Desired) -> Result<(), Error> {
    let identity = match process::read_record(&desired.back_end_record()) {
        Ok(Record::Of(identity)) => identity,
        Ok(Record::None | Record::Unborn) => return Ok(()),
        // Also if a start is in progress, of a daemon that was killed: the child executes the program soon, or ends.
        Err(error) => return Err(error),
    };
    let mut waited = Duration::ZERO;
    while let ProcessState::Alive(found) = process::open(&identity)? {
        if waited >= KILL_DEADLINE {
            let object = format!("process {}", identity.pid);
            let reason = "the back end of vsock still runs after SIGKILL";
            return Err(Error::other("stop", object, reason));
        }
        found.stop(StopSignal::Kill)?;
        std::thread::sleep(KILL_STEP);
        waited += KILL_STEP;
    }
    process::reap(&identity)
}
