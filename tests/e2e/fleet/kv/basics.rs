//! Keys, lists, transactions and leases of a cluster that works.
//! Out of scope: watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slicectl::fleet::kv::{
    Compare, Error, EtcdKey, LeaseId, Op, OpResult, Relation, Revision, Txn,
};
use test_support::kernel;

use super::super::lab::{Lab, PATIENCE};
use super::{PAGE, VM, compare_and_put, put};

#[test]
fn keys_are_written_read_listed_and_deleted() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        assert_eq!(client.get(VM).await.unwrap().1, None);
        let bytes: Vec<u8> = (0..=255).collect();
        let first = client.put(VM, bytes.clone(), None).await.unwrap();
        let second = client.put(VM, "2", None).await.unwrap();
        assert_eq!(second.revision, first.revision.next());
        assert_eq!(second.cluster_id, first.cluster_id);
        let (header, found) = client.get(VM).await.unwrap();
        let found = found.unwrap();
        assert_eq!((found.value.as_slice(), found.version), (&b"2"[..], 2));
        assert_eq!(
            (found.create_revision, found.mod_revision),
            (first.revision, second.revision)
        );
        assert_eq!(header.revision, second.revision);
        assert_eq!(found.key, EtcdKey::from(VM));
        let before = client
            .range("/slice/v1/vms/", Some(first.revision), PAGE)
            .await
            .unwrap();
        assert_eq!(before.kvs[0].value, bytes);
        assert!(client.delete(VM).await.unwrap().1);
        assert!(!client.delete(VM).await.unwrap().1);
        let empty = client.range("/slice/v1/vms/", None, PAGE).await.unwrap();
        assert_eq!(empty.kvs, []);
        // A prefix is no other key that begins in the same way, and the last key of a range is in it.
        for key in [
            "/slice/v1/vms",
            "/slice/v1/vms/",
            "/slice/v1/vms/\u{7f}",
            "/slice/v1/vms0",
        ] {
            client.put(key, "", None).await.unwrap();
        }
        let listing = client.range("/slice/v1/vms/", None, PAGE).await.unwrap();
        let keys: Vec<_> = listing.kvs.iter().map(|kv| kv.key.to_string()).collect();
        assert_eq!(keys, ["/slice/v1/vms/", "/slice/v1/vms/\\x7f"]);
        // Refused by etcd, and before that by its gateway.
        for size in [1_700_000, 2 << 20] {
            let huge = client.put(VM, vec![b'x'; size], None).await.unwrap_err();
            assert!(matches!(huge, Error::Invalid { .. }), "{huge}");
        }
        let ahead = client
            .range("/slice/v1/", Some(Revision(9_999)), PAGE)
            .await
            .unwrap_err();
        assert!(matches!(ahead, Error::FutureRevision { .. }), "{ahead}");
    });
}

#[test]
fn a_list_of_more_bytes_than_one_answer_may_have_is_complete() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        for number in 0..24 {
            let key = format!("/slice/v1/vms/{number:02}");
            client
                .put(key.as_str(), vec![number; 1_000_000], None)
                .await
                .unwrap();
        }
        let listing = client.range("/slice/v1/", None, PAGE).await.unwrap();
        let sizes = listing.kvs.iter().map(|kv| (kv.value[0], kv.value.len()));
        assert!(sizes.eq((0..24).map(|number| (number, 1_000_000))));
    });
}

#[test]
fn a_transaction_is_applied_if_all_compares_hold() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let created = client.put(VM, "1", None).await.unwrap().revision;
        let changed = client.put(VM, "2", None).await.unwrap().revision;
        let (equal, not) = (Relation::Equal, Relation::NotEqual);
        let (less, greater) = (Relation::Less, Relation::Greater);
        let absent = "/slice/v1/vms/absent";
        for (compare, expected) in [
            (Compare::mod_revision(VM, equal, changed), true),
            (Compare::mod_revision(VM, equal, created), false),
            (Compare::mod_revision(VM, greater, created), true),
            (Compare::unchanged(VM, changed), true),
            (Compare::unchanged(absent, Revision(0)), true),
            (Compare::create_revision(VM, equal, created), true),
            (Compare::create_revision(VM, not, created), false),
            (Compare::create_revision(absent, equal, Revision(0)), true),
            (Compare::version(VM, equal, 2), true),
            (Compare::version(VM, less, 2), false),
            (Compare::version(VM, less, 3), true),
            (Compare::absent(VM), false),
            (Compare::absent(absent), true),
        ] {
            let txn = Txn {
                compares: vec![compare.clone()],
                then: Vec::new(),
                otherwise: vec![Op::Get(VM.into())],
            };
            let done = client.txn(&txn).await.unwrap();
            assert_eq!(done.succeeded, expected, "{compare:?}");
            assert_eq!(done.results.len(), usize::from(!expected));
        }
        let txn = Txn {
            compares: vec![Compare::absent(absent), Compare::unchanged(VM, changed)],
            then: vec![
                put(absent, 1),
                Op::Delete(VM.into()),
                Op::Get(VM.into()),
                Op::Get(absent.into()),
            ],
            otherwise: Vec::new(),
        };
        let done = client.txn(&txn).await.unwrap();
        let [
            OpResult::Put,
            OpResult::Deleted(true),
            OpResult::Found(None),
            OpResult::Found(Some(kv)),
        ] = &done.results[..]
        else {
            panic!("{done:?}");
        };
        assert_eq!(
            (kv.value.as_slice(), kv.mod_revision),
            (&b"1"[..], done.header.revision)
        );
        assert!(!client.txn(&txn).await.unwrap().succeeded);
    });
}

