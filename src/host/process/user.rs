//! All processes of one user.
//! Out of scope: which VM the user is assigned to.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Identity, ProcessState, StopSignal, open};
use crate::host::Error;

/// Maximum number of passes over `/proc` and the delay between two passes: 2 s in total.
const PASSES: u32 = 400;
const REST: Duration = Duration::from_millis(5);

/// Whether any process of this host runs as this user. Cheap if there is none (getpriority(2), PRIO_USER).
pub fn user_lives(user: u32) -> bool {
    let user = rustix::process::Uid::from_raw(user);
    !matches!(
        rustix::process::getpriority_user(user),
        Err(rustix::io::Errno::SRCH)
    )
}

/// Kills every process of a user that is used for one purpose only, except those for which `spared` is true. Blocks until they have
/// ended, at most 2 s; the error then names one that still runs. Zombies are left to their parents.
pub fn kill_user(user: u32, spared: impl Fn(u32) -> bool) -> Result<(), Error> {
    let mut left = None;
    for _ in 0..PASSES {
        // The common case: two system calls.
        if !user_lives(user) {
            return Ok(());
        }
        left = None;
        for pid in pids_of(user)? {
            if spared(pid) {
                continue;
            }
            let Some(identity) = Identity::of(pid)? else {
                continue;
            };
            if let ProcessState::Alive(process) = open(&identity)?
                // Checked again after the pidfd is open: the PID may have been reused.
                && runs_as(pid, user)
            {
                process.stop(StopSignal::Kill)?;
                left = Some(pid);
            }
        }
        if left.is_none() {
            return Ok(());
        }
        std::thread::sleep(REST);
    }
    let pid = left.unwrap_or_default();
    Err(Error::other(
        "stop",
        format!("the processes of user {user}"),
        format!("process {pid} still runs after SIGKILL"),
    ))
}

fn pids_of(user: u32) -> Result<Vec<u32>, Error> {
    let entries = fs::read_dir("/proc");
    let entries = entries.map_err(|error| Error::io("list the processes in", "/proc", error))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| runs_as(*pid, user)).collect())
}

/// Compares the real user ID of `Uid:` in `/proc/<pid>/status` (proc_pid_status(5)): the directory of a process that cannot be traced
/// belongs to root.
fn runs_as(pid: u32, user: u32) -> bool {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
    let real = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let real = real.and_then(|ids| ids.split_ascii_whitespace().next()?.parse::<u32>().ok());
    real == Some(user)
}
