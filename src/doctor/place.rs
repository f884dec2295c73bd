//! Checks the environment of the daemon: capabilities, directories, visibility of its namespaces, free address ranges.
//! Out of scope: the kernel's features.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use ipnetwork::Ipv4Network;

use super::{Examiner, Host, fail, ok, unseen, warn};
use crate::api::manifest::is_manifest;
use crate::api::pool;
use crate::api::view::Check;
use crate::host::error_chain;
use crate::host::fs::{self, Dir};
use crate::host::{Error, addr, link, route};

pub(super) const CAPABILITIES: &str = "capabilities";
const MANIFESTS: &str = "manifest directory";
pub(super) const STATE: &str = "state";
pub(super) const VISIBILITY: &str = "visibility of namespaces";
const ADDRESSES: &str = "free ranges of 169.254.0.0/16";

/// Bits of linux/capability.h, with the purpose of each.
const REQUIRED: [(u32, &str); 2] = [
    (12, "CAP_NET_ADMIN (links and rules)"),
    (21, "CAP_SYS_ADMIN (namespaces)"),
];
const USEFUL: [(u32, &str); 10] = [
    (0, "CAP_CHOWN (the socket's group)"),
    (1, "CAP_DAC_OVERRIDE (files of other owners)"),
    (5, "CAP_KILL (stopping VMMs)"),
    (6, "CAP_SETGID (VMMs' groups)"),
    (7, "CAP_SETUID (VMMs' users)"),
    (8, "CAP_SETPCAP (VMMs without capabilities)"),
    (13, "CAP_NET_RAW (iptables-legacy)"),
    (19, "CAP_SYS_PTRACE (VMMs of other owners)"),
    (27, "CAP_MKNOD (VMMs' own devices)"),
    (28, "CAP_LEASE (whether a VMM's disk is written to)"),
];

/// With fewer free ranges, only few more groups can be placed.
const FEW_RANGES: usize = 8;

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let capabilities = fs::read_text(Path::new("/proc/thread-self/status"));
    let capabilities = capabilities.map(|text| effective(&text.unwrap_or_default()));
    let rights = match capabilities {
        Ok(Some(bits)) => evaluate_capabilities(bits),
        Ok(None) => unseen(CAPABILITIES, "/proc/thread-self/status has no CapEff"),
        Err(error) => unseen(CAPABILITIES, &error_chain(&error)),
    };
    let folder = evaluate_manifest_dir(&cx.config_dir, fs::read_dir(&resolved(&cx.config_dir)));
    let ranges = match taken(cx).await {
        Ok(taken) => evaluate_ranges(&taken),
        Err(error) => unseen(ADDRESSES, &error_chain(&error)),
    };
    let state = match (cx.examiner, cx.state_dir.try_exists()) {
        (Examiner::Root | Examiner::User, Ok(false)) => {
            let dir = cx.state_dir.display();
            ok(
                STATE,
                format!("{dir} does not exist yet: sliced creates it"),
            )
        }
        _ => evaluate_state(&cx.state_dir, cx.read_only.as_deref()),
    };
    vec![
        rights,
        folder,
        state,
        evaluate_visibility(&mounts()),
        ranges,
    ]
}

