//! Short-lived helper programs: starts them and kills each with all of its descendants.
//! Out of scope: reading their output ([`mod@super::run`]); processes that outlive the daemon.
//!
//! # Why an environment variable
//! Each program leads a process group of its own, and the group is killed. A descendant may have left the group (setsid(2)) and can only be
//! found by its environment: each program is started with a unique value of `SLICE_HELPER`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::files;

/// The environment variable of every helper program; programs that a library starts ([`super::bounded()`]) have none.
const HELPER_VAR: &str = "SLICE_HELPER";

/// Maximum number of passes over `/proc` in search of descendants: they may start more processes during a pass.
const PASSES: usize = 4;

/// Whether the daemon is shutting down: then no helper is started any more.
static ENDING: RwLock<bool> = RwLock::new(false);

/// The PIDs of helpers that have not been reaped, and their labels.
static RUNNING: LazyLock<Mutex<HashMap<u32, String>>> = LazyLock::new(Mutex::default);

/// The prefix of this process' labels, unique on this host.
static OURS: LazyLock<String> = LazyLock::new(|| {
    let boot = crate::host::fs::boot_id().unwrap_or_default();
    format!("{boot}/{}", std::process::id())
});

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A helper program that was started and has not been reaped, in a process group of its own.
#[derive(Debug)]
pub(super) struct Helper {
    pid: u32,
    label: String,
}

/// Returns a label for the next helper: name and value of the environment variable.
pub(super) fn label() -> (&'static str, String) {
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    (HELPER_VAR, format!("{}/{next}/", *OURS))
}

impl Helper {
    /// Starts a helper; `start` returns its PID. Until [`Helper::forget`] it is registered and must not be reaped.
    ///
    /// # Errors
    /// Those of `start`; or the daemon is shutting down.
    pub(super) fn start<T>(
        label: String,
        start: impl FnOnce() -> io::Result<(u32, T)>,
    ) -> io::Result<(Self, T)> {
        let ending = ENDING.read();
        if *ending {
            return Err(io::Error::other("the daemon is shutting down"));
        }
        let (pid, started) = start()?;
        running().insert(pid, label.clone());
        files::restore_in(pid);
        Ok((Self { pid, label }, started))
    }

    /// Sends SIGKILL to its process group, including itself. SIGKILL ends a stopped process (SIGSTOP), too.
    pub(super) fn kill_group(&self) {
        kill_group(self.pid);
    }

    /// Sends SIGKILL to its descendants that have left the group.
    pub(super) fn kill_escaped(&self) {
        kill_labelled(&self.label);
    }

    /// Unregisters the helper: it may be reaped now.
    pub(super) fn forget(self) {}
}

impl Drop for Helper {
    /// Kills what is left of the group while its PID cannot be reused yet, then unregisters the helper.
    fn drop(&mut self) {
        let mut running = running();
        kill_group(self.pid);
        running.remove(&self.pid);
    }
}

/// Whether the daemon is shutting down: no program may be started.
pub(super) fn are_ending() -> bool {
    *ENDING.read()
}

/// Kills all helpers and their descendants, and prevents further starts. Called when the daemon shuts down.
pub fn end_helpers() {
    *ENDING.write() = true;
    running().keys().for_each(|pid| kill_group(*pid));
    // A helper that has exited may have left descendants.
    if NEXT.load(Ordering::Relaxed) > 0 {
        kill_labelled(&format!("{}/", *OURS));
    }
}

fn running() -> MutexGuard<'static, HashMap<u32, String>> {
    RUNNING.lock()
}

fn kill_group(pid: u32) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // ESRCH: the group is empty.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Kills every process with this prefix of its label.
fn kill_labelled(label: &str) {
    for _ in 0..PASSES {
        let killed = labelled(label)
            .into_iter()
            .filter(|pid| kill_one(*pid, label))
            .count();
        if killed == 0 {
            return;
        }
    }
}

fn labelled(label: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| bears(*pid, label)).collect()
}

fn bears(pid: i32, label: &str) -> bool {
    let expected = format!("{HELPER_VAR}={label}");
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry.starts_with(expected.as_bytes()))
}

/// Opens a pidfd first and checks the label second, so the process that is killed is the one that has the label.
fn kill_one(pid: i32, label: &str) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    // A zombie has no environment, so it is not found again.
    bears(pid.as_raw_nonzero().get(), label)
        && rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}
