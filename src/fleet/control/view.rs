//! What the scheduler sees of the mirror.
//! Out of scope: what it decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::absence::Absences;
use super::looks::Looks;
use crate::api::meta::{Name, Timestamp, Uid};
use crate::fleet::contact::Boottime;
use crate::fleet::keys::Key;
use crate::fleet::mirror::{Decoded, Mirror};
use crate::fleet::object::VmStatus;
use crate::fleet::schedule::view::{Contact, NodeView, Stored, View};

/// A view with a sentence about the nodes that are left out, or why there is none.
pub(super) type Seen = Result<(View, Option<String>), String>;

/// The view of the scheduler, and a sentence about the nodes with values of their own that cannot be decoded.
///
/// A node that writes such a value is as one that has just lost contact: no VM is bound to it, and none of it is replaced or confirmed. It
/// does not stop the others. Values that control nodes write are those of the whole fleet.
///
/// # Errors
/// A value of a control node cannot be decoded: why nothing is planned, a sentence.
pub(super) fn of(
    mirror: &Mirror,
    seen: (&Absences, &Looks),
    now: Timestamp,
    boottime: Boottime,
) -> Seen {
    let mut unreadable = BTreeSet::new();
    let (mut of_nodes, mut of_fleet) = (Vec::new(), Vec::new());
    for (key, error) in mirror.undecodable() {
        let text = format!("{key} cannot be decoded: {error}");
        match key {
            Key::NodeStatus(node) | Key::VmStatus(node, _) => {
                unreadable.insert(node);
                of_nodes.push(text);
            }
            _ => of_fleet.push(text),
        }
    }
    if let Some(reason) = summary(&of_fleet) {
        return Err(format!("nothing is planned, because {reason}"));
    }
    let note = summary(&of_nodes);
    let note = note.map(|reason| format!("nodes are left out, because {reason}"));
    let mut statuses: BTreeMap<Uid, BTreeMap<Name, Stored<VmStatus>>> = BTreeMap::new();
    // What else such a node reports may be as wrong.
    let readable = mirror.statuses.iter();
    for (node, of_node) in readable.filter(|(node, _)| !unreadable.contains(*node)) {
        for (uid, status) in of_node {
            if let Some(status) = decoded(status) {
                let of_vm = statuses.entry(*uid).or_default();
                of_vm.insert(node.clone(), status);
            }
        }
    }
    let ranges = mirror.ranges.iter().map(|(group, ranges)| {
        let ranges = all(ranges).map(|(node, range)| (node, range.value));
        (group.clone(), ranges.collect())
    });
    let view = View {
        now,
        groups: all(&mirror.groups).collect(),
        vms: all(&mirror.vms).collect(),
        nodes: nodes(mirror, seen, boottime, &unreadable),
        statuses,
        ranges: ranges.collect(),
    };
    Ok((view, note))
}

/// The first of several, with the number of the others.
fn summary(texts: &[String]) -> Option<String> {
    let first = texts.first()?;
    Some(match texts.len() - 1 {
        0 => first.clone(),
        more => format!("{first}; {more} more values cannot be decoded"),
    })
}

fn nodes(
    mirror: &Mirror,
    (absences, looks): (&Absences, &Looks),
    now: Boottime,
    unreadable: &BTreeSet<Name>,
) -> BTreeMap<Name, NodeView> {
    let names = mirror.nodes.keys().chain(mirror.node_statuses.keys());
    let names = names.chain(mirror.alive.keys());
    let view = |name: &Name| NodeView {
        admin: mirror.nodes.get(name).and_then(decoded),
        status: mirror.node_statuses.get(name).and_then(decoded),
        contact: match unreadable.contains(name) {
            true => Contact::Lost {
                elapsed: Duration::ZERO,
            },
            false => absences.contact(mirror, name, now),
        },
        looks: looks.remaining(name, now),
    };
    names.map(|name| (name.clone(), view(name))).collect()
}

fn decoded<T: Clone>(stored: &Decoded<T>) -> Option<Stored<T>> {
    let value = stored.value.as_ref().ok()?.clone();
    Some(Stored {
        revision: stored.revision,
        value,
    })
}

