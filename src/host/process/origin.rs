//! The properties of a process that only root can set: its user, its control group, its root file system.
//! Out of scope: the owner of a process.
//!
//! # Why not its environment
//! `/proc/<pid>/environ` and `/proc/<pid>/cmdline` show memory of the process (proc_pid_environ(5)): any user can start a process with any
//! content of them, and so can a guest that has compromised its VMM. A process cannot change what is read here:
//!
//! - its user: changing it requires CAP_SETUID (setuid(2));
//! - its control group: moving a process requires write access to the destination group and to a common ancestor (cgroup-v2.rst,
//!   "Delegation Containment");
//! - the source of its root file system (`/proc/<pid>/mountinfo`), which [`super::spawn()`] sets to the labels of the process. Mounting
//!   requires CAP_SYS_ADMIN in the user namespace that owns the mount namespace (mount_namespaces(7)). So the source is accepted only in
//!   the daemon's user namespace: any user can be root in a new one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::census::{self, MOUNTS_VAR, our_mounts};
use super::identity::stat_of;
use super::{Identity, ProcessState, open};
use crate::host::{Error, fs as files};

/// A live process with four equal user IDs that are not root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its PID, start time and boot ID.
    pub identity: Identity,
    /// Its parent's PID.
    pub parent: u32,
    /// Its real, effective, saved and file system user.
    pub user: u32,
    /// The path of its control group (version 2), relative to the visible root of the hierarchy.
    pub cgroup: Option<String>,
    /// The origin of its root file system.
    pub root: Root,
}

/// The origin of the root file system of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Created by [`super::spawn()`] on this host, with these labels.
    Labelled(Vec<(String, String)>),
    /// Created by an earlier version of [`super::spawn()`], without labels, or on another host that shares the PID namespace.
    Unlabelled,
    /// Not created by `spawn`.
    Foreign,
}

/// The source of a root file system that an earlier version of [`super::spawn()`] created.
const UNLABELLED: &[u8] = b"slice";

impl Root {
    /// The value of a label.
    pub fn label(&self, variable: &str) -> Option<&str> {
        let Self::Labelled(labels) = self else {
            return None;
        };
        let found = labels.iter().find(|(name, _)| name == variable);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether `spawn` created it for a confined process.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Labelled(_) | Self::Unlabelled => true,
            Self::Foreign => false,
        }
    }
}

/// Returns all live processes that [`super::spawn()`] has confined, and all others of users for which `wanted` holds. One pass over `/proc`.
pub fn origins(user_filter: impl Fn(u32) -> bool) -> Result<Vec<Origin>, Error> {
    let mounts = our_mounts()?;
    let wrap = |error| Error::io("list the processes in", "/proc", error);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(wrap)? {
        let name = entry.map_err(wrap)?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some(user) = user_of(pid).filter(|user| *user != 0) else {
            continue;
        };
        let of_interest = |root: &Root| root.is_ours() || user_filter(user);
        found.extend(read_origin(pid, user, mounts, of_interest)?);
    }
    Ok(found)
}

/// The origin of this process. `None`: it has ended, it is root's, or its user IDs differ.
pub fn origin(identity: &Identity) -> Result<Option<Origin>, Error> {
    let Some(user) = user_of(identity.pid).filter(|user| *user != 0) else {
        return Ok(None);
    };
    let found = read_origin(identity.pid, user, our_mounts()?, |_| true)?;
    Ok(found.filter(|found| found.identity == *identity))
}

/// Reads the start time before and after everything else, so all of it is of the same process.
fn read_origin(
    pid: u32,
    user: u32,
    mounts: u64,
    of_interest: impl Fn(&Root) -> bool,
) -> Result<Option<Origin>, Error> {
    let Some(stat) = stat_of(pid)? else {
        return Ok(None);
    };
    let root = root_of(pid, mounts);
    if !of_interest(&root) {
        return Ok(None);
    }
    let identity = Identity {
        pid,
        start: stat.start,
        boot: files::boot_id()?.to_owned(),
    };
    // A process is alive while any thread is, even after its first thread has ended.
    let ProcessState::Alive(_process) = open(&identity)? else {
        return Ok(None);
    };
    let origin = Origin {
        parent: stat.parent,
        user,
        cgroup: cgroup_of(pid),
        root,
        identity,
    };
    let unchanged =
        user_of(pid) == Some(user) && stat_of(pid)?.is_some_and(|now| now.start == stat.start);
    Ok(unchanged.then_some(origin))
}

