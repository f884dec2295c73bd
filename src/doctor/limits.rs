//! Checks kernel limits that many VMs may reach.
//! Out of scope: limits of single VMs.

use rustix::process::Resource;

use super::{Host, fail, ok, unseen, warn};
use crate::api::view::Check;
use crate::host::error_chain;
use crate::host::{Error, cttimeout, fs, sysctl};
use crate::reconcile::limits::Limit;

const NEIGHBOURS: &str = "neighbour table";
const INOTIFY: &str = "inotify";
const FLOWS: &str = "connection tracking limit";
pub(super) const FILES: &str = "open files";
pub(super) const CONNECTIONS: &str = "connections per VM";

/// The kernel's default for gc_thresh3. A lower value was configured.
const MIN_NEIGHBOURS: u64 = 1024;
const MIN_FLOWS: u64 = 16384;
/// The daemon needs one instance; other programs use some.
const MIN_INSTANCES: u64 = 64;
/// The manifest directory and the targets of its symbolic links.
const MIN_WATCHES: u64 = 1024;
/// For a thousand VMs: two descriptors per VM and some hundred for the daemon itself.
const MIN_FILES: u64 = 4096;

const KEYS: [&str; 5] = [
    "net.ipv4.neigh.default.gc_thresh3",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_count",
];

pub(super) async fn checks(cx: &Host) -> Vec<Check> {
    let observed = cx.home.run(|| Ok((read()?, neighbours()))).await;
    let mut checks = match observed {
        Ok(([thresh, instances, watches, max, count], entries)) => vec![
            evaluate_neighbours(thresh, entries),
            evaluate_inotify(instances, watches),
            evaluate_flows(max, count),
            evaluate_connections(max, cttimeout::get("slice-doctor").err()),
        ],
        Err(error) => vec![unseen(NEIGHBOURS, &error_chain(&error))],
    };
    checks.push(evaluate_files(
        rustix::process::getrlimit(Resource::Nofile).current,
    ));
    checks
}

/// A key that does not exist or is not a number is `None`.
fn read() -> Result<[Option<u64>; 5], Error> {
    let values = sysctl::read_many(&KEYS)?;
    let mut numbers = values.into_iter().map(|value| value?.parse().ok());
    Ok(std::array::from_fn(|_| numbers.next().flatten()))
}

/// Entries of the ARP table of all namespaces: the first column, in hexadecimal (net/core/neighbour.c, `neigh_stat_seq_show`).
fn neighbours() -> Option<u64> {
    let path = std::path::Path::new("/proc/thread-self/net/stat/arp_cache");
    let text = fs::read_text(path).ok().flatten()?;
    let entries = text.lines().nth(1)?.split_whitespace().next()?;
    u64::from_str_radix(entries, 16).ok()
}

fn evaluate_neighbours(thresh: Option<u64>, entries: Option<u64>) -> Check {
    let remedy = "Raise it: `sysctl -w net.ipv4.neigh.default.gc_thresh3=8192 net.ipv4.neigh.default.gc_thresh2=4096`, and in \
                  /etc/sysctl.d.";
    match (thresh, entries.unwrap_or(0)) {
        // The table is shared by all namespaces; its limit is visible only in the initial one.
        (None, entries) => ok(
            NEIGHBOURS,
            format!(
                "{entries} entries; the limit is visible only in the initial network namespace"
            ),
        ),
        (Some(limit), entries) if entries.saturating_mul(4) >= limit.saturating_mul(3) => warn(
            NEIGHBOURS,
            format!("{entries} of {limit} entries are in use"),
            remedy,
        ),
        (Some(limit), entries) if limit < MIN_NEIGHBOURS => warn(
            NEIGHBOURS,
            format!("at most {limit} entries ({entries} in use); each active guest needs one"),
            remedy,
        ),
        (Some(limit), entries) => ok(
            NEIGHBOURS,
            format!("{entries} of {limit} entries are in use"),
        ),
    }
}

fn evaluate_inotify(instances: Option<u64>, watches: Option<u64>) -> Check {
    match (instances, watches) {
        (Some(instances), Some(watches)) => {
            let found = format!("{instances} instances and {watches} watches per user");
            match instances >= MIN_INSTANCES && watches >= MIN_WATCHES {
                true => ok(INOTIFY, found),
                false => warn(
                    INOTIFY,
                    format!("{found}: watching the manifest directory may fail"),
                    "Raise them: `sysctl -w fs.inotify.max_user_instances=128 fs.inotify.max_user_watches=8192`, and in /etc/sysctl.d.",
                ),
            }
        }
        (None, _) | (_, None) => warn(
            INOTIFY,
            "not supported by this kernel: changed manifests are detected at the next resync",
            "Use a kernel with CONFIG_INOTIFY_USER, or apply manifests with `slicectl apply`.",
        ),
    }
}