fn all<K: Clone + Ord, T: Clone>(
    map: &BTreeMap<K, Decoded<T>>,
) -> impl Iterator<Item = (K, Stored<T>)> {
    map.iter()
        .filter_map(|(key, stored)| Some((key.clone(), decoded(stored)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::kv::LeaseId;
    use crate::fleet::object::{Node, decode};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn view(mirror: &Mirror) -> Result<View, String> {
        let now = Timestamp::UNIX_EPOCH;
        let seen = of(
            mirror,
            (&Absences::default(), &Looks::default()),
            now,
            Boottime::default(),
        );
        seen.map(|(view, _)| view)
    }

    #[test]
    fn a_node_is_one_that_has_an_object_a_status_or_a_key() {
        let mut mirror = Mirror::default();
        let key = Stored {
            revision: 3,
            value: Some(LeaseId(1)),
        };
        let node = Stored {
            revision: 2,
            value: Ok(Node::default()),
        };
        mirror.alive.insert(name("a"), key);
        mirror.nodes.insert(name("b"), node);
        let view = view(&mirror).unwrap();
        let contacts: Vec<_> = view.nodes.values().map(|it| it.contact).collect();
        let elapsed = std::time::Duration::ZERO;
        assert_eq!(contacts, [Contact::Alive, Contact::Lost { elapsed }]);
    }

    #[test]
    fn there_is_no_view_while_a_value_cannot_be_decoded() {
        let mut mirror = Mirror::default();
        for (node, value) in [
            ("a", r#"{"version":1}"#),
            ("b", "{"),
            ("c", r#"{"version":9}"#),
        ] {
            let stored = Stored {
                revision: 2,
                value: decode(value.as_bytes()),
            };
            mirror.nodes.insert(name(node), stored);
        }
        let error = view(&mirror).unwrap_err();
        assert!(
            error.starts_with("nothing is planned, because /slice/v1/nodes/b cannot be decoded"),
            "{error}"
        );
        assert!(
            error.ends_with("; 1 more values cannot be decoded"),
            "{error}"
        );
        mirror.nodes.retain(|node, _| node.as_str() == "a");
        assert!(view(&mirror).is_ok());
    }

    #[test]
    fn a_node_with_a_value_that_cannot_be_decoded_is_as_one_without_contact_and_stops_no_other() {
        let stored = |revision, text: &str| Stored {
            revision,
            value: decode(text.as_bytes()),
        };
        let status = r#"{"version":1,"epoch":1,"phase":"Deleted","group_generation":1}"#;
        let uid = |number| Uid(uuid::Uuid::from_u128(number));
        for garbled in ["{", r#"{"version":9}"#, "null", ""] {
            for (of_vm, of_node) in [(true, false), (false, true)] {
                let mut mirror = Mirror::default();
                for node in ["a", "b"] {
                    let key = Stored {
                        revision: 1,
                        value: Some(LeaseId(1)),
                    };
                    mirror.alive.insert(name(node), key);
                    let statuses = [(uid(1), stored(2, status))].into();
                    mirror.statuses.insert(name(node), statuses);
                }
                if of_vm {
                    let statuses = mirror.statuses.get_mut(&name("a")).unwrap();
                    statuses.insert(uid(2), stored(3, garbled));
                }
                if of_node {
                    let value = decode(garbled.as_bytes());
                    let found = Stored { revision: 3, value };
                    mirror.node_statuses.insert(name("a"), found);
                }
                let now = Timestamp::UNIX_EPOCH;
                let (absences, looks) = (Absences::default(), Looks::default());
                let seen = of(&mirror, (&absences, &looks), now, Boottime::default());
                let (view, note) = seen.unwrap();
                let note = note.unwrap();
                assert!(
                    note.starts_with("nodes are left out, because /slice/v1/"),
                    "{note}"
                );
                let elapsed = Duration::ZERO;
                assert_eq!(view.nodes[&name("a")].contact, Contact::Lost { elapsed });
                assert_eq!(view.nodes[&name("b")].contact, Contact::Alive);
                let reports: Vec<_> = view.statuses[&uid(1)].keys().collect();
                assert_eq!(reports, [&name("b")], "its reports prove nothing");
            }
        }
    }
}
