//! The short-lived programs that run now: started here, so that each can be ended with all that it has started.
//! Out of scope: reading their output ([`super::run`]); processes that outlive us.
//!
//! # Why an environment variable
//! Each program leads a process group of its own, and the group is killed. A process that it has started may have left the group
//! (setsid(2)) and is found by its environment only: each program is started with a unique value of `SLICE_HELPER`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::files;

/// In the environment of every short-lived program.
const MARK: &str = "SLICE_HELPER";

/// Passes over `/proc` in which what a program has started is looked for: it may start more meanwhile.
const PASSES: usize = 4;

/// Whether the daemon ends: then nothing is started any more.
static ENDING: RwLock<bool> = RwLock::new(false);

/// Process ids of programs that have not been reaped, and their marks.
static RUNNING: LazyLock<Mutex<HashMap<u32, String>>> = LazyLock::new(Mutex::default);

/// What no other process has in its mark.
static OURS: LazyLock<String> = LazyLock::new(|| {
    let boot = crate::host::fs::boot_id().unwrap_or_default();
    format!("{boot}/{}", std::process::id())
});

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A program that has been started and not reaped, in a process group of its own.
#[derive(Debug)]
pub(super) struct Helper {
    pid: u32,
    mark: String,
}

/// A mark for the next program: variable and value of its environment.
pub(super) fn mark() -> (&'static str, String) {
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    (MARK, format!("{}/{next}/", *OURS))
}

impl Helper {
    /// Starts one; `start` answers its process id. From here to [`Helper::forget`] it is known, and nothing may reap it.
    ///
    /// # Errors
    /// `start`'s; or the daemon ends.
    pub(super) fn start<T>(
        mark: String,
        start: impl FnOnce() -> io::Result<(u32, T)>,
    ) -> io::Result<(Self, T)> {
        let ending = ENDING.read().unwrap_or_else(PoisonError::into_inner);
        if *ending {
            return Err(io::Error::other("the daemon ends"));
        }
        let (pid, started) = start()?;
        running().insert(pid, mark.clone());
        files::restore_in(pid);
        Ok((Self { pid, mark }, started))
    }

    /// SIGKILL to its process group, itself included. A stopped process (SIGSTOP) dies of it, too.
    pub(super) fn kill_group(&self) {
        kill_group(self.pid);
    }

    /// SIGKILL to what it has started and has left its group.
    pub(super) fn kill_escaped(&self) {
        kill_marked(&self.mark);
    }

    /// It may be reaped now.
    pub(super) fn forget(self) {}
}

impl Drop for Helper {
    /// Known no more; what is not dead is killed before, as long as its number cannot be another's.
    fn drop(&mut self) {
        let mut running = running();
        kill_group(self.pid);
        running.remove(&self.pid);
    }
}

/// Kills all short-lived programs with what they have started, and lets none be started any more. For the daemon's end.
pub fn end_helpers() {
    *ENDING.write().unwrap_or_else(PoisonError::into_inner) = true;
    running().keys().for_each(|pid| kill_group(*pid));
    // One that ended well may have left something behind, too.
    if NEXT.load(Ordering::Relaxed) > 0 {
        kill_marked(&format!("{}/", *OURS));
    }
}

fn running() -> MutexGuard<'static, HashMap<u32, String>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_group(pid: u32) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // ESRCH: nobody is in it any more.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Every process whose mark begins so.
fn kill_marked(mark: &str) {
    for _ in 0..PASSES {
        let killed = marked(mark)
            .into_iter()
            .filter(|pid| kill_one(*pid, mark))
            .count();
        if killed == 0 {
            return;
        }
    }
}

fn marked(mark: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| bears(*pid, mark)).collect()
}

fn bears(pid: i32, mark: &str) -> bool {
    let wanted = format!("{MARK}={mark}");
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry.starts_with(wanted.as_bytes()))
}

/// Held before it is looked at again: what is killed is what bears the mark.
fn kill_one(pid: i32, mark: &str) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(held) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // A zombie has no environment any more, so that it is not found again.
    bears(pid.as_raw_nonzero().get(), mark)
        && rustix::process::pidfd_send_signal(&held, Signal::KILL).is_ok()
}
