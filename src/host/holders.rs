//! Which processes have a file open, in which mode, and whether they hold a lock on it.
//! Out of scope: whether a process is in conflict (`image`, `private`).
//!
//! A search reads all of `/proc`, so it is used only after a lock attempt has failed.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::process::{self, Identity};

/// A process that has a file open, possibly through several descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// Its name, without control characters.
    pub name: String,
    /// It has the file open for writing.
    pub writable: bool,
    /// It holds a lock on it, of any kind.
    pub has_lock: bool,
    /// It holds an exclusive lock.
    pub has_exclusive_lock: bool,
    /// Its user; `None`: its user IDs differ.
    pub user: Option<u32>,
    /// A `sliced` daemon has started and confined it.
    pub confined: bool,
}

impl Holder {
    /// Root, or a VMM: its descriptors were opened by root.
    pub fn is_privileged(&self) -> bool {
        self.confined || self.user.is_none_or(|user| user == 0)
    }

    /// Whether it may open the file for writing according to the file's mode; always true for a file with an access control list.
    pub fn may_write(&self, file: &File) -> bool {
        let Ok(found) = file.metadata() else {
            return true;
        };
        let Some(user) = self.user else {
            return true;
        };
        let mode = found.mode();
        let in_group = || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
            let status = status.unwrap_or_default();
            let lines = status.lines();
            lines
                .filter_map(|line| {
                    line.strip_prefix("Gid:")
                        .or_else(|| line.strip_prefix("Groups:"))
                })
                .flat_map(str::split_ascii_whitespace)
                .any(|gid| gid.parse() == Ok(found.gid()))
        };
        let has_acl =
            rustix::fs::fgetxattr(file, "system.posix_acl_access", &mut [0_u8; 0]).is_ok();
        user == 0
            || has_acl
            || mode & 0o002 != 0
            || (user == found.uid())
            || (mode & 0o020 != 0 && in_group())
    }

    /// How long it has run; `None`: it has ended.
    pub fn age(&self) -> Option<std::time::Duration> {
        Identity::of(self.pid).ok().flatten()?.age().ok()
    }
}

/// `in use by process 4711 (qemu-system-x86) and process 4712 (sleep)`, three at most.
pub fn named<'a>(holders: impl Iterator<Item = &'a Holder>) -> String {
    let users: Vec<String> = holders
        .take(3)
        .map(|holder| format!("process {} ({})", holder.pid, holder.name))
        .collect();
    match users.is_empty() {
        true => "in use by a process that cannot be identified".to_owned(),
        false => format!("in use by {}", users.join(" and ")),
    }
}

/// Every process that has this file open, including this process if it has another descriptor of it.
pub fn of(file: &File) -> Vec<Holder> {
    let Ok(file_metadata) = file.metadata() else {
        return Vec::new();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let target = (file_metadata.dev(), file_metadata.ino());
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| holder(pid, target, file.as_raw_fd()))
        .collect()
}

/// `None` for a process that does not have it open or has ended meanwhile.
fn holder(pid: u32, target: (u64, u64), own_fd: i32) -> Option<Holder> {
    let (mut open, mut writable, mut has_lock, mut has_exclusive_lock) =
        (false, false, false, false);
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let fd = entry.file_name().to_string_lossy().into_owned();
        if pid == std::process::id() && fd == own_fd.to_string() {
            continue;
        }
        let same =
            fs::metadata(entry.path()).is_ok_and(|found| (found.dev(), found.ino()) == target);
        if !same {
            continue;
        }
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
        let lines = info.lines().filter_map(|line| line.strip_prefix("lock:"));
        let lines: Vec<&str> = lines.filter(|line| !line.contains("LEASE")).collect();
        open = true;
        writable |= is_open_for_writing(&info);
        has_lock |= !lines.is_empty();
        has_exclusive_lock |= lines.iter().any(|line| line.contains(" WRITE "));
    }
    open.then(|| {
        let identity = Identity::of(pid).ok().flatten();
        let origin = identity.and_then(|identity| process::origin(&identity).ok().flatten());
        Holder {
            pid,
            name: name(pid),
            writable,
            has_lock,
            has_exclusive_lock,
            user: process::user_of(pid),
            confined: origin.is_some_and(|origin| origin.root.is_ours()),
        }
    })
}

fn name(pid: u32) -> String {
    let name = fs::read_to_string(Path::new(&format!("/proc/{pid}/comm"))).unwrap_or_default();
    name.trim().chars().filter(|c| !c.is_control()).collect()
}

/// `flags:` in `/proc/<pid>/fdinfo/<fd>` is octal; the lowest two bits are the access mode (proc_pid_fdinfo(5)).
fn is_open_for_writing(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}