/// The user of a process, if all four of its user IDs are the same (`Uid:` in proc_pid_status(5)).
pub fn user_of(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut ids = ids
        .split_ascii_whitespace()
        .map(|id| id.parse::<u32>().ok());
    let first = ids.next()??;
    ids.all(|id| id == Some(first)).then_some(first)
}

/// The version 2 line of `/proc/<pid>/cgroup` (cgroups(7)).
fn cgroup_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let group = group.strip_suffix(" (deleted)").unwrap_or(group);
    Some(group.to_owned())
}

/// After the first thread of a process has ended, its mounts can be read only through its other threads.
fn root_of(pid: u32, ours: u64) -> Root {
    let first = root_of_task(&PathBuf::from(format!("/proc/{pid}")), ours);
    if let Some(root) = first {
        return root;
    }
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let mut tasks = tasks.into_iter().flatten().flatten();
    tasks
        .find_map(|task| root_of_task(&task.path(), ours))
        .unwrap_or(Root::Foreign)
}

/// `None`: it cannot be read.
fn root_of_task(task: &Path, ours: u64) -> Option<Root> {
    let namespace = |process: &Path, kind: &str| {
        let found = fs::metadata(process.join("ns").join(kind)).ok()?;
        Some((found.dev(), found.ino()))
    };
    let (_, mounts) = namespace(task, "mnt")?;
    // True of nearly every process of the host. The root of the daemon's mount namespace has no labels.
    if mounts == ours {
        return Some(Root::Foreign);
    }
    let (its, own) = (
        namespace(task, "user")?,
        namespace(Path::new("/proc/self"), "user")?,
    );
    if its != own {
        return Some(Root::Foreign);
    }
    let mountinfo = fs::read(task.join("mountinfo")).ok()?;
    Some(root(&census::root_source(&mountinfo)?, ours))
}

fn root(source: &[u8], ours: u64) -> Root {
    if source == UNLABELLED {
        return Root::Unlabelled;
    }
    let text = String::from_utf8_lossy(source);
    let labels = text.lines().map(|line| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let Some(labels) = labels.collect::<Option<Vec<_>>>() else {
        return Root::Foreign;
    };
    match labels.iter().find(|(name, _)| name == MOUNTS_VAR) {
        Some((_, mounts)) if *mounts == ours.to_string() => Root::Labelled(labels),
        Some(_) => Root::Unlabelled,
        None => Root::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_root_created_by_spawn_on_this_host_has_labels() {
        for (source, expected) in [
            (&b"slice"[..], Root::Unlabelled),
            (b"SLICE_MOUNTS=8\nSLICE_LABEL=x", Root::Unlabelled),
            (b"tmpfs", Root::Foreign),
            (b"", Root::Foreign),
            (b"SLICE_LABEL=x", Root::Foreign),
            (b"/dev/vda1", Root::Foreign),
        ] {
            assert_eq!(
                root(source, 7),
                expected,
                "{}",
                String::from_utf8_lossy(source)
            );
        }
        let ours = root(b"SLICE_MOUNTS=7\nSLICE_LABEL=a=b", 7);
        assert_eq!(ours.label("SLICE_LABEL"), Some("a=b"));
        assert_eq!(ours.label("OTHER"), None);
        assert_eq!(Root::Unlabelled.label("SLICE_LABEL"), None);
    }

    #[test]
    fn the_test_process_is_not_confined() {
        let pid = std::process::id();
        let known = user_of(pid);
        assert_eq!(known, Some(rustix::process::geteuid().as_raw()));
        let listed = origins(|_| false).unwrap();
        assert!(listed.iter().all(|origin| origin.identity.pid != pid));
    }
}
