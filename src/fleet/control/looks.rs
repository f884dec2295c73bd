//! How long the leader waits for nodes that have not looked yet for all files that groups name.
//! Out of scope: looking for them (the agent of the node); what waits ([`crate::fleet::schedule`]).
//!
//! # Why
//! Nodes look when they see a group. Until they have, a file is neither there nor missing: the node that is first would get all VMs of
//! the group. A node whose file system does not answer must not stop the group, so the wait ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::api::allowed::files_of;
use crate::api::meta::Name;
use crate::fleet::contact::Boottime;
use crate::fleet::mirror::Mirror;

/// The longest wait for a node.
const PATIENCE: Duration = Duration::from_secs(5);

/// The nodes that are waited for.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The files that groups name.
    files: BTreeSet<String>,
    nodes: BTreeMap<Name, Look>,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    /// The revision of the status that was compared with the files.
    revision: u64,
    /// Since when it lacks one of them.
    since: Option<Boottime>,
}

impl Looks {
    /// Compares what nodes report with what groups name.
    pub(super) fn look(&mut self, mirror: &Mirror, now: Boottime) {
        let groups = mirror.groups.values();
        let specs = groups.filter_map(|stored| stored.value.as_ref().ok());
        let files = specs.flat_map(|group| files_of(&group.spec.template));
        let files = files.filter_map(|(_, path)| path.into_os_string().into_string().ok());
        let alive = |node: &&Name| mirror.alive.contains_key(*node);
        let names = mirror.node_statuses.keys().filter(alive);
        let nodes = names.filter_map(|name| {
            let stored = mirror.node_statuses.get(name)?;
            let status = stored.value.as_ref().ok()?;
            Some((name, stored.revision, &status.files))
        });
        self.compare(files.collect(), nodes.collect(), now);
    }

    /// `nodes`: the names, the revisions of the statuses, and the files in them.
    fn compare(
        &mut self,
        files: BTreeSet<String>,
        nodes: Vec<(&Name, u64, &BTreeMap<String, bool>)>,
        now: Boottime,
    ) {
        let is_same = files == self.files;
        let before = std::mem::take(&mut self.nodes);
        for (node, revision, reported) in nodes {
            let known = before.get(node).copied();
            let current = known.filter(|it| is_same && it.revision == revision);
            let look = current.unwrap_or_else(|| Look {
                revision,
                // Files that another group names meanwhile do not prolong the wait.
                since: files
                    .iter()
                    .any(|file| !reported.contains_key(file))
                    .then(|| known.and_then(|it| it.since).unwrap_or(now)),
            });
            self.nodes.insert(node.clone(), look);
        }
        self.files = files;
    }

    /// How long the node is still waited for; `None`: not at all.
    pub(super) fn remaining(&self, node: &Name, now: Boottime) -> Option<Duration> {
        let since = self.nodes.get(node)?.since?;
        let remaining = PATIENCE.saturating_sub(now.since(since));
        (!remaining.is_zero()).then_some(remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boottime {
        Boottime(Duration::from_secs(seconds))
    }

    /// What the only node reports, when, and how long it is waited for then.
    type Turn<'t> = (&'t [&'t str], u64, &'t [&'t str], u64, Option<u64>);

    #[test]
    fn a_node_is_waited_for_until_it_has_looked_for_all_files_and_for_5_seconds_at_most() {
        let table: [(&str, &[Turn<'_>]); 6] = [
            ("nothing is named", &[(&[], 1, &[], 0, None)]),
            (
                "it looks",
                &[
                    (&["/a"], 1, &[], 10, Some(5)),
                    (&["/a"], 1, &[], 12, Some(3)),
                    (&["/a"], 2, &["/a"], 13, None),
                ],
            ),
            (
                "it does not look",
                &[
                    (&["/a"], 1, &[], 10, Some(5)),
                    (&["/a"], 1, &[], 15, None),
                    (&["/a"], 2, &[], 20, None),
                ],
            ),
            (
                "another file is named",
                &[
                    (&["/a"], 1, &["/a"], 10, None),
                    (&["/a", "/b"], 1, &["/a"], 20, Some(5)),
                    (&["/a", "/b", "/c"], 1, &["/a"], 23, Some(2)),
                    (&["/a", "/b", "/c"], 2, &["/a", "/b"], 24, Some(1)),
                ],
            ),
            (
                "the group is gone",
                &[(&["/a"], 1, &[], 10, Some(5)), (&[], 1, &[], 11, None)],
            ),
            (
                "it looked once and then forgot",
                &[
                    (&["/a"], 1, &["/a"], 10, None),
                    (&["/a"], 2, &[], 20, Some(5)),
                ],
            ),
        ];
        let node = Name::new("a").unwrap();
        for (what, turns) in table {
            let mut looks = Looks::default();
            for (files, revision, reported, now, expected) in turns {
                let files = files.iter().map(|file| (*file).to_owned()).collect();
                let reported = reported.iter().map(|file| ((*file).to_owned(), false));
                let reported = reported.collect();
                looks.compare(files, vec![(&node, *revision, &reported)], at(*now));
                let remaining = looks.remaining(&node, at(*now));
                assert_eq!(remaining, expected.map(Duration::from_secs), "{what} {now}");
            }
        }
    }

    #[test]
    fn a_node_that_has_no_contact_is_not_waited_for_and_one_that_returns_is_again() {
        let node = Name::new("a").unwrap();
        let (mut looks, reported) = (Looks::default(), BTreeMap::new());
        let files = || BTreeSet::from(["/a".to_owned()]);
        looks.compare(files(), vec![(&node, 1, &reported)], at(10));
        assert!(looks.remaining(&node, at(10)).is_some());
        looks.compare(files(), vec![], at(11));
        assert_eq!(looks.remaining(&node, at(11)), None);
        looks.compare(files(), vec![(&node, 1, &reported)], at(20));
        let again = looks.remaining(&node, at(21));
        assert_eq!(again, Some(Duration::from_secs(4)));
    }
}
