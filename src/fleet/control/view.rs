//! What the scheduler sees of the mirror.
//! Out of scope: what it decides.

use std::collections::BTreeMap;

use super::absence::Absences;
use crate::api::meta::{Name, Timestamp, Uid};
use crate::fleet::contact::Boottime;
use crate::fleet::mirror::{Decoded, Mirror};
use crate::fleet::object::VmStatus;
use crate::fleet::schedule::view::{NodeView, Stored, View};

/// The view of the scheduler.
///
/// # Errors
/// A value cannot be decoded: why nothing is planned, a sentence.
pub(super) fn of(
    mirror: &Mirror,
    absences: &Absences,
    now: Timestamp,
    boottime: Boottime,
) -> Result<View, String> {
    let mut undecodable = mirror.undecodable();
    if let Some((key, error)) = undecodable.next() {
        let more = match undecodable.count() {
            0 => String::new(),
            more => format!("; {more} more values cannot be decoded"),
        };
        return Err(format!(
            "nothing is planned, because {key} cannot be decoded: {error}{more}"
        ));
    }
    let mut statuses: BTreeMap<Uid, BTreeMap<Name, Stored<VmStatus>>> = BTreeMap::new();
    for (node, of_node) in &mirror.statuses {
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
    Ok(View {
        now,
        groups: all(&mirror.groups).collect(),
        vms: all(&mirror.vms).collect(),
        nodes: nodes(mirror, absences, boottime),
        statuses,
        ranges: ranges.collect(),
    })
}

fn nodes(mirror: &Mirror, absences: &Absences, now: Boottime) -> BTreeMap<Name, NodeView> {
    let names = mirror.nodes.keys().chain(mirror.node_statuses.keys());
    let names = names.chain(mirror.alive.keys());
    let view = |name: &Name| NodeView {
        admin: mirror.nodes.get(name).and_then(decoded),
        status: mirror.node_statuses.get(name).and_then(decoded),
        contact: absences.contact(mirror, name, now),
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
    use crate::fleet::contact::Boottime;
    use crate::fleet::kv::LeaseId;
    use crate::fleet::object::{Node, decode};
    use crate::fleet::schedule::view::Contact;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn view(mirror: &Mirror) -> Result<View, String> {
        let now = Timestamp::UNIX_EPOCH;
        of(mirror, &Absences::default(), now, Boottime::default())
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
}
