//! The process of the guard: `sliced fence`.
//! Out of scope: its decision.
//!
//! It uses nothing of the daemon but the file: no database, no socket, no runtime.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{FencedVm, Guard, INTERVAL};
use crate::clock;
use crate::fleet::agent::fence_file::{FILE, LOCK};
use crate::fleet::contact::Boottime;
use crate::host::fs;
use crate::host::lock::FileLock;
use crate::host::process::{kill_users, user_lives};

/// The first argument.
const ARGUMENT: &str = "fence";
/// How often the lock is tried: the daemon holds it while it looks whether a guard runs.
const TRIES: u32 = 20;
const TRY_DELAY: std::time::Duration = std::time::Duration::from_millis(50);
/// The largest file.
const MAX_FILE: u64 = 16 << 20;

/// If this process is started as the guard, runs until it is killed. `None`: it is not.
pub fn main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let arguments: Vec<_> = arguments.collect();
    let dir = match arguments.as_slice() {
        [] => std::env::var_os("SLICE_RUN_DIR").unwrap_or_else(|| "/run/slice".into()),
        [flag, dir] if flag == "--run-dir" => dir.clone(),
        _ => {
            eprintln!("sliced fence: expected no argument, or --run-dir DIR");
            return Some(ExitCode::from(2));
        }
    };
    let error = match run(&PathBuf::from(dir)) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    eprintln!("sliced fence: {error}");
    Some(ExitCode::FAILURE)
}

fn run(dir: &Path) -> io::Result<std::convert::Infallible> {
    let _lock = lock(&dir.join(LOCK))?;
    let boot_id = fs::boot_id().map_err(io::Error::other)?;
    let mut guard = Guard::default();
    let mut reported = None;
    loop {
        let content = read(&dir.join(FILE));
        let decision = guard.decide(content, boot_id, Boottime(clock::boottime()));
        stop(&decision.stop);
        let error = decision.error.map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| error != reported) {
            eprintln!("sliced fence: {error}");
        }
        reported = error;
        std::thread::sleep(INTERVAL);
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut content = Vec::new();
    let file = File::open(path)?;
    file.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}

/// Stops all of them at once: each has a time, and the scheduler counts on it.
fn stop(vms: &[FencedVm]) {
    // Processes of root do not belong to a VM.
    let users = vms.iter().map(|vm| vm.user.0);
    let users = users.filter(|user| *user != 0 && user_lives(*user));
    let mut killed = BTreeSet::new();
    let stopped = kill_users(users.collect(), |user| {
        killed.insert(user);
    });
    for vm in vms.iter().filter(|vm| killed.contains(&vm.user.0)) {
        eprintln!(
            "sliced fence: VM {} of the fleet is stopped: this node has had no contact to etcd, and another node may start it",
            vm.uid
        );
    }
    if let Err(error) = stopped {
        eprintln!("sliced fence: {error}");
    }
}

fn lock(path: &Path) -> io::Result<FileLock> {
    for _ in 0..TRIES {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path);
        let file = file.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot open {}: {error}", path.display()),
            )
        })?;
        if let Ok(lock) = FileLock::exclusive(file)? {
            return Ok(lock);
        }
        std::thread::sleep(TRY_DELAY);
    }
    Err(io::Error::other(format!(
        "{} is locked: another guard runs",
        path.display()
    )))
}
