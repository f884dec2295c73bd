//! A disk that is full: changes that did not become durable are taken back, and those that did are there again.
//! Out of scope: the daemon on a full disk (`tests/e2e/full_disk.rs`).
//!
//! # Why
//! The locks and threads of sled belong to the process, not to the database, and on a full disk they may be lost: so this test has a process
//! of its own.

use std::path::Path;
use std::time::Duration;

use slicectl::api::meta::Name;
use slicectl::reconcile::group::{Claim, Claims};
use slicectl::store::{Change, Error, Pool, Store};
use tokio::sync::broadcast::error::RecvError;

use crate::store::whole::whole;
use test_support::kernel;
use test_support::objects::{group, name, owner, spec};
use test_support::programs::{assert_passes, this_test};

/// Set in the process of the test.
const ALONE: &str = "SLICE_TEST_FULL";

#[test]
fn on_a_full_disk_a_change_is_taken_back_and_nothing_committed_is_lost() {
    if std::env::var_os(ALONE).is_none() {
        let mut test =
            this_test(on_a_full_disk_a_change_is_taken_back_and_nothing_committed_is_lost);
        test.env(ALONE, "1");
        assert_passes(test);
        return;
    }
    kernel::private(async {
        kernel::run("mkdir /run/small && mount -t tmpfs -o size=3m small /run/small");
        let dir = Path::new("/run/small/state");
        let (store, _) = Store::open(dir).unwrap();
        let mut kept: Vec<Name> = Vec::new();
        let claims = Claims::new(Path::new("/run/claims"), owner(dir));
        let pooled = name("pooled");
        let mut changes = store.watch();
        let failed = loop {
            if let Err(error) = choose(&store, &claims, &pooled).await {
                break error;
            }
            let before = whole(&store);
            let next = big(kept.len());
            // With a choice that is given up: its claim goes when that is on the disk, not before.
            let begun = store.begin(|txn| {
                txn.put_group(next.clone())?;
                txn.remove_pool(&pooled)
            });
            let done = match begun {
                Ok(((), durable)) => {
                    claims.release_unused(&store).await;
                    durable.wait().await
                }
                Err(error) => Err(error),
            };
            let claimed = std::fs::read_dir("/run/claims")
                .unwrap()
                .flatten()
                .any(|entry| entry.path().extension().is_some_and(|kind| kind == "json"));
            assert_eq!(claimed, done.is_err(), "{done:?}");
            match done {
                Ok(()) => kept.push(next.meta.name),
                Err(error) => {
                    assert_eq!(whole(&store), before, "the change was not taken back");
                    break error;
                }
            }
            assert!(kept.len() < 1000, "3 MiB hold no 1000 groups of 32 KiB");
        };
        assert!(matches!(failed, Error::Write(_)), "{failed}");
        // The objects that users see contain the reason, which is not stored.
        let is_view = |change: Result<Change, RecvError>| change == Ok(Change::View);
        let viewed = async { while !is_view(changes.recv().await) {} };
        let viewed = tokio::time::timeout(Duration::from_secs(10), viewed).await;
        viewed.expect("watches wake when nothing can be written");
        assert!(store.read_only().is_some());
        assert!(kept.len() > 10, "only {} groups", kept.len());
        // It goes on saying no, or has found room; in no case does it lose a word it gave.
        for n in 0..3 {
            let next = big(2000 + n);
            if store
                .write(|txn| txn.put_group(next.clone()))
                .await
                .map_err(|e: Error| e)
                .is_ok()
            {
                kept.push(next.meta.name);
            }
        }
        let last = whole(&store);
        store.close();
        drop(store);
        kernel::run("mount -o remount,size=64m /run/small");
        let (again, opened) = Store::open(dir).unwrap();
        assert_eq!(whole(&again), last, "{opened:?}");
        again.read(|world| {
            kept.iter()
                .for_each(|name| assert!(world.group(name).is_some(), "{name} is lost"))
        });
        let next = big(5000);
        again
            .write(|txn| txn.put_group(next))
            .await
            .unwrap_or_else(|e: Error| panic!("{e}"));
        again.close();
    });
}

/// Claims a range and stores it.
async fn choose(store: &Store, claims: &Claims, group: &Name) -> Result<(), Error> {
    let range = "169.254.100.0/22".parse().unwrap();
    let _held = claims.hold(vec![Claim::Range(range)]).await.unwrap();
    let pool = Pool {
        range,
        gateway: None,
        in_use: Default::default(),
    };
    store.write(|txn| txn.put_pool(group, pool)).await
}

/// A group of about 32 KiB, of text that does not shrink.
fn big(n: usize) -> slicectl::api::host_group::HostGroup {
    let mut group = group("big", 1, spec(None, ""));
    group.meta.name = name(&format!("big-{n}"));
    let noise: String = (0..32 * 1024_u64)
        .map(|i| {
            char::from(
                b'a' + (i.wrapping_mul(6364136223846793005).wrapping_add(n as u64) >> 33) as u8
                    % 26,
            )
        })
        .collect();
    group.origin = slicectl::api::host_group::Origin::File(noise.into());
    group
}
