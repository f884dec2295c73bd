//! Control groups (version 2): one for each VMM, beside the daemon's own.
//! Out of scope: how much a VM may have.
//!
//! # Why only beside a group called `sliced`
//! A group that shares out controllers holds no processes itself (cgroup-v2.rst, "No Internal Process Constraint"), and systemd could
//! not start a daemon anew in a group that VMMs live below. So the daemon must have been put into a leaf of its own by
//! whoever started it: systemd does so from 254 on (`Delegate=yes`, `DelegateSubgroup=sliced`). Else there are no limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Error, Kind};

/// How much a group may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The daemon's own leaf.
const LEAF: &str = "sliced";
/// Its share of the processors where they are short; a VMM has 100 (cgroup-v2.rst, `cpu.weight`).
const WEIGHT: &str = "1000";
/// What every group of ours starts with.
const PREFIX: &str = "vm-";
/// Microseconds: the kernel's own default period of `cpu.max`.
const PERIOD: u64 = 100_000;

/// The group that VMMs' groups are made in, or why there is none, in words. Looked for until it is found; the call that finds it
/// shares out the controllers. What stands in its way today may be gone tomorrow: a VMM of an earlier daemon in the very group.
pub fn base() -> Result<&'static Path, String> {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    found_once(&BASE, || {
        let text = |path| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let base = find(&text("/proc/self/cgroup")?, &text("/proc/self/mountinfo")?)?;
        share_out(&base)?;
        Ok(base)
    })
}

fn found_once(
    known: &OnceLock<PathBuf>,
    look: impl FnOnce() -> Result<PathBuf, String>,
) -> Result<&Path, String> {
    match known.get() {
        Some(base) => Ok(base),
        None => look().map(|base| known.get_or_init(|| base).as_path()),
    }
}

/// From `/proc/self/cgroup` and `/proc/self/mountinfo` (cgroups(7), proc_pid_mountinfo(5)).
fn find(own: &str, mounts: &str) -> Result<PathBuf, String> {
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or("this host has no control groups of version 2")?;
    let parent = Path::new(own)
        .strip_prefix("/")
        .ok()
        .filter(|path| path.file_name().is_some_and(|name| name == LEAF))
        .and_then(Path::parent)
        .ok_or_else(|| {
            format!("sliced runs in {own}, not in a group {LEAF} of its own, as systemd 254 would have it")
        })?;
    let mounted = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then_some(())?;
        let mut fields = mount.split(' ').skip(3);
        (fields.next()? == "/").then_some(())?;
        fields.next()
    });
    let mounted = mounted.ok_or("control groups of version 2 are not mounted")?;
    Ok(Path::new(mounted).join(parent))
}

/// Hands the controllers that are there down to the groups in `base`.
fn share_out(base: &Path) -> Result<(), String> {
    let file = |name: &str| base.join(name);
    let say = |error: io::Error| format!("{}: {error}", base.display());
    let there = fs::read_to_string(file("cgroup.controllers")).map_err(say)?;
    let wanted = ["cpu", "memory", "pids"];
    let missing = wanted.map(|name| !there.split_whitespace().any(|there| there == name));
    if let Some(at) = missing.iter().position(|missing| *missing) {
        let name = wanted[at];
        return Err(format!(
            "the controller {name} is not given to {}",
            base.display()
        ));
    }
    fs::write(file("cgroup.subtree_control"), "+cpu +memory +pids").map_err(say)?;
    // Among groups nobody is nice: without it the daemon has as much of a busy host as one of its guests.
    if let Err(error) = fs::write(file(LEAF).join("cpu.weight"), WEIGHT) {
        tracing::debug!(%error, "the daemon's share of processors stays as it is");
    }
    Ok(())
}

/// Makes a group in `base`, or finds it, and sets its limits; returns where it is.
pub fn make(base: &Path, name: &str, limits: &Limits) -> Result<PathBuf, Error> {
    let group = base.join(format!("{PREFIX}{name}"));
    let fail = |error| Error::io("make control group", group.display().to_string(), error);
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        Ok(()) | Err(_) => {}
    }
    let cpu = limits.cpu_millis.saturating_mul(PERIOD / 1000);
    for (file, value) in [
        ("cpu.max", format!("{cpu} {PERIOD}")),
        ("memory.max", limits.memory.to_string()),
        ("memory.oom.group", "1".to_owned()),
        ("pids.max", limits.pids.to_string()),
    ] {
        let file = group.join(file);
        // A controller that was taken away since: no reason for a VM not to start.
        if file.exists() {
            fs::write(file, value).map_err(fail)?;
        }
    }
    Ok(group)
}

/// Kills everything in a group in `base`, at once (cgroup-v2.rst, `cgroup.kill`, Linux 5.14). One that cannot be killed so is not.
pub fn kill(base: &Path, name: &str) {
    // A file that the kernel has made, or none.
    let file = base.join(format!("{PREFIX}{name}")).join("cgroup.kill");
    let opened = fs::OpenOptions::new().write(true).open(&file);
    if let Err(error) = opened.and_then(|mut file| io::Write::write_all(&mut file, b"1")) {
        tracing::debug!(group = name, %error, "a control group is not killed");
    }
}

/// Which group a process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// The group of this name in [`base`].
    Ours(String),
    /// A group that is called like ours, elsewhere: another daemon's, or ours when it ran elsewhere.
    Another,
    /// Any other group.
    Elsewhere,
}

