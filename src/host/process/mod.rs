//! Processes: start, find, signal, wait.
//! Out of scope: the desired state.
//!
//! # Why a PID is not enough
//! PIDs are reused. A process is identified by PID, start time (`/proc/<pid>/stat`, field 22, in clock ticks since boot) and boot ID.
//! It is accessed through a pidfd, which is opened first and checked second: a later signal is sent to the process that was checked.

mod bind;
mod bounded;
mod capabilities;
mod census;
mod child;
mod confine;
mod confinement;
mod controls;
mod elf;
mod files;
mod filter;
mod helpers;
mod identity;
mod jail;
mod keep;
mod mounts;
mod origin;
mod query;
mod run;
mod spawn;
mod step;
mod usage;
mod user;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

pub use bounded::bounded;
pub use census::{Found, TapSlot, argv, env_var, find, shares_netns, tap_slot};
pub use confinement::{Confine, Jail, Reach};
pub use elf::is_static;
pub use files::{file_limit, original_file_limit, raise_file_limit};
pub use helpers::end_helpers;
pub use identity::{Identity, Record, read_record, uptime, write_record};
pub use keep::{Keep, StderrReader};
pub use mounts::{IdMap, can_be_mapped};
pub use origin::{Origin, Root, origin, origins, user_of};
pub use query::{Query, USER as QUERY_USER, query};
pub use run::{Ended, Outcome, run, run_until};
pub use spawn::{Spawn, spawn};
pub use usage::{LinkCounters, Usage, link_counters, usage};
pub use user::{kill_user, kill_users, user_lives};

use super::{Error, async_fd};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Not known: only the parent receives the exit status, and the daemon is not (or no longer) the parent.
    Unknown,
}

/// The names of the signals that commonly end a VMM (`signal(7)`). SIGSYS: a system call that its seccomp filter forbids.
const FATAL_SIGNALS: [(i32, &str); 12] = [
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGSYS, "SIGSYS"),
    (libc::SIGTERM, "SIGTERM"),
];

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => match FATAL_SIGNALS.iter().find(|(number, _)| number == signal)
            {
                Some((_, name)) => write!(f, "was killed by {name}"),
                None => write!(f, "was killed by signal {signal}"),
            },
            Self::Unknown => f.write_str("ended with unknown status"),
        }
    }
}

/// The state of a process.
#[derive(Debug)]
pub enum ProcessState {
    /// It runs.
    Alive(Process),
    /// It has ended; its PID may have been reused.
    Ended(Exit),
}

/// The signal that stops a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// A process that was alive when it was opened. The pidfd never refers to another process.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    pidfd: Arc<OwnedFd>,
}

/// Opens the process if it still runs. A zombie has ended; if it is a child of the daemon, its exit status is read but it is not reaped.
pub fn open(identity: &Identity) -> Result<ProcessState, Error> {
    let wrap =
        |error: rustix::io::Errno| Error::io("open process", identity.to_string(), error.into());
    if identity.boot != super::fs::boot_id()? {
        return Ok(ProcessState::Ended(Exit::Unknown));
    }
    let Some(pid) = identity.as_pid() else {
        return Ok(ProcessState::Ended(Exit::Unknown));
    };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        // EINVAL, and since Linux 6.15 ENOENT: the number is the ID of a thread now, not of a process.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {
            return Ok(ProcessState::Ended(Exit::Unknown));
        }
        Err(error) => return Err(wrap(error)),
    };
    match identity::stat_of(identity.pid)? {
        Some(stat) if stat.start == identity.start && !(stat.is_dead() && has_ended(&pidfd)) => {
            Ok(ProcessState::Alive(Process {
                identity: identity.clone(),
                pidfd: Arc::new(pidfd),
            }))
        }
        Some(stat) if stat.start == identity.start => {
            Ok(ProcessState::Ended(exit_of(&pidfd, WaitIdOptions::NOWAIT)))
        }
        Some(_) | None => Ok(ProcessState::Ended(Exit::Unknown)),
    }
}

