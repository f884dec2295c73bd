//! Control groups (version 2): one for each VMM, next to the daemon's own.
//! Out of scope: the limits of a VM.
//!
//! # Why only next to a group called `sliced`
//! A group that enables controllers for its children has no processes itself (cgroup-v2.rst, "No Internal Process Constraint"), and systemd
//! could not restart a daemon in a group that has VMMs below it. So the service manager must start the daemon in its own
//! leaf group: systemd does so since 254 (`Delegate=yes`, `DelegateSubgroup=sliced`). Otherwise there are no limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Error, Kind};

/// The limits of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// The daemon's leaf group.
const LEAF_NAME: &str = "sliced";
/// Its CPU weight; a VMM has 100 (cgroup-v2.rst, `cpu.weight`).
const CPU_WEIGHT: &str = "1000";
/// The name prefix of every group that the daemon creates.
const NAME_PREFIX: &str = "vm-";
/// Microseconds: the kernel's own default period of `cpu.max`.
const CPU_PERIOD: u64 = 100_000;

/// The group in which the VMMs' groups are created, or the reason why there is none. The search is repeated until it succeeds, because
/// the obstacle may disappear (a VMM of an earlier daemon in this group); the call that finds the group enables the controllers.
pub fn base() -> Result<&'static Path, String> {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    get_or_try_init(&BASE, || {
        let text = |path| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let base = find(&text("/proc/self/cgroup")?, &text("/proc/self/mountinfo")?)?;
        enable_controllers(&base)?;
        Ok(base)
    })
}

fn get_or_try_init(
    cache: &OnceLock<PathBuf>,
    search: impl FnOnce() -> Result<PathBuf, String>,
) -> Result<&Path, String> {
    match cache.get() {
        Some(base) => Ok(base),
        None => search().map(|base| cache.get_or_init(|| base).as_path()),
    }
}

/// From `/proc/self/cgroup` and `/proc/self/mountinfo` (cgroups(7), proc_pid_mountinfo(5)).
fn find(own: &str, mounts: &str) -> Result<PathBuf, String> {
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or("this host has no control groups version 2")?;
    let parent = Path::new(own)
        .strip_prefix("/")
        .ok()
        .filter(|path| path.file_name().is_some_and(|name| name == LEAF_NAME))
        .and_then(Path::parent)
        .ok_or_else(|| {
            format!("sliced runs in control group {own}, expected its own leaf group {LEAF_NAME} (systemd 254 or later)")
        })?;
    let mounted = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then_some(())?;
        let mut fields = mount.split(' ').skip(3);
        (fields.next()? == "/").then_some(())?;
        fields.next()
    });
    let mounted = mounted.ok_or("control groups version 2 are not mounted")?;
    Ok(Path::new(mounted).join(parent))
}

/// Enables the controllers for the groups in `base`.
fn enable_controllers(base: &Path) -> Result<(), String> {
    let file = |name: &str| base.join(name);
    let message = |error: io::Error| format!("{}: {error}", base.display());
    let there = fs::read_to_string(file("cgroup.controllers")).map_err(message)?;
    let required = ["cpu", "memory", "pids"];
    let missing = required.map(|name| !there.split_whitespace().any(|there| there == name));
    if let Some(at) = missing.iter().position(|missing| *missing) {
        let name = required[at];
        return Err(format!(
            "the controller {name} is not available in {}",
            base.display()
        ));
    }
    fs::write(file("cgroup.subtree_control"), "+cpu +memory +pids").map_err(message)?;
    // Nice values have no effect between groups: without a weight the daemon gets as much of a busy host as one of its guests.
    if let Err(error) = fs::write(file(LEAF_NAME).join("cpu.weight"), CPU_WEIGHT) {
        tracing::debug!(%error, "cannot set the daemon's CPU weight");
    }
    Ok(())
}

/// Creates a group in `base` if it does not exist, and sets its limits; returns its path.
pub fn make(base: &Path, name: &str, limits: &Limits) -> Result<PathBuf, Error> {
    let group = base.join(format!("{NAME_PREFIX}{name}"));
    let fail = |error| Error::io("create control group", group.display().to_string(), error);
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        Ok(()) | Err(_) => {}
    }
    let cpu = limits.cpu_millis.saturating_mul(CPU_PERIOD / 1000);
    for (file, value) in [
        ("cpu.max", format!("{cpu} {CPU_PERIOD}")),
        ("memory.max", limits.memory.to_string()),
        ("memory.oom.group", "1".to_owned()),
        ("pids.max", limits.pids.to_string()),
    ] {
        let file = group.join(file);
        // A missing controller does not prevent the start of a VM.
        if file.exists() {
            fs::write(file, value).map_err(fail)?;
        }
    }
    Ok(group)
}

