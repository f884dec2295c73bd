//! Bounds a call of a library that starts a program and waits for it without a deadline.
//! Out of scope: programs that this crate starts itself ([`mod@super::run`]).
//!
//! # Why a thread
//! Such a library offers no access to its child, so the caller waits for a thread that makes the call. The kernel lists the children of
//! each thread (`/proc/<pid>/task/<tid>/children`): at the deadline they are killed, which ends the call. A child in uninterruptible
//! sleep does not end, and its thread is abandoned; the number of abandoned threads is limited.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

/// Threads that may be abandoned at the same time.
const MAX_ABANDONED: usize = 16;

/// How long a call may take to return after its program was killed.
const RETURN: Duration = Duration::from_secs(2);

static ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// Runs `call` on a thread in the calling thread's namespaces, and waits for it for at most `deadline`. Blocks.
///
/// # Errors
/// The deadline has passed ([`io::ErrorKind::TimedOut`]), too many earlier calls have not returned, or `call` panicked.
pub fn bounded<T: Send + 'static>(
    deadline: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let until = Instant::now() + deadline;
    if ABANDONED.load(Ordering::Relaxed) >= MAX_ABANDONED {
        let why = "too many earlier calls have not returned";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    let outcome = Outcome::default();
    let thread_outcome = outcome.clone();
    let (send_id, id) = mpsc::sync_channel(1);
    let (send_result, result) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("bounded".to_owned())
        .spawn(move || {
            let _returned = Returned(thread_outcome);
            report(&send_id, rustix::thread::gettid());
            report(&send_result, call());
        })?;
    let left = || until.saturating_duration_since(Instant::now());
    let thread = id.recv_timeout(left());
    match result.recv_timeout(left()) {
        Ok(result) => Ok(result),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread panicked")),
        Err(RecvTimeoutError::Timeout) => {
            if let Ok(thread) = thread {
                kill_children(rustix::process::getpid(), thread);
            }
            let ended = result.recv_timeout(RETURN).is_ok();
            outcome.abandon();
            Err(overdue(deadline, ended))
        }
    }
}

/// An error means that the caller no longer waits.
fn report<T>(to: &SyncSender<T>, value: T) {
    let _ = to.send(value);
}

fn overdue(deadline: Duration, ended: bool) -> io::Error {
    let deadline = humantime::format_duration(deadline);
    let outcome = match ended {
        true => "was killed",
        false => "does not end although it was killed",
    };
    let why = format!("it did not end within its deadline of {deadline} and {outcome}");
    io::Error::new(io::ErrorKind::TimedOut, why)
}

/// Set by the first of the two events: the caller has given up, the thread has returned.
#[derive(Clone, Default)]
struct Outcome(Arc<AtomicBool>);

impl Outcome {
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
struct Returned(Outcome);

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.second();
    }
}

/// Sends SIGKILL to the descendants that a thread has started. Opens a pidfd first and checks second that its process is still a child of
/// the thread: until the thread reaps it, its PID is not reused.
fn kill_children(process: Pid, thread: Pid) {
    for child in children(process, thread) {
        let Ok(pidfd) = rustix::process::pidfd_open(child, PidfdFlags::empty()) else {
            continue;
        };
        if children(process, thread).contains(&child) {
            threads(child)
                .into_iter()
                .for_each(|thread| kill_children(child, thread));
            // ESRCH: it has ended.
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

fn children(process: Pid, thread: Pid) -> Vec<Pid> {
    let (process, thread) = (process.as_raw_nonzero(), thread.as_raw_nonzero());
    let path = format!("/proc/{process}/task/{thread}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(parse_id).collect()
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
