//! What a mirror is after lists and changes.
//! Out of scope: etcd.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::fleet::kv::{ClusterId, Header, MemberId, Revision};

const VM: &str = "/slice/v1/vms/00000000-0000-0000-0000-000000000001";

fn header(revision: u64) -> Header {
    Header {
        cluster_id: ClusterId(1),
        member_id: MemberId(1),
        revision: Revision(revision),
        raft_term: 1,
    }
}

fn kv(key: &str, value: &str, revision: u64) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.as_bytes().to_vec(),
        create_revision: Revision(revision),
        mod_revision: Revision(revision),
        version: 1,
        lease: Some(LeaseId(7)),
    }
}

fn written(key: &str, value: &str, revision: u64) -> Event {
    Event::Put {
        kv: kv(key, value, revision),
    }
}

fn deleted(key: &str, revision: u64) -> Event {
    Event::Delete {
        key: key.into(),
        mod_revision: Revision(revision),
    }
}

fn batch(next: u64, events: Vec<Event>) -> Batch {
    Batch {
        header: header(next - 1),
        target: 0,
        next: Revision(next),
        events,
    }
}

fn listed(revision: u64, kvs: Vec<KeyValue>) -> Mirror {
    Mirror::of(&Listing {
        header: header(revision),
        revision: Revision(revision),
        kvs,
    })
}

fn node(text: &str) -> Name {
    Name::new(text).unwrap()
}

const NODE: &str = r#"{"version":1,"unschedulable":true}"#;

#[test]
fn each_key_is_decoded_into_its_kind_and_other_keys_are_ignored() {
    let subnet = r#"{"version":1,"subnet":"10.0.1.0/24","gateway":"10.0.1.1"}"#;
    let mirror = listed(
        9,
        vec![
            kv("/slice/v1/alive/a", "", 2),
            kv("/slice/v1/election", "a", 3),
            kv("/slice/v1/later/a", "{}", 4),
            kv("/slice/v1/nodes/a", NODE, 5),
            kv("/slice/v1/ranges/g/a", subnet, 6),
            kv("/slice/v1/vms/not-a-uid", "{}", 7),
        ],
    );
    assert_eq!(mirror.revision, 9);
    assert_eq!(mirror.alive[&node("a")].value, Some(LeaseId(7)));
    assert_eq!(mirror.election.as_ref().unwrap().value.node, "a");
    let stored = &mirror.nodes[&node("a")];
    assert!(stored.revision == 5 && stored.value.as_ref().unwrap().unschedulable);
    let range = &mirror.ranges[&node("g")][&node("a")].value;
    assert_eq!(range.as_ref().unwrap().gateway.to_string(), "10.0.1.1");
    assert!(mirror.vms.is_empty());
    assert_eq!(mirror.undecodable().count(), 0);
}

