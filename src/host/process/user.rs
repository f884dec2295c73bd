//! All processes of one user.
//! Out of scope: which VM the user is assigned to.

use std::collections::BTreeSet;
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
///
/// # Errors
/// A process cannot be stopped, or still runs.
pub fn kill_user(user: u32, spared: impl Fn(u32) -> bool) -> Result<(), Error> {
    kill(BTreeSet::from([user]), spared, |_| {})
}

/// The same for several users: each of their processes receives the signal before the end of any is awaited. `killed` is called for the user
/// of each.
///
/// # Errors
/// A process cannot be stopped, or still runs; the others have been stopped.
pub fn kill_users(users: BTreeSet<u32>, killed: impl FnMut(u32)) -> Result<(), Error> {
    kill(users, |_| false, killed)
}

fn kill(
    mut users: BTreeSet<u32>,
    spared: impl Fn(u32) -> bool,
    mut killed: impl FnMut(u32),
) -> Result<(), Error> {
    let mut left = Ok(());
    for _ in 0..PASSES {
        // The common case: two system calls.
        users.retain(|user| user_lives(*user));
        if users.is_empty() {
            return Ok(());
        }
        left = Ok(());
        for (pid, user) in pids_of(&users)? {
            // One that cannot be stopped must not keep the others.
            if spared(pid) {
                continue;
            }
            match kill_process(pid, user) {
                Ok(false) => {}
                Ok(true) => {
                    killed(user);
                    left = Err(runs(pid, user));
                }
                Err(error) => left = Err(error),
            }
        }
        if left.is_ok() {
            return Ok(());
        }
        std::thread::sleep(REST);
    }
    left
}

/// Whether it was running; a zombie is not.
fn kill_process(pid: u32, user: u32) -> Result<bool, Error> {
    let Some(identity) = Identity::of(pid)? else {
        return Ok(false);
    };
    let ProcessState::Alive(process) = open(&identity)? else {
        return Ok(false);
    };
    // Checked again after the pidfd is open: the PID may have been reused.
    if user_of(pid) != Some(user) {
        return Ok(false);
    }
    process.stop(StopSignal::Kill)?;
    Ok(true)
}

fn runs(pid: u32, user: u32) -> Error {
    Error::other(
        "stop",
        format!("the processes of user {user}"),
        format!("process {pid} still runs after SIGKILL"),
    )
}

/// The processes of these users. `/proc` is read once for all of them.
fn pids_of(users: &BTreeSet<u32>) -> Result<Vec<(u32, u32)>, Error> {
    let entries = fs::read_dir("/proc");
    let entries = entries.map_err(|error| Error::io("list the processes in", "/proc", error))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let owned = pids.filter_map(|pid| Some((pid, user_of(pid)?)));
    Ok(owned.filter(|(_, user)| users.contains(user)).collect())
}

/// The real user ID of `Uid:` in `/proc/<pid>/status` (proc_pid_status(5)): the directory of a process that cannot be traced belongs to
/// root.
fn user_of(pid: u32) -> Option<u32> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
    let real = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    real?.split_ascii_whitespace().next()?.parse().ok()
}
