//! The life of a process: its end, signals to its process group or session, and its removal from the process table.
//! Out of scope: starting the program (`child`), its output (`output`).
//!
//! The process leads a session and a process group. Its id is not used again while it is a zombie, so signals are sent only before it is
//! reaped; it stays a zombie until a termination of the other processes of its group has ended.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open,
    waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use super::super::async_fd::register;
use super::child::{Streams, spawn};
use super::error::Error;
use super::spec::{Spec, StartError};
use crate::clock;

/// The maximum time to start a process: the working directory may be on a file system that does not answer.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The time between `TERM` and `KILL` for a process after its client has left.
const ABANDONED_GRACE: Duration = Duration::from_secs(2);

/// How often the process table is read while a group without a leader is being terminated: the kernel does not report its end.
const MEMBERS_INTERVAL: Duration = Duration::from_millis(100);

/// Which processes receive the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The process group.
    Group,
    /// The session: a shell with job control puts each job into a group of its own.
    Session,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The exit status; 128 and the number of the signal if a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<String>,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// A process that was started.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// When it was started.
    pub started_at: Timestamp,
    scope: Scope,
    ending: watch::Sender<Option<Ending>>,
    /// When `KILL` is sent.
    deadline: watch::Sender<Option<Instant>>,
    reaped: Mutex<bool>,
}

/// Terminates a process unless [`Abandoned::keep`] is called: its client has left.
#[derive(Debug)]
pub struct Abandoned(Option<Arc<Process>>);

impl Abandoned {
    /// The process outlives its client.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let running = |process: &&Arc<Process>| process.ending().is_none();
        if let Some(process) = self.0.as_ref().filter(running) {
            match process.scope {
                Scope::Group => process.terminate(Signal::TERM, ABANDONED_GRACE),
                Scope::Session => {
                    process.terminate(Signal::HUP, ABANDONED_GRACE);
                    // Jobs that are stopped receive no other signal before.
                    process.signal(Signal::CONT);
                }
            }
        }
    }
}

/// A process that was started, and the other ends of its pipes.
#[derive(Debug)]
pub struct Spawned {
    /// The process.
    pub process: Arc<Process>,
    /// Terminates it when its client leaves.
    pub abandoned: Abandoned,
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// Starts a process.
///
/// # Errors
/// See [`Spec::resolve`] and [`spawn`]; the start takes longer than 10 seconds.
pub async fn start(spec: Spec, streams: Streams, scope: Scope) -> Result<Spawned, StartError> {
    // Not in this thread: another request shall not wait for a file system that does not answer. If the client leaves meanwhile, the result
    // is dropped, which terminates the process.
    let task = tokio::task::spawn_blocking(move || start_here(&spec, streams, scope));
    match timeout(START_LIMIT, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(Error::system("start a process", &io::Error::other(error)).into()),
        Err(_) => Err(Error::unavailable("the process did not start within 10 s").into()),
    }
}

fn start_here(spec: &Spec, streams: Streams, scope: Scope) -> Result<Spawned, StartError> {
    let mut child = spawn(&spec.resolve()?, streams)?;
    let watched = Pid::from_raw(child.id().cast_signed())
        .ok_or_else(|| io::Error::other("invalid process id"))
        .and_then(|pid| {
            let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
            Ok((pid, register(descriptor, Interest::READABLE)?))
        });
    let (pid, exited) = match watched {
        Ok(watched) => watched,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::system("observe a process", &error).into());
        }
    };
    let process = Arc::new(Process {
        pid,
        started_at: clock::now(),
        scope,
        ending: watch::Sender::new(None),
        deadline: watch::Sender::new(None),
        reaped: Mutex::new(false),
    });
    tokio::spawn(Arc::clone(&process).supervise(exited));
    Ok(Spawned {
        abandoned: Abandoned(Some(Arc::clone(&process))),
        process,
        stdin: child.stdin.take().map(OwnedFd::from),
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
    })
}

