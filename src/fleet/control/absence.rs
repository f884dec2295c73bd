//! For how long the keys `alive/<node>` have been absent, as far as this leader has seen it.
//! Out of scope: what follows ([`crate::fleet::schedule::replacement`]).
//!
//! # Rules
//! A time is counted from when the leader sees the absence, which is not before the deletion. It starts again when the node returns, also
//! between two looks; when the watch has a gap, since the node may have returned in it; and with each term.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::api::meta::Name;
use crate::fleet::contact::Boottime;
use crate::fleet::mirror::Mirror;
use crate::fleet::schedule::view::Contact;

/// The absences that are counted.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// The term and the list in which they are counted.
    of: (u64, u64),
    /// Since when, and the revision of the deletion; 0: before the list.
    since: BTreeMap<Name, (Boottime, u64)>,
}

impl Absences {
    /// Looks at the keys. `term`: the revision of the election; `list`: the number of the list.
    pub(super) fn look(&mut self, mirror: &Mirror, term: u64, list: u64, now: Boottime) {
        if self.of != (term, list) {
            self.since.clear();
            self.of = (term, list);
        }
        let known: BTreeSet<&Name> = mirror
            .nodes
            .keys()
            .chain(mirror.node_statuses.keys())
            .chain(mirror.alive_deleted.keys())
            .filter(|node| !mirror.alive.contains_key(*node))
            .collect();
        self.since.retain(|node, _| known.contains(node));
        for node in known {
            let deleted = mirror.alive_deleted.get(node).copied().unwrap_or(0);
            let counted = self.since.get(node);
            if counted.is_none_or(|(_, revision)| *revision != deleted) {
                self.since.insert(node.clone(), (now, deleted));
            }
        }
    }

    /// The contact of a node.
    pub(super) fn contact(&self, mirror: &Mirror, node: &Name, now: Boottime) -> Contact {
        match mirror.alive.contains_key(node) {
            true => Contact::Alive,
            false => Contact::Lost {
                elapsed: self
                    .since
                    .get(node)
                    .map_or(Duration::ZERO, |(since, _)| now.since(*since)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::kv::LeaseId;
    use crate::fleet::object::Node;
    use crate::fleet::schedule::view::Stored;

    fn name() -> Name {
        Name::new("a").unwrap()
    }

    fn at(seconds: u64) -> Boottime {
        Boottime(Duration::from_secs(seconds))
    }

    /// A mirror in which the node has this key, and was absent last at this revision.
    fn mirror(is_alive: bool, deleted: Option<u64>) -> Mirror {
        let mut mirror = Mirror::default();
        let node = Stored {
            revision: 1,
            value: Ok(Node::default()),
        };
        mirror.nodes.insert(name(), node);
        if is_alive {
            let key = Stored {
                revision: 2,
                value: Some(LeaseId(1)),
            };
            mirror.alive.insert(name(), key);
        }
        mirror.alive_deleted.extend(deleted.map(|it| (name(), it)));
        mirror
    }

    fn elapsed(absences: &Absences, mirror: &Mirror, seconds: u64) -> Option<u64> {
        match absences.contact(mirror, &name(), at(seconds)) {
            Contact::Alive => None,
            Contact::Lost { elapsed } => Some(elapsed.as_secs()),
        }
    }

    #[test]
    fn an_absence_is_counted_from_when_it_is_seen() {
        let mut absences = Absences::default();
        let lost = mirror(false, Some(7));
        absences.look(&mirror(true, None), 1, 1, at(5));
        assert_eq!(elapsed(&absences, &mirror(true, None), 6), None);
        assert_eq!(elapsed(&absences, &lost, 6), Some(0), "not seen yet");
        absences.look(&lost, 1, 1, at(10));
        absences.look(&lost, 1, 1, at(20));
        assert_eq!(elapsed(&absences, &lost, 25), Some(15));
    }

    #[test]
    fn it_starts_again_after_a_return_a_gap_of_the_watch_and_an_election() {
        let lost = mirror(false, Some(7));
        for (what, before, after, term, list) in [
            (
                "a return",
                Some(mirror(true, Some(7))),
                mirror(false, Some(9)),
                1,
                1,
            ),
            (
                "a return between two looks",
                None,
                mirror(false, Some(9)),
                1,
                1,
            ),
            ("a list", None, mirror(false, None), 1, 2),
            ("an election", None, mirror(false, Some(7)), 2, 1),
        ] {
            let mut absences = Absences::default();
            absences.look(&lost, 1, 1, at(10));
            if let Some(before) = before {
                absences.look(&before, 1, 1, at(15));
            }
            absences.look(&after, term, list, at(20));
            assert_eq!(elapsed(&absences, &after, 25), Some(5), "{what}");
        }
    }
}
