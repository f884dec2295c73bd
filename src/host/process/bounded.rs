//! Bounds a call of a library that starts a program and waits for it without a deadline.
//! Out of scope: programs that this crate starts itself ([`mod@super::run`]).
//!
//! # Why a thread
//! Such a library offers no access to its child, so the caller waits for a thread that makes the call. The kernel lists the children of
//! each thread (`/proc/<pid>/task/<tid>/children`): at the deadline they are killed, which ends the call. A child in uninterruptible
//! sleep does not end, and its thread is abandoned; the number of abandoned threads is limited.
//!
//! The program is no [`Helper`](super::helpers): when the daemon ends, it runs on until it has printed its output, and it has the raised
//! limit of open files. Both are harmless for a program that reads a table.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::helpers;

/// Threads that may be abandoned at the same time.
const MAX_ABANDONED: usize = 16;

/// The interval at which the descendants are killed again.
const KILL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a call may take to return after its program was killed.
const RETURN: Duration = Duration::from_secs(2);

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// Runs `call` on a thread in the calling thread's namespaces, and waits for it for at most `deadline`. Blocks.
///
/// # Errors
/// The deadline has passed ([`io::ErrorKind::TimedOut`]), too many earlier calls have not returned, the daemon is shutting down, or `call`
/// panicked.
pub fn bounded<T: Send + 'static>(
    deadline: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let until = Instant::now() + deadline;
    if ABANDONED.load(Ordering::Relaxed) >= MAX_ABANDONED {
        let why = "too many earlier calls have not returned";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    let settlement = Settlement::default();
    let of_thread = settlement.clone();
    let (send_id, id) = mpsc::sync_channel(1);
    let (send_result, result) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("bounded".to_owned())
        .spawn(move || {
            let _returned = Returned(of_thread);
            report(&send_id, rustix::thread::gettid());
            // After the deadline nobody would end the program.
            if Instant::now() < until && !helpers::are_ending() {
                report(&send_result, call());
            }
        })?;
    let left = || until.saturating_duration_since(Instant::now());
    let thread = id.recv_timeout(left());
    match result.recv_timeout(left()) {
        Ok(result) => Ok(result),
        Err(RecvTimeoutError::Disconnected) if helpers::are_ending() => {
            Err(io::Error::other("the daemon is shutting down"))
        }
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread panicked")),
        Err(RecvTimeoutError::Timeout) => {
            let end = match thread {
                Ok(thread) => kill_until_returned(thread, &result),
                Err(_) => End::NotStarted,
            };
            settlement.abandon();
            Err(overdue(deadline, &end))
        }
    }
}

/// How a call ended after its deadline.
enum End {
    /// The thread did not run in time, and does not start a program any more.
    NotStarted,
    /// Its program was killed.
    Killed,
    /// It has not returned; the error if its processes could not be listed.
    Running(Option<io::Error>),
}

/// Kills the descendants of the thread until the call returns: they may start others meanwhile.
fn kill_until_returned<T>(thread: Pid, result: &mpsc::Receiver<T>) -> End {
    let until = Instant::now() + RETURN;
    let mut failed = None;
    while Instant::now() < until {
        failed = kill_children(rustix::process::getpid(), thread).err();
        match result.recv_timeout(KILL_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(RecvTimeoutError::Disconnected) => return End::Killed,
        }
    }
    End::Running(failed)
}

/// An error means that the caller no longer waits.
fn report<T>(to: &SyncSender<T>, value: T) {
    let _ = to.send(value);
}

fn overdue(deadline: Duration, end: &End) -> io::Error {
    let deadline = humantime::format_duration(deadline);
    let end = match end {
        End::NotStarted => "was not started".to_owned(),
        End::Killed => "was killed".to_owned(),
        End::Running(None) => "does not end although it was killed".to_owned(),
        End::Running(Some(error)) => format!("still runs: its processes cannot be listed: {error}"),
    };
    let why = format!("it did not end within its deadline of {deadline} and {end}");
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// Set by the first of the two events: the caller has given up, the thread has returned.
#[derive(Clone, Default)]
struct Settlement(Arc<AtomicBool>);

impl Settlement {
    /// Counts the thread until it returns.
    fn abandon(&self) {
        ABANDONED.fetch_add(1, Ordering::Relaxed);
        self.second();
    }

    /// Reverts the count if the other event has happened.
    fn second(&self) {
        if self.0.swap(true, Ordering::AcqRel) {
            ABANDONED.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The thread. Dropped when the call has returned or panicked.
struct Returned(Settlement);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.second();
    }
}

/// Sends SIGKILL to the descendants that a thread has started. Opens a pidfd first and checks second that its process is still a child of
/// the thread: until the thread reaps it, its PID is not reused.
///
/// # Errors
/// The children of the thread cannot be listed: without `CONFIG_PROC_CHILDREN` the file does not exist.
fn kill_children(process: Pid, thread: Pid) -> io::Result<()> {
    for child in children(process, thread)? {
        let Ok(pidfd) = rustix::process::pidfd_open(child, PidfdFlags::empty()) else {
            continue;
        };
        if children(process, thread)?.contains(&child) {
            // A thread that has ended meanwhile has no children: they belong to another one, and the next pass finds them.
            for thread in threads(child) {
                let _ = kill_children(child, thread);
            }
            // ESRCH: it has ended.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    Ok(())
}

fn children(process: Pid, thread: Pid) -> io::Result<Vec<Pid>> {
    let (process, thread) = (process.as_raw_nonzero(), thread.as_raw_nonzero());
    let path = format!("/proc/{process}/task/{thread}/children");
    let text = std::fs::read_to_string(path)?;
    Ok(text.split_whitespace().filter_map(parse_id).collect())
}

fn threads(process: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()));
    let names = tasks.into_iter().flatten().flatten();
    names
        .filter_map(|task| parse_id(task.file_name().to_str()?))
        .collect()
}

fn parse_id(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_with_its_descendants_at_the_deadline() {
        let start = Instant::now();
        // The descendant keeps the pipe open, for which `output` waits.
        let error = bounded(Duration::from_millis(300), || {
            Command::new("sh").args(["-c", "sleep 1000; true"]).output()
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().ends_with("was killed"), "{error}");
        assert!(start.elapsed() < RETURN, "{:?}", start.elapsed());
    }

    #[test]
    fn a_call_returns_its_result_and_a_panic_is_an_error() {
        let deadline = Duration::from_secs(60);
        assert_eq!(bounded(deadline, || 7).unwrap(), 7);
        bounded(deadline, || panic!("as a test")).unwrap_err();
    }
}