/// The directory may be a symbolic link, which `look_at_dir` does not follow.
fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The `CapEff` line of proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(bits: u64, capabilities: &[(u32, &'static str)]) -> Vec<&'static str> {
    let absent = capabilities
        .iter()
        .filter(|(bit, _)| bits & (1 << bit) == 0);
    absent.map(|(_, name)| *name).collect()
}

/// The required capabilities that this process does not have. Empty if they cannot be read.
pub fn lacking() -> Vec<&'static str> {
    let status = fs::read_text(Path::new("/proc/thread-self/status"));
    let bits = status.ok().flatten().and_then(|status| effective(&status));
    bits.map_or_else(Vec::new, |bits| missing(bits, &REQUIRED))
}

fn evaluate_capabilities(bits: u64) -> Check {
    let remedy = "Run sliced as root, or add these to AmbientCapabilities= of its unit.";
    match (
        missing(bits, &REQUIRED).as_slice(),
        missing(bits, &USEFUL).as_slice(),
    ) {
        ([], []) => ok(CAPABILITIES, "all present"),
        ([], some) => warn(CAPABILITIES, format!("missing {}", some.join(", ")), remedy),
        (needed, _) => fail(
            CAPABILITIES,
            format!("missing {}", needed.join(", ")),
            remedy,
        ),
    }
}

fn evaluate_manifest_dir(path: &Path, found: Result<Dir, Error>) -> Check {
    let at = path.display();
    match found {
        Ok(Dir::Present(names)) => {
            let is_manifest = |name: &&String| is_manifest(OsStr::new(name));
            let manifests = names.iter().filter(is_manifest).count();
            ok(MANIFESTS, format!("{at}: {manifests} manifest(s)"))
        }
        Ok(Dir::Absent) => warn(
            MANIFESTS,
            format!("{at} does not exist: groups can only be created with `slicectl apply`"),
            format!("Create it: `mkdir -p {at}`."),
        ),
        Ok(Dir::NotADirectory) => fail(
            MANIFESTS,
            format!("{at} is not a directory"),
            "Specify a directory with `--config-dir`.",
        ),
        Err(error) => unseen(MANIFESTS, &error_chain(&error)),
    }
}

fn evaluate_state(dir: &Path, read_only: Option<&str>) -> Check {
    match read_only {
        None => ok(STATE, format!("{}: writable", dir.display())),
        Some(reason) => fail(
            STATE,
            format!("{reason}: changes are refused; existing VMs are still enforced and repaired"),
            "Free space on that file system, or make it writable; sliced then continues by itself.",
        ),
    }
}

/// The mount namespace of the daemon: that of the host (process 1), another, or unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountNamespace {
    Host,
    Own,
    Unknown,
}

fn mounts() -> MountNamespace {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
    match (of("1"), of("thread-self")) {
        (Ok(first), Ok(ours)) if first == ours => MountNamespace::Host,
        (Ok(_), Ok(_)) => MountNamespace::Own,
        _ => MountNamespace::Unknown,
    }
}

/// The name of a network namespace is a bind mount, which is visible only in our mount namespace.
fn evaluate_visibility(mounts: &MountNamespace) -> Check {
    match mounts {
        MountNamespace::Host => ok(
            VISIBILITY,
            "all processes of the host, also with `ip netns`",
        ),
        MountNamespace::Unknown => ok(
            VISIBILITY,
            "processes in our mount namespace; cannot determine whether it is that of the host",
        ),
        MountNamespace::Own => warn(
            VISIBILITY,
            "only processes in our mount namespace, which is not that of the host",
            "To make them visible to `ip netns` of the host, start sliced outside of a container, and from a unit without \
             PrivateTmp=, ProtectSystem= and similar settings.",
        ),
    }
}

/// Networks in use on this host: addresses and routes longer than /16 of links that are not ours.
async fn taken(cx: &Host) -> Result<Vec<Ipv4Network>, Error> {
    let netlink = cx.home.netlink()?;
    let prefix = cx.instance.link_prefix();
    let links = link::list(&netlink).await?;
    let is_ours = |index: u32| {
        links
            .iter()
            .any(|link| link.index == index && link.name.starts_with(&prefix))
    };
    let addresses = addr::list(&netlink, addr::Of::All).await?;
    let routes = route::list(&netlink).await?;
    let addresses = addresses
        .into_iter()
        .filter(|addr| !is_ours(addr.index))
        .map(|addr| addr.net);
    let routes = routes
        .into_iter()
        .filter(|route| !route.link.is_some_and(is_ours))
        .map(|route| route.dst);
    Ok(addresses
        .chain(routes)
        .filter(|net| net.prefix() > pool::link_local().prefix())
        .collect())
}

fn evaluate_ranges(in_use: &[Ipv4Network]) -> Check {
    let usable: Vec<Ipv4Network> = (0..64)
        .filter(|index| !pool::is_reserved_index(*index))
        .map(pool::pool)
        .collect();
    let free = usable
        .iter()
        .filter(|range| !in_use.iter().any(|net| pool::overlaps(**range, *net)))
        .count();
    let found = format!("{free} of {} /22s are free", usable.len());
    match free {
        0 => fail(
            ADDRESSES,
            found,
            "Free a part of 169.254.0.0/16: `ip -4 addr` and `ip -4 route` show the links that use it.",
        ),
        1..FEW_RANGES => warn(
            ADDRESSES,
            found,
            "Specify `range:` for each group so that groups share the remaining ranges, or free a part of 169.254.0.0/16.",
        ),
        _ => ok(ADDRESSES, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus::{Fail, Ok as Fine, Warn};

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(evaluate_capabilities(u64::MAX).status, Fine);
        assert_eq!(evaluate_capabilities(0).status, Fail);
        let check = evaluate_capabilities(!(1 << 13));
        assert_eq!(check.status, Warn);
        assert!(check.found.contains("CAP_NET_RAW"));
        assert_eq!(
            effective("CapInh:\t0\nCapEff:\t0000000000001000\n"),
            Some(1 << 12)
        );
        assert_eq!(effective("CapInh:\t0\n"), None);
    }

    #[test]
    fn manifests_are_counted_and_a_missing_directory_comes_with_the_command_that_creates_it() {
        let names = [
            "a.yaml",
            "b.yml",
            "c.yaml.bak",
            ".hidden.yaml",
            ".b.yaml.swp",
            "#a.yaml#",
            "#a.yaml",
            "A.YAML",
        ];
        let names = names.map(Into::into);
        let check = evaluate_manifest_dir(Path::new("/etc/s"), Ok(Dir::Present(names.into())));
        assert_eq!(check.found, "/etc/s: 2 manifest(s)");
        let check = evaluate_manifest_dir(Path::new("/etc/s"), Ok(Dir::Absent));
        assert_eq!(
            (check.status, check.remedy.as_str()),
            (Warn, "Create it: `mkdir -p /etc/s`.")
        );
        assert_eq!(
            evaluate_manifest_dir(Path::new("/etc/s"), Ok(Dir::NotADirectory)).status,
            Fail
        );
    }

    #[test]
    fn a_separate_mount_namespace_is_a_warning() {
        assert_eq!(evaluate_visibility(&MountNamespace::Host).status, Fine);
        assert_eq!(evaluate_visibility(&MountNamespace::Own).status, Warn);
        assert_eq!(evaluate_visibility(&MountNamespace::Unknown).status, Fine);
    }

    #[test]
    fn ranges_in_use_are_not_free() {
        let net = |text: &str| text.parse::<Ipv4Network>().unwrap();
        assert_eq!(evaluate_ranges(&[]).found, "56 of 56 /22s are free");
        let one = evaluate_ranges(&[net("169.254.100.7/30"), net("10.0.0.0/8")]);
        assert_eq!(one.found, "55 of 56 /22s are free");
        assert_eq!(
            evaluate_ranges(&[
                net("169.254.0.0/17"),
                net("169.254.128.0/18"),
                net("169.254.192.0/19")
            ])
            .status,
            Warn
        );
        assert_eq!(
            evaluate_ranges(&[net("169.254.0.0/17"), net("169.254.128.0/17")]).status,
            Fail
        );
    }
}