impl Process {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended; `None` while it runs.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.borrow().clone()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Ending {
        let mut ending = self.ending.subscribe();
        loop {
            if let Some(ending) = ending.borrow_and_update().clone() {
                return ending;
            }
            if ending.changed().await.is_err() {
                // The sender is part of `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends a signal to the group or session.
    pub fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock();
        if *reaped {
            return;
        }
        // A process that ends meanwhile is no error.
        match self.scope {
            Scope::Group => {
                let _ = kill_process_group(self.pid, signal);
            }
            Scope::Session => {
                for pid in self.members().into_iter().chain([self.pid]) {
                    let _ = kill_process(pid, signal);
                }
            }
        }
    }

    /// Sends a signal, and `KILL` after a time to the processes that still run.
    pub fn terminate(&self, signal: Signal, grace: Duration) {
        self.signal(signal);
        let deadline = clock::monotonic() + grace;
        self.deadline.send_modify(|before| {
            *before = Some(before.map_or(deadline, |before| before.min(deadline)));
        });
    }

    /// The other processes of the group or session that run, from proc(5).
    fn members(&self) -> Vec<Pid> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let own = self.pid.as_raw_nonzero().get();
        let member = |name: &str| {
            let pid = name.parse().ok().and_then(Pid::from_raw)?;
            let stat = fs::read_to_string(format!("/proc/{name}/stat")).ok()?;
            let (state, group, session) = group_and_session(&stat)?;
            let id = match self.scope {
                Scope::Group => group,
                Scope::Session => session,
            };
            (id == own && pid != self.pid && state != "Z").then_some(pid)
        };
        let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| member(&name)).collect()
    }

    async fn supervise(self: Arc<Self>, exited: AsyncFd<OwnedFd>) {
        let mut deadline = self.deadline.subscribe();
        loop {
            let at = *deadline.borrow_and_update();
            tokio::select! {
                _ = exited.readable() => break,
                () = elapsed(at) => {
                    self.signal(Signal::KILL);
                    self.deadline.send_replace(None);
                }
                _ = deadline.changed() => {}
            }
        }
        self.ending.send_replace(Some(self.read_ending()));
        // What of the group has not ended yet has the same time; a process that left the group is not found.
        let deadline = *self.deadline.borrow();
        if let Some(deadline) = deadline {
            while clock::monotonic() < deadline && !self.members().is_empty() {
                sleep(MEMBERS_INTERVAL).await;
            }
            self.signal(Signal::KILL);
        }
        let mut reaped = self.reaped.lock();
        let _ = waitid(
            WaitId::Pid(self.pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        *reaped = true;
    }

    /// Reads the exit status and leaves the zombie.
    fn read_ending(&self) -> Ending {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::Pid(self.pid), options).ok().flatten();
        let signal = status
            .as_ref()
            .and_then(|status| status.terminating_signal());
        let exit_code = status.as_ref().and_then(|status| status.exit_status());
        Ending {
            exit_code: signal
                .map(|number| 128 + number)
                .or(exit_code)
                .unwrap_or(255),
            signal: signal.map(signal_name),
            ended_at: clock::now(),
        }
    }
}

async fn elapsed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// State, process group and session in `/proc/PID/stat`. The name before them may contain blanks and parentheses.
fn group_and_session(stat: &str) -> Option<(&str, i32, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group, fields.next()?.parse().ok()?))
}

/// The names of the signals 1 to 31 of signal(7).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `SIGKILL`; the number of a real-time signal.
fn signal_name(number: i32) -> String {
    let index = usize::try_from(number - 1).ok();
    match index.and_then(|index| SIGNALS.get(index)) {
        Some(name) => format!("SIG{name}"),
        None => format!("signal {number}"),
    }
}

/// The signals of a request, with or without the prefix `SIG`.
pub fn signal_of(name: &str) -> Option<(&'static str, Signal)> {
    let short = name.strip_prefix("SIG").unwrap_or(name);
    Some(match short {
        "TERM" => ("SIGTERM", Signal::TERM),
        "KILL" => ("SIGKILL", Signal::KILL),
        "INT" => ("SIGINT", Signal::INT),
        "HUP" => ("SIGHUP", Signal::HUP),
        "QUIT" => ("SIGQUIT", Signal::QUIT),
        "USR1" => ("SIGUSR1", Signal::USR1),
        "USR2" => ("SIGUSR2", Signal::USR2),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_and_session_follow_a_name_with_any_characters() {
        assert_eq!(
            group_and_session("7 (a) b (c)) S 1 7 8 0 -1"),
            Some(("S", 7, 8))
        );
        assert_eq!(group_and_session("7 (a) S 1"), None);
    }

    #[test]
    fn signals_have_the_names_of_the_kernel() {
        for signal in [Signal::HUP, Signal::KILL, Signal::TERM, Signal::SYS] {
            let name = format!("{signal:?}");
            assert!(
                name.to_uppercase()
                    .contains(&signal_name(signal.as_raw())[3..]),
                "{name}"
            );
        }
        assert_eq!(signal_name(40), "signal 40");
    }
}