#[test]
fn a_transaction_with_128_operations_is_accepted_and_with_more_is_refused_before_it_is_sent() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let ops = |count: u32| (0..count).map(|n| put(format!("/slice/v1/vms/{n}").as_str(), n));
        let txn = |count| Txn {
            then: ops(count).collect(),
            ..Txn::default()
        };
        let done = client.txn(&txn(128)).await.unwrap();
        assert_eq!(done.results, vec![OpResult::Put; 128]);
        let error = client.txn(&txn(129)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "a transaction has 129 operations; etcd accepts 128"
        );
        let compares = vec![Compare::absent(VM); 129];
        let error = client
            .txn(&Txn {
                compares,
                ..Txn::default()
            })
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "a transaction has 129 compares; etcd accepts 128"
        );
        // The same key twice.
        let twice = Txn {
            then: vec![put(VM, 1), put(VM, 2)],
            ..Txn::default()
        };
        let error = client.txn(&twice).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    });
}

#[test]
fn of_eight_clients_that_write_at_once_exactly_one_wins() {
    kernel::private(async {
        let lab = Lab::start();
        let clients: Vec<_> = (0..8).map(|_| lab.client("control")).collect();
        let mut revision = Revision(0);
        for round in 0..25 {
            let writes = clients.iter().enumerate().map(|(who, client)| {
                compare_and_put(client, VM, revision, format!("{round}-{who}"))
            });
            let done = futures::future::join_all(writes).await;
            let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
            let winners: Vec<_> = (0..8).filter(|who| done[*who].is_some()).collect();
            let [winner] = winners[..] else {
                panic!("{done:?}");
            };
            revision = done[winner].unwrap();
            let found = clients[0].get(VM).await.unwrap().1.unwrap();
            assert_eq!(found.value, format!("{round}-{winner}").into_bytes());
            assert_eq!(found.mod_revision, revision);
        }
    });
}

#[test]
fn a_list_in_pages_is_of_one_revision_while_keys_are_written() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("control");
        let key = |number: usize| format!("/slice/v1/vms/{number:03}");
        // Each write changes the first and the last key, and exchanges a key in between for another.
        let is_over = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn({
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            async move {
                let mut round = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let then = vec![
                        put(key(0).as_str(), round),
                        put(key(999).as_str(), round),
                        put(key(1 + (round + 1) % 40).as_str(), round),
                        Op::Delete(key(1 + round % 40).as_str().into()),
                    ];
                    client
                        .txn(&Txn {
                            then,
                            ..Txn::default()
                        })
                        .await
                        .unwrap();
                    round += 1;
                }
                round
            }
        });
        for number in 50..60 {
            client.put(key(number).as_str(), "", None).await.unwrap();
        }
        for _ in 0..40 {
            let page = std::num::NonZeroU32::new(2).unwrap();
            let listing = client.range("/slice/v1/vms/", None, page).await.unwrap();
            assert_eq!(listing.kvs.len(), 13, "at {}", listing.revision);
            assert_eq!(listing.kvs[0].value, listing.kvs[12].value);
            assert!(
                listing
                    .kvs
                    .iter()
                    .all(|kv| kv.mod_revision <= listing.revision)
            );
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(writer.await.unwrap() > 40);
    });
}

#[test]
fn keys_end_with_their_lease() {
    kernel::private(async {
        let lab = Lab::start();
        let client = lab.client("node-a");
        let alive = "/slice/v1/alive/node-a";
        let lease = client.grant(Duration::from_millis(1500)).await.unwrap();
        assert_eq!(lease.ttl, Duration::from_secs(2));
        client.put(alive, "", Some(lease.id)).await.unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            let (_, remaining) = client.keep_alive(lease.id).await.unwrap();
            assert_eq!(remaining, Some(lease.ttl));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let found = client.get(alive).await.unwrap().1.unwrap();
        assert_eq!(found.lease, Some(lease.id));
        let begin = Instant::now();
        while client.get(alive).await.unwrap().1.is_some() {
            assert!(begin.elapsed() < PATIENCE, "the key stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            begin.elapsed() > Duration::from_millis(500),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(client.keep_alive(lease.id).await.unwrap().1, None);
        let error = client.put(alive, "", Some(lease.id)).await.unwrap_err();
        assert!(
            matches!(error, Error::LeaseNotFound { lease: Some(id), .. } if id == lease.id),
            "{error}"
        );
        let lease = client.grant(Duration::from_secs(60)).await.unwrap();
        client.put(alive, "", Some(lease.id)).await.unwrap();
        assert!(client.revoke(lease.id).await.unwrap().is_some());
        assert_eq!(client.get(alive).await.unwrap().1, None);
        assert_eq!(client.revoke(lease.id).await.unwrap(), None);
        assert_eq!(client.revoke(LeaseId(1)).await.unwrap(), None);
    });
}