/// Whether all threads have ended. If the first thread ends before the others, the process keeps its resources and has no exit status until
/// the last one ends (pidfd_open(2), "becomes readable").
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    rustix::event::poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Reaps a child of the daemon that has ended. Does nothing if it still runs or is not a child of the daemon.
pub fn reap(identity: &Identity) -> Result<(), Error> {
    let (ProcessState::Ended(_), Some(pid)) = (open(identity)?, identity.as_pid()) else {
        return Ok(());
    };
    // The PID of a zombie is not reused until it is reaped, so the start time identifies it.
    if identity::stat_of(identity.pid)?.is_some_and(|stat| stat.start == identity.start)
        && let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)
    {
        exit_of(&pidfd, WaitIdOptions::empty());
    }
    Ok(())
}

fn exit_of(pidfd: &OwnedFd, how: WaitIdOptions) -> Exit {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | how;
    let waited: Result<Option<WaitIdStatus>, _> =
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options);
    // ECHILD: not a child of the daemon.
    let Ok(Some(status)) = waited else {
        return Exit::Unknown;
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Unknown,
    }
}

impl Process {
    /// The identity of the process.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Sends the signal to this process. Not an error if it has ended.
    pub fn stop(&self, how: StopSignal) -> Result<(), Error> {
        let signal = match how {
            StopSignal::Terminate => Signal::TERM,
            StopSignal::Kill => Signal::KILL,
        };
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::io(
                "signal process",
                self.identity.to_string(),
                error.into(),
            )),
        }
    }

    /// Waits until the process has ended. Does not reap it: the next [`open`] still returns its exit status.
    /// One waiter at a time: a second one opens the process itself with [`open`].
    pub async fn ended(&self) -> Result<(), Error> {
        let wait = async || -> io::Result<()> {
            let watched = async_fd::register(Arc::clone(&self.pidfd), Interest::READABLE)?;
            // A pidfd stays readable once it is readable (pidfd_open(2)).
            watched.readable().await?.retain_ready();
            Ok(())
        };
        wait()
            .await
            .map_err(|error| Error::io("wait for process", self.identity.to_string(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_id_is_not_a_process() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid()).unwrap();
            let _ = stopped.recv();
        });
        let tid = receiver.recv().unwrap().as_raw_nonzero().get();
        let pid = u32::try_from(tid).unwrap();
        let stat = identity::stat_of(pid).unwrap().unwrap();
        for start in [stat.start, stat.start + 1] {
            let boot = crate::host::fs::boot_id().unwrap().to_owned();
            let life = open(&Identity { pid, start, boot }).unwrap();
            assert!(
                matches!(life, ProcessState::Ended(Exit::Unknown)),
                "{start}"
            );
        }
        drop(stop);
        thread.join().unwrap();
    }

    extern "C" fn sleep_on(_: *mut libc::c_void) -> libc::c_int {
        loop {
            // SAFETY: a plain system call.
            unsafe { libc::pause() };
        }
    }

    /// A child whose first thread is dead and whose second is not.
    fn headless() -> u32 {
        let mut stack = vec![0_u64; 8 << 10];
        let top = stack.as_mut_ptr_range().end;
        let thread = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        // SAFETY: after the fork only system calls are made, on a stack that was allocated before and is not used otherwise.
        let pid = unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::clone(sleep_on, top.cast(), thread, std::ptr::null_mut());
                libc::syscall(libc::SYS_exit, 0);
            }
            pid
        };
        u32::try_from(pid).unwrap()
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let pid = headless();
        let stat = loop {
            let stat = identity::stat_of(pid).unwrap().unwrap();
            if stat.is_dead() {
                break stat;
            }
            std::thread::yield_now();
        };
        let identity = Identity {
            pid,
            start: stat.start,
            boot: crate::host::fs::boot_id().unwrap().to_owned(),
        };
        let ProcessState::Alive(process) = open(&identity).unwrap() else {
            panic!("its second thread runs");
        };
        process.stop(StopSignal::Kill).unwrap();
        let exit = loop {
            if let ProcessState::Ended(exit) = open(&identity).unwrap() {
                break exit;
            }
            std::thread::yield_now();
        };
        assert_eq!(exit, Exit::Signal(9));
        reap(&identity).unwrap();
        assert!(identity::stat_of(pid).unwrap().is_none());
    }
}