/// Kills all processes of a group in `base` (cgroup-v2.rst, `cgroup.kill`, Linux 5.14). Best effort.
pub fn kill(base: &Path, name: &str) {
    // Never creates the file: it exists only if the kernel supports it.
    let file = base
        .join(format!("{NAME_PREFIX}{name}"))
        .join("cgroup.kill");
    let opened = fs::OpenOptions::new().write(true).open(&file);
    if let Err(error) = opened.and_then(|mut file| io::Write::write_all(&mut file, b"1")) {
        tracing::debug!(group = name, %error, "cannot kill a control group");
    }
}

/// The group of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// The group of this name in [`base`].
    Managed(String),
    /// A group with our name prefix under another parent: of another daemon, or of this one when it ran in another group.
    OtherDaemon,
    /// Any other group.
    Unmanaged,
}

/// Classifies a process's group, as `/proc/<pid>/cgroup` shows it. `own` is the daemon's.
pub fn member(own: &str, group: &str) -> Member {
    let (above, name) = group.rsplit_once('/').unwrap_or(("", group));
    let Some(name) = name.strip_prefix(NAME_PREFIX) else {
        return Member::Unmanaged;
    };
    match own.rsplit_once('/') {
        Some((parent, LEAF_NAME)) if parent == above => Member::Managed(name.to_owned()),
        Some(_) | None => Member::OtherDaemon,
    }
}

/// The daemon's own version 2 group; empty if there is none. It does not change while the daemon runs.
pub fn own() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("0::"));
        own.unwrap_or_default().to_owned()
    })
}

/// Removes a group in `base`. It is not an error if it does not exist or still has processes.
pub fn remove(base: &Path, name: &str) -> Result<(), Error> {
    let group = base.join(format!("{NAME_PREFIX}{name}"));
    let removed = fs::remove_dir(&group);
    match removed.map_err(|e| Error::io("remove control group", group.display().to_string(), e)) {
        Err(error) if !matches!(error.kind, Kind::Absent | Kind::Busy) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes every group of the daemon that has no processes.
pub fn sweep(base: &Path) {
    let names = fs::read_dir(base).into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if let Some(name) = name.strip_prefix(NAME_PREFIX)
            && let Err(error) = remove(base, name)
        {
            tracing::debug!(%error, "cannot remove a control group");
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
    fn the_base_is_the_parent_of_the_daemons_leaf_group() {
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
    fn limits_are_written_only_for_available_controllers() {
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
        let read = |file| fs::read_to_string(group.join(file)).ok();
        assert_eq!(read("cpu.max").as_deref(), Some("150000 100000"));
        assert_eq!(read("memory.max").as_deref(), Some("1073741824"));
        assert_eq!(read("pids.max"), None);
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
    fn only_siblings_of_the_daemons_leaf_are_managed() {
        let managed = |name: &str| Member::Managed(name.to_owned());
        for (own, group, expected) in [
            (
                "/s/sliced.service/sliced",
                "/s/sliced.service/vm-a",
                managed("a"),
            ),
            (
                "/s/sliced.service/sliced",
                "/s/other.service/vm-a",
                Member::OtherDaemon,
            ),
            (
                "/s/sliced.service/sliced",
                "/s/sliced.service/vm-a/vm-b",
                Member::OtherDaemon,
            ),
            (
                "/s/sliced.service/sliced",
                "/s/sliced.service/sliced",
                Member::Unmanaged,
            ),
            ("/s/sliced.service", "/s/vm-a", Member::OtherDaemon),
            ("/sliced", "/vm-a", managed("a")),
            ("", "/vm-a", Member::OtherDaemon),
            ("/", "/user.slice", Member::Unmanaged),
        ] {
            assert_eq!(member(own, group), expected, "{own} {group}");
        }
    }

    #[test]
    fn a_failed_search_is_repeated() {
        let cache = OnceLock::new();
        let busy = get_or_try_init(&cache, || Err("busy".to_owned()));
        assert_eq!(busy, Err("busy".to_owned()));
        let base = Path::new("/base");
        assert_eq!(get_or_try_init(&cache, || Ok(base.to_owned())), Ok(base));
        let second = get_or_try_init(&cache, || panic!("already found"));
        assert_eq!(second, Ok(base));
    }

    #[test]
    fn missing_controllers_are_named() {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("cgroup.controllers"), "cpu hugetlb pids\n").unwrap();
        assert!(
            enable_controllers(base.path())
                .unwrap_err()
                .contains("memory")
        );
        fs::write(base.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        enable_controllers(base.path()).unwrap();
        fs::create_dir(base.path().join(LEAF_NAME)).unwrap();
        enable_controllers(base.path()).unwrap();
        let weight = fs::read_to_string(base.path().join("sliced/cpu.weight"));
        assert_eq!(weight.unwrap(), "1000");
    }
}
