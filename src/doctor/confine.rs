//! Checks whether VMMs can be confined on this host: their users and their control groups.
//! Out of scope: the state of single VMs.

use std::path::Path;

use super::{Host, ok, unseen, warn};
use crate::api::view::Check;
use crate::api::vmm_ids::IdRange;
use crate::host::error_chain;
use crate::host::{Error, cgroup, fs};

const USERS: &str = "users for VMMs";
pub(super) const LIMITS: &str = "limits of VMs";

/// A range of ids: owner, first id, number of ids.
type IdBlock = (String, u64, u64);

pub(super) fn checks(cx: &Host) -> Vec<Check> {
    let users = match observe() {
        Ok((mapped, others)) => evaluate_users(&cx.vmm_ids, &mapped, &others),
        Err(error) => unseen(USERS, &error_chain(&error)),
    };
    vec![users, evaluate_limits(cgroup::base())]
}

/// The ids that are mapped in this user namespace, and those that are assigned to other users.
fn observe() -> Result<(Vec<IdBlock>, Vec<IdBlock>), Error> {
    let text = |path: &str| Ok::<_, Error>(fs::read_text(Path::new(path))?.unwrap_or_default());
    let mut others = Vec::new();
    for path in ["/etc/subuid", "/etc/subgid"] {
        others.extend(subordinate(path, &text(path)?));
    }
    for path in ["/etc/passwd", "/etc/group"] {
        others.extend(single(path, &text(path)?));
    }
    Ok((mapped(&text("/proc/self/uid_map")?), others))
}

/// `<first> <first outside> <length>` (user_namespaces(7)).
fn mapped(text: &str) -> Vec<IdBlock> {
    let run = |line: &str| {
        let mut fields = line.split_whitespace();
        let first = fields.next()?.parse().ok()?;
        Some((String::new(), first, fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(run).collect()
}

/// `<user>:<first>:<length>` (subuid(5)).
fn subordinate(path: &str, text: &str) -> Vec<IdBlock> {
    let run = |line: &str| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        let (first, length) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((format!("{user} in {path}"), first, length))
    };
    text.lines().filter_map(run).collect()
}

/// `<name>:<password>:<id>:…` (passwd(5), group(5)).
fn single(path: &str, text: &str) -> Vec<IdBlock> {
    let run = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((format!("{name} in {path}"), fields.nth(1)?.parse().ok()?, 1))
    };
    text.lines().filter_map(run).collect()
}

fn evaluate_users(ids: &IdRange, mapped: &[IdBlock], others: &[IdBlock]) -> Check {
    let contains = |(_, first, length): &&IdBlock| {
        ids.ends()
            .all(|id| (*first..first.saturating_add(*length)).contains(&u64::from(id)))
    };
    let overlaps = |(_, first, length): &&IdBlock| {
        let mut ends = ids.ends().map(u64::from);
        let (low, high) = (ends.next().unwrap_or(0), ends.next().unwrap_or(0));
        *first <= high && low < first.saturating_add(*length)
    };
    let remedy = "Specify an unused range: `sliced --vmm-ids FIRST-LAST`.";
    if !mapped.iter().any(|run| contains(&run)) {
        let found = format!("{ids} are not all mapped in the user namespace of sliced");
        return warn(USERS, found, remedy);
    }
    match others.iter().find(overlaps) {
        Some((owner, _, _)) => warn(USERS, format!("{ids} overlap with {owner}"), remedy),
        None => ok(
            USERS,
            format!(
                "{ids}, one for each VM; VMMs of bridge groups run in the host's network namespace"
            ),
        ),
    }
}

fn evaluate_limits(base: Result<&Path, String>) -> Check {
    match base {
        Ok(base) => ok(LIMITS, format!("control groups below {}", base.display())),
        Err(error) => warn(
            LIMITS,
            format!("CPU and memory of VMs are not limited: {error}"),
            "Run sliced from its unit under systemd 254 or later with cgroup v2; everything else works without it.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::view::CheckStatus;

    #[test]
    fn ids_that_are_assigned_or_not_mapped_are_warnings() {
        let ids: IdRange = "70000-70099".parse().unwrap();
        let whole = mapped("         0          0 4294967295\n");
        assert_eq!(evaluate_users(&ids, &whole, &[]).status, CheckStatus::Ok);
        let rootless = mapped("0 1000 1\n1 100000 65536\n");
        assert!(
            evaluate_users(&ids, &rootless, &[])
                .found
                .contains("namespace")
        );
        let subuid = subordinate("/etc/subuid", "ann:70099:65536\n");
        let check = evaluate_users(&ids, &whole, &subuid);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.found.contains("ann in /etc/subuid"));
        let passwd = single(
            "/etc/passwd",
            "bob:x:70050:100:,,,:/home/bob:/bin/sh\nnonsense\n",
        );
        assert!(evaluate_users(&ids, &whole, &passwd).found.contains("bob"));
        let before = subordinate("/etc/subuid", "ann:4464:65536\n");
        assert_eq!(
            evaluate_users(&ids, &whole, &before).status,
            CheckStatus::Ok
        );
    }

    #[test]
    fn missing_limits_are_a_warning_that_names_the_reason() {
        let check = evaluate_limits(Err("no control groups of version 2".to_owned()));
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.found.ends_with("no control groups of version 2"));
    }
}
