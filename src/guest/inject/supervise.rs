//! Keeps the agent running in the root directory of PID 1.
//! Out of scope: the agent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fstat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::parameters::Parameters;
use super::{Proc, report};
use crate::clock;

/// How long the agent waits for the root file system of a guest that has one. After that it serves in the initrd, so that a guest that does
/// not find its root file system can be repaired.
const ROOT_TIMEOUT: Duration = Duration::from_secs(60);
/// The interval between checks of the root directory until it is that of the root file system: a chroot(2) causes no event.
const STEP: Duration = Duration::from_millis(100);
/// The interval between these checks while the agent serves in the initrd.
const SLOW_STEP: Duration = Duration::from_secs(5);
/// How long after the start of the guest it may leave the initrd. After that nothing is checked.
const MAY_LEAVE: Duration = Duration::from_secs(600);
/// The pause before an agent that has failed is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause if it was ended by a signal of another program, which is the case when the guest powers off.
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// Never returns while the guest runs.
pub fn supervise() -> ExitCode {
    let error = match Supervisor::new() {
        Ok(mut supervisor) => supervisor.run(),
        Err(error) => error,
    };
    report(&format!("supervise: {error}"));
    ExitCode::FAILURE
}

struct Supervisor {
    proc: Proc,
    /// The root directory of the initrd.
    initrd: Root,
    /// Whether the guest is expected to leave the initrd.
    has_root: bool,
    started: Instant,
}

/// The identity of a root directory: device and inode.
type Root = (u64, u64);

impl Supervisor {
    fn new() -> io::Result<Self> {
        // No terminal's signals, and not those to the process group of the init.
        let _ = rustix::process::setsid();
        let proc = Proc::mount()?;
        let own = proc.open("self/root", OFlags::PATH | OFlags::DIRECTORY)?;
        let line = proc.command_line()?;
        Ok(Self {
            initrd: identity(&own)?,
            has_root: Parameters::parse(&line).root.is_some(),
            started: clock::monotonic(),
            proc,
        })
    }

    /// Returns only if `/proc` cannot be read.
    fn run(&mut self) -> io::Error {
        loop {
            let pause = match self.serve() {
                Ok(pause) => pause,
                Err(error) => return error,
            };
            std::thread::sleep(pause);
        }
    }

    /// Runs the agent until it ends or the root directory changes. The pause before it is to run again.
    fn serve(&self) -> io::Result<Duration> {
        let root = self.wait_for_root()?;
        let runs_in = identity(&root)?;
        let mut child = match start(root, self.has_root && runs_in == self.initrd) {
            Ok(child) => child,
            // `/proc` may not be mounted there yet.
            Err(error) => {
                report(&format!("start the agent: {error}"));
                return Ok(PAUSE);
            }
        };
        loop {
            // In the root file system the agent runs until it ends.
            let may_leave = runs_in == self.initrd && self.started.elapsed() < MAY_LEAVE;
            let patience = may_leave.then_some(SLOW_STEP);
            if let Some(status) = wait(&mut child, patience)? {
                report(&format!("the agent has ended: {status}"));
                return Ok(pause_after(status));
            }
            if identity(&self.proc.root_of_init()?)? != runs_in {
                if let Some(pid) = pid_of(&child) {
                    let _ = rustix::process::kill_process(pid, Signal::TERM);
                }
                child.wait()?;
                return Ok(Duration::ZERO);
            }
        }
    }

    /// The root directory in which the agent is to run.
    fn wait_for_root(&self) -> io::Result<OwnedFd> {
        loop {
            let root = self.proc.root_of_init()?;
            let has_left = identity(&root)? != self.initrd;
            if has_left || !self.has_root || self.started.elapsed() > ROOT_TIMEOUT {
                return Ok(root);
            }
            std::thread::sleep(STEP);
        }
    }
}

fn identity(directory: &OwnedFd) -> io::Result<Root> {
    let found = fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

/// Starts the agent. Its program has no path any more, and is executed through `/proc` of its own root directory. `in_initrd`: the root
/// file system was not found yet, and nothing that is written would last.
fn start(root: OwnedFd, in_initrd: bool) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("slice-agent").args(["serve", "--injected"]);
    if in_initrd {
        command.arg("--in-initrd");
    }
    let enter = move || {
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(c".")?;
        Ok(())
    };
    // SAFETY: two system calls, which allocate nothing and take no lock.
    unsafe {
        command.pre_exec(enter);
    }
    command.spawn()
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id().cast_signed())
}

/// Waits for the end of a process. Its status; `None` if it still runs after that time.
fn wait(child: &mut Child, patience: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(patience) = patience else {
        return child.wait().map(Some);
    };
    let pid = pid_of(child).ok_or_else(|| io::Error::other("no PID"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => child.try_wait(),
        Err(error) => Err(error.into()),
    }
}

fn pause_after(status: ExitStatus) -> Duration {
    let by_another = [Signal::TERM, Signal::KILL].map(Signal::as_raw);
    match status.signal() {
        Some(signal) if by_another.contains(&signal) => LONG_PAUSE,
        Some(_) | None => PAUSE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_was_ended_by_another_program_stays_away_longer() {
        for (raw, expected) in [
            (0, PAUSE),
            (1 << 8, PAUSE),
            (11, PAUSE),
            (15, LONG_PAUSE),
            (9, LONG_PAUSE),
        ] {
            assert_eq!(pause_after(ExitStatus::from_raw(raw)), expected, "{raw}");
        }
    }

    #[test]
    fn a_process_is_waited_for_until_it_ends_or_the_time_is_over() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("sleep");
        let step = Some(Duration::from_millis(20));
        assert_eq!(wait(&mut child, step).expect("a wait"), None);
        child.kill().expect("killed");
        let status = wait(&mut child, Some(Duration::from_secs(20))).expect("a wait");
        assert_eq!(status.and_then(|status| status.signal()), Some(9));
    }
}