#[test]
fn a_value_that_cannot_be_decoded_stays_as_an_error_until_it_is_replaced_or_deleted() {
    let mut mirror = listed(5, vec![kv(VM, "{", 3), kv("/slice/v1/nodes/a", NODE, 4)]);
    assert!(mirror.vms.values().next().unwrap().value.is_err());
    mirror.apply(&batch(
        7,
        vec![written("/slice/v1/nodes/a", r#"{"version":2}"#, 6)],
    ));
    let keys: Vec<String> = mirror
        .undecodable()
        .map(|(key, _)| key.to_string())
        .collect();
    assert_eq!(keys, [VM, "/slice/v1/nodes/a"]);
    mirror.apply(&batch(
        9,
        vec![deleted(VM, 7), written("/slice/v1/nodes/a", NODE, 8)],
    ));
    assert_eq!(mirror.undecodable().count(), 0);
    assert!(mirror.vms.is_empty());
}

#[test]
fn events_that_come_again_have_no_effect() {
    let mut mirror = listed(5, vec![kv("/slice/v1/alive/a", "", 3)]);
    let events = vec![
        deleted("/slice/v1/alive/a", 6),
        written("/slice/v1/nodes/a", NODE, 7),
    ];
    assert!(mirror.apply(&batch(8, events.clone())));
    assert!(mirror.apply(&batch(9, vec![deleted("/slice/v1/nodes/a", 8)])));
    for events in [events, vec![written("/slice/v1/alive/a", "", 4)]] {
        assert!(!mirror.apply(&batch(8, events)));
        assert_eq!(mirror.revision, 8);
        assert!(mirror.alive.is_empty() && mirror.nodes.is_empty());
    }
}

#[test]
fn the_rest_of_a_transaction_that_comes_in_parts_is_applied() {
    let mut mirror = listed(5, Vec::new());
    // A fragment: the next one has the same revision.
    mirror.apply(&batch(6, vec![written("/slice/v1/nodes/a", NODE, 6)]));
    assert_eq!(mirror.revision, 5);
    mirror.apply(&batch(7, vec![written("/slice/v1/nodes/b", NODE, 6)]));
    assert_eq!((mirror.revision, mirror.nodes.len()), (6, 2));
}

#[test]
fn progress_without_events_is_no_change_and_raises_the_revision() {
    let mut mirror = listed(5, Vec::new());
    assert!(!mirror.apply(&batch(12, Vec::new())));
    assert_eq!(mirror.revision, 11);
}

#[test]
fn a_key_that_was_absent_twice_has_the_revision_of_the_last_deletion() {
    let mut mirror = listed(5, vec![kv("/slice/v1/alive/a", "", 3)]);
    mirror.apply(&batch(7, vec![deleted("/slice/v1/alive/a", 6)]));
    assert_eq!(mirror.alive_deleted[&node("a")], 6);
    mirror.apply(&batch(
        9,
        vec![
            written("/slice/v1/alive/a", "", 7),
            deleted("/slice/v1/alive/a", 8),
        ],
    ));
    assert_eq!(mirror.alive_deleted[&node("a")], 8);
}

/// Writes (`Some`) and deletions of some keys, in transactions.
fn history() -> impl Strategy<Value = Vec<Vec<(usize, Option<bool>)>>> {
    let change = (0..KEYS.len(), proptest::option::of(any::<bool>()));
    proptest::collection::vec(proptest::collection::vec(change, 1..4), 1..20)
}

const KEYS: [&str; 5] = [
    "/slice/v1/alive/a",
    "/slice/v1/nodes/a",
    "/slice/v1/nodes/b",
    "/slice/v1/status/a/00000000-0000-0000-0000-000000000001",
    "/slice/v1/election",
];

/// What a mirror has, without what is known only of changes.
fn content(mirror: &Mirror) -> String {
    let Mirror {
        revision,
        nodes,
        alive,
        statuses,
        election,
        ..
    } = mirror;
    format!("{revision} {nodes:?} {alive:?} {statuses:?} {election:?}")
}

proptest! {
    #[test]
    fn a_list_that_was_watched_is_the_list_of_the_end_also_if_batches_come_again(
        history in history(),
        from in 0..20_usize,
        again in proptest::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let mut store: BTreeMap<&str, KeyValue> = BTreeMap::new();
        let mut batches: Vec<Batch> = Vec::new();
        let mut mirror = listed(1, Vec::new());
        for (at, changes) in history.iter().enumerate() {
            let revision = at as u64 + 2;
            let mut events = Vec::new();
            for (key, change) in changes.iter().copied().collect::<BTreeMap<_, _>>() {
                let key = KEYS[key];
                match change {
                    Some(valid) => {
                        let value = if valid { NODE } else { "{" };
                        let created = store.get(key).map_or(revision, |it| it.create_revision.0);
                        let kv = KeyValue {
                            create_revision: Revision(created),
                            ..kv(key, value, revision)
                        };
                        store.insert(key, kv.clone());
                        events.push(Event::Put { kv });
                    }
                    None if store.remove(key).is_some() => events.push(deleted(key, revision)),
                    None => {}
                }
            }
            batches.push(batch(revision + 1, events));
            if at == from {
                mirror = listed(revision, store.values().cloned().collect());
            }
            mirror.apply(&batches[at]);
            mirror.apply(again[at].get(&batches));
            let expected = listed(revision, store.values().cloned().collect());
            prop_assert_eq!(content(&mirror), content(&expected));
        }
    }
}