fn evaluate_flows(max: Option<u64>, count: Option<u64>) -> Check {
    let remedy =
        "Raise it: `sysctl -w net.netfilter.nf_conntrack_max=262144`, and in /etc/sysctl.d.";
    match (max, count.unwrap_or(0)) {
        (None, _) => unseen(FLOWS, "net.netfilter.nf_conntrack_max does not exist"),
        (Some(max), count) if count.saturating_mul(10) >= max.saturating_mul(9) => warn(
            FLOWS,
            format!("{count} of {max} flows: the kernel drops new flows when the limit is reached"),
            remedy,
        ),
        (Some(max), count) if max < MIN_FLOWS => warn(
            FLOWS,
            format!("{count} of {max} flows: the limit is low, and all VMs share it"),
            remedy,
        ),
        (Some(max), count) => ok(FLOWS, format!("{count} of {max} flows")),
    }
}

/// The default of `max_connections`, and whether the kernel supports timeout policies, which the rules of a VM need.
fn evaluate_connections(max: Option<u64>, error: Option<Error>) -> Check {
    let limit = Limit::default_for(max.and_then(|max| u32::try_from(max).ok()));
    match error {
        None => ok(
            CONNECTIONS,
            format!(
                "{} by default (max_connections), at most {} entries per VM in the host's table",
                limit.all(),
                limit.max_entries()
            ),
        ),
        Some(error) => fail(
            CONNECTIONS,
            format!(
                "the kernel does not support timeout policies for connection tracking: {}",
                error_chain(&error)
            ),
            "Use a kernel with CONFIG_NF_CT_NETLINK_TIMEOUT and CONFIG_NF_CONNTRACK_TIMEOUT (nfnetlink_cttimeout); without it the rules \
             of VMs cannot be set up.",
        ),
    }
}

/// `None`: no limit.
fn evaluate_files(limit: Option<u64>) -> Check {
    match limit {
        Some(limit) if limit < MIN_FILES => warn(
            FILES,
            format!("sliced can open {limit} files; a thousand VMs need {MIN_FILES}"),
            "Raise the limit: `LimitNOFILE=65536` in the unit, or `ulimit -n 65536`.",
        ),
        Some(limit) => ok(FILES, format!("sliced can open {limit}")),
        None => ok(FILES, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus::{Fail, Ok, Warn};

    #[test]
    fn a_neighbour_table_that_is_small_or_nearly_full_is_a_warning() {
        let verdict = |limit, entries| evaluate_neighbours(limit, entries).status;
        assert_eq!(verdict(Some(1024), Some(7)), Ok);
        assert_eq!(verdict(Some(128), Some(7)), Warn);
        assert_eq!(verdict(Some(4096), Some(3072)), Warn);
        assert_eq!(verdict(Some(4096), Some(3071)), Ok);
        assert_eq!(verdict(None, None), Ok);
    }

    #[test]
    fn low_inotify_limits_are_a_warning() {
        let verdict = |instances, watches| evaluate_inotify(instances, watches).status;
        assert_eq!(verdict(Some(128), Some(8192)), Ok);
        assert_eq!(verdict(Some(8), Some(8192)), Warn);
        assert_eq!(verdict(Some(128), Some(10)), Warn);
        assert_eq!(verdict(None, Some(8192)), Warn);
    }

    #[test]
    fn a_flow_table_that_is_small_or_nearly_full_is_a_warning() {
        let verdict = |max, count| evaluate_flows(max, count).status;
        assert_eq!(verdict(Some(262_144), Some(12)), Ok);
        assert_eq!(verdict(Some(262_144), Some(262_000)), Warn);
        assert_eq!(verdict(Some(1024), None), Warn);
        assert_eq!(verdict(None, None), Warn);
    }

    #[test]
    fn the_limit_per_vm_is_reported_and_a_kernel_without_timeout_policies_fails() {
        let found = evaluate_connections(Some(262_144), None);
        assert_eq!(found.status, Ok);
        assert!(found.found.contains("512 by default"), "{}", found.found);
        let error = Error::io("look", "at it", std::io::ErrorKind::InvalidInput.into());
        assert_eq!(evaluate_connections(None, Some(error)).status, Fail);
    }

    #[test]
    fn a_low_open_file_limit_is_a_warning() {
        assert_eq!(evaluate_files(Some(1024)).status, Warn);
        assert_eq!(evaluate_files(Some(65536)).status, Ok);
        assert_eq!(evaluate_files(None).status, Ok);
    }
}