/// Reads a process' group, as `/proc/<pid>/cgroup` shows it. `own` is the daemon's.
pub fn member(own: &str, group: &str) -> Member {
    let (above, name) = group.rsplit_once('/').unwrap_or(("", group));
    let Some(name) = name.strip_prefix(PREFIX) else {
        return Member::Elsewhere;
    };
    match own.rsplit_once('/') {
        Some((parent, LEAF)) if parent == above => Member::Ours(name.to_owned()),
        Some(_) | None => Member::Another,
    }
}

/// The daemon's own group of version 2; empty where there is none. It does not change while the daemon runs.
pub fn own() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("0::"));
        own.unwrap_or_default().to_owned()
    })
}

/// Removes a group in `base`. One that is not there, or in which something still lives, is left alone without error.
pub fn remove(base: &Path, name: &str) -> Result<(), Error> {
    let group = base.join(format!("{PREFIX}{name}"));
    let removed = fs::remove_dir(&group);
    match removed.map_err(|e| Error::io("remove control group", group.display().to_string(), e)) {
        Err(error) if !matches!(error.kind, Kind::Absent | Kind::Busy) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes every group of ours in which nothing lives.
pub fn sweep(base: &Path) {
    let names = fs::read_dir(base).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if let Some(name) = name.strip_prefix(PREFIX)
            && let Err(error) = remove(base, name)
        {
            tracing::debug!(%error, "a control group stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
24 29 0:22 / /proc rw - proc proc rw
31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn the_base_is_beside_a_leaf_of_our_own_and_nowhere_else() {
        let own = "0::/system.slice/sliced.service/sliced\n";
        let base = Path::new("/sys/fs/cgroup/system.slice/sliced.service");
        assert_eq!(find(own, MOUNTS).as_deref(), Ok(base));
        for other in [
            "0::/system.slice/sliced.service\n",
            "0::/\n",
            "0::/user.slice\n",
        ] {
            assert!(find(other, MOUNTS).unwrap_err().contains("254"), "{other}");
        }
        assert!(
            find("1:cpu:/x\n", MOUNTS)
                .unwrap_err()
                .contains("version 2")
        );
        let hidden = MOUNTS.replace("0:27 /", "0:27 /elsewhere");
        assert!(find(own, &hidden).unwrap_err().contains("not mounted"));
    }

    #[test]
    fn limits_are_written_where_there_is_a_controller_for_them() {
        let base = tempfile::tempdir().unwrap();
        let group = base.path().join("vm-a");
        fs::create_dir(&group).unwrap();
        for file in ["cpu.max", "memory.max"] {
            fs::write(group.join(file), "max").unwrap();
        }
        let limits = Limits {
            cpu_millis: 1500,
            memory: 1 << 30,
            pids: 9,
        };
        assert_eq!(make(base.path(), "a", &limits).unwrap(), group);
        let said = |file| fs::read_to_string(group.join(file)).ok();
        assert_eq!(said("cpu.max").as_deref(), Some("150000 100000"));
        assert_eq!(said("memory.max").as_deref(), Some("1073741824"));
        assert_eq!(said("pids.max"), None);
    }

    #[test]
    fn empty_groups_are_swept_and_others_are_not() {
        let base = tempfile::tempdir().unwrap();
        for name in ["vm-a", "vm-b", "other"] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        sweep(base.path());
        assert!(base.path().join("other").exists());
        assert!(!base.path().join("vm-a").exists() && !base.path().join("vm-b").exists());
        remove(base.path(), "a").unwrap();
    }

    #[test]
    fn a_group_is_ours_beside_our_own_leaf_only() {
        let ours = |name: &str| Member::Ours(name.to_owned());
        for (own, group, expected) in [
            (
                "/s/sliced.service/sliced",
                "/s/sliced.service/vm-a",
                ours("a"),
            ),
            (
                "/s/sliced.service/sliced",
                "/s/other.service/vm-a",
                Member::Another,
            ),
            (
                "/s/sliced.service/sliced",
                "/s/sliced.service/vm-a/vm-b",
                Member::Another,
            ),
            (
                "/s/sliced.service/sliced",
                "/s/sliced.service/sliced",
                Member::Elsewhere,
            ),
            ("/s/sliced.service", "/s/vm-a", Member::Another),
            ("/sliced", "/vm-a", ours("a")),
            ("", "/vm-a", Member::Another),
            ("/", "/user.slice", Member::Elsewhere),
        ] {
            assert_eq!(member(own, group), expected, "{own} {group}");
        }
    }

    #[test]
    fn what_stood_in_the_way_once_does_not_for_ever() {
        let known = OnceLock::new();
        let busy = found_once(&known, || Err("busy".to_owned()));
        assert_eq!(busy, Err("busy".to_owned()));
        let base = Path::new("/base");
        assert_eq!(found_once(&known, || Ok(base.to_owned())), Ok(base));
        let again = found_once(&known, || panic!("it is known"));
        assert_eq!(again, Ok(base));
    }

    #[test]
    fn controllers_that_are_not_ours_to_share_out_are_named() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("cgroup.controllers"), "cpu hugetlb pids\n").unwrap();
        assert!(share_out(base.path()).unwrap_err().contains("memory"));
        fs::write(base.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        share_out(base.path()).unwrap();
        fs::create_dir(base.path().join(LEAF)).unwrap();
        share_out(base.path()).unwrap();
        let weight = fs::read_to_string(base.path().join("sliced/cpu.weight"));
        assert_eq!(weight.unwrap(), "1000");
    }
}
