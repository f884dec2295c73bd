//! Which events are dropped when there are too many: those of the objects that have most of them.
//! Out of scope: how many are kept.
//!
//! # Why
//! The VMs of a large group start together, and a VMM that keeps failing never stops reporting. If the oldest events were dropped, such
//! a group would displace all that happened to others.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::api::event::ObjectRef;

/// Drops `excess` events: each share keeps the same number of its newest events, and shares with fewer keep all. `on_drop` is called for
/// each of them.
pub(super) fn drop_excess<T>(
    events: &mut VecDeque<T>,
    object: impl Fn(&T) -> &ObjectRef,
    excess: usize,
    mut on_drop: impl FnMut(&T),
) {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    let shares: Vec<u64> = events.iter().map(|event| share(object(event))).collect();
    for share in &shares {
        *counts.entry(*share).or_default() += 1;
    }
    let kept = fair_share(counts.values().copied(), excess);
    let mut surplus = counts;
    surplus
        .values_mut()
        .for_each(|count| *count = count.saturating_sub(kept));
    let (mut dropped, mut shares) = (0, shares.into_iter());
    events.retain(|event| {
        let left = shares.next().and_then(|share| surplus.get_mut(&share));
        match left {
            Some(left) if *left > 0 && dropped < excess => {
                *left -= 1;
                dropped += 1;
                on_drop(event);
                false
            }
            Some(_) | None => true,
        }
    });
}

/// The largest number of events per share with which at least `excess` are dropped.
fn fair_share(counts: impl Iterator<Item = usize> + Clone, excess: usize) -> usize {
    let dropped = |kept: usize| -> usize {
        let counts = counts.clone();
        counts.map(|count| count.saturating_sub(kept)).sum()
    };
    let (mut low, mut high) = (0, counts.clone().max().unwrap_or(0));
    while low < high {
        let middle = (low + high).div_ceil(2);
        match dropped(middle) >= excess {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

/// Identifies the events that share a budget: those of the VMs of a group, which have the same name up to the index, or of one object.
fn share(object: &ObjectRef) -> u64 {
    let mut hasher = DefaultHasher::new();
    match object {
        ObjectRef::Named(kind, name) => {
            let name = name.as_str();
            let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
            (0, kind, stem).hash(&mut hasher);
        }
        ObjectRef::Manifest(name) => (1, name).hash(&mut hasher),
        ObjectRef::Host => 2.hash(&mut hasher),
        // All that is left over is one share.
        ObjectRef::Orphan(_) => 3.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::event::{Event, EventReason, EventType};
    use crate::api::meta::Timestamp;

    fn event(object: &str, message: usize) -> Event {
        Event {
            time: Timestamp::UNIX_EPOCH,
            object: object.parse().expect("an object"),
            uid: None,
            reason: EventReason::Ready,
            message: message.to_string(),
            count: 1,
            kind: EventType::Normal,
        }
    }

    fn left(events: &VecDeque<Event>, object: &str) -> Vec<String> {
        let of = events
            .iter()
            .filter(|event| event.object.to_string() == object);
        of.map(|event| event.message.clone()).collect()
    }

    #[test]
    fn a_large_group_displaces_its_own_events_only() {
        let mut events: VecDeque<Event> = VecDeque::new();
        events.extend((0..5).map(|n| event("host", n)));
        events.extend((0..3).map(|n| event("vm/other-1", n)));
        events.push_back(event("manifest/a.yaml", 0));
        for n in 0..256 {
            events.extend((0..4).map(|m| event(&format!("vm/web-{n}"), m)));
        }
        events.push_back(event("hostgroup/web", 0));
        let before = events.len();
        drop_excess(&mut events, |event| &event.object, 900, |_| {});
        assert_eq!(events.len(), before - 900);
        assert_eq!(left(&events, "host").len(), 5);
        assert_eq!(left(&events, "vm/other-1").len(), 3);
        assert_eq!(left(&events, "manifest/a.yaml").len(), 1);
        assert_eq!(left(&events, "hostgroup/web").len(), 1);
        assert!(left(&events, "vm/web-0").is_empty(), "the oldest go first");
        assert_eq!(left(&events, "vm/web-255"), ["0", "1", "2", "3"]);
    }

    #[test]
    fn shares_of_the_same_size_lose_as_much_and_exactly_the_excess_is_dropped() {
        for excess in [0, 1, 2, 7, 59, 60] {
            let objects = ["vm/a-1", "vm/b-1", "vm/c-1"];
            let mut events: VecDeque<Event> = (0..20)
                .flat_map(|n| objects.map(|object| event(object, n)))
                .collect();
            drop_excess(&mut events, |event| &event.object, excess, |_| {});
            assert_eq!(events.len(), 60 - excess);
            for object in objects {
                let kept = left(&events, object);
                assert!(
                    kept.len().abs_diff((60 - excess) / 3) <= 1,
                    "{object}: {kept:?}"
                );
                let newest: Vec<String> = (20 - kept.len()..20).map(|n| n.to_string()).collect();
                assert_eq!(kept, newest);
            }
        }
    }
}
