//! Leases: unique under any interleaving, kept by name, never moved under a VM that exists.
//! Out of scope: which range a group gets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use slicectl::api::host_group::HostGroup;
use slicectl::api::lease::Lease;
use slicectl::api::meta::{Name, Timestamp, Uid};
use slicectl::api::network::Block;
use slicectl::api::pool;
use slicectl::api::stage::Stage;
use slicectl::store::{self, LeaseError, Pool, Store};

use test_support::objects::{group, spec, vm};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const A_MOMENT: Duration = Duration::from_millis(1);
/// Eight blocks.
const RANGE: &str = "169.254.100.0/27";
const OTHER: &str = "169.254.104.0/27";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_lease_and_release_at_once_never_share_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let (store, group) = one_group(dir.path()).await;
    let tasks: Vec<_> = (1..=12_u32)
        .map(|index| {
            let (store, vm) = (store.clone(), vm(&group, index));
            tokio::spawn(async move {
                let mut had = 0;
                while had < 10 {
                    match store.write(|txn| txn.lease(&vm, NOW)).await {
                        Ok(lease) => {
                            let lease = lease.unwrap();
                            had += 1;
                            let same = |other: &&Lease| other.address == lease.address;
                            assert_eq!(store.read(|world| world.leases().filter(same).count()), 1);
                            store
                                .write(|txn| txn.remove_lease(&lease.name))
                                .await
                                .unwrap();
                        }
                        Err(LeaseError::NoBlock(_)) => tokio::time::sleep(A_MOMENT).await,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        let done = tokio::time::timeout(Duration::from_secs(60), task).await;
        done.expect("somebody never got a block").unwrap();
    }
    assert_eq!(store.read(|world| world.leases().count()), 0);
    store.close();
}

#[tokio::test]
async fn a_full_range_reports_it_and_has_room_again_when_a_block_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let (store, group) = one_group(dir.path()).await;
    let blocks = pool::capacity(RANGE.parse().unwrap());
    for index in 1..=blocks {
        store
            .write(|txn| txn.lease(&vm(&group, index), NOW))
            .await
            .unwrap();
    }
    let last = vm(&group, blocks + 1);
    let full = store.write(|txn| txn.lease(&last, NOW)).await.unwrap_err();
    assert_eq!(full.to_string(), format!("no free /30 is left in {RANGE}"));
    let freed = vm(&group, 3).meta.name;
    let block = store.read(|world| world.lease(&freed).unwrap().address.clone());
    store.write(|txn| txn.remove_lease(&freed)).await.unwrap();
    let lease = store.write(|txn| txn.lease(&last, NOW)).await.unwrap();
    assert_eq!(lease.unwrap().address, block);
    store.close();
}

#[tokio::test]
async fn a_replaced_vm_finds_the_block_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (store, group) = one_group(dir.path()).await;
    let (old, new) = (vm(&group, 1), vm(&group, 1));
    assert_ne!(old.meta.uid, new.meta.uid);
    let before = store.write(|txn| txn.lease(&old, NOW)).await.unwrap();
    store
        .write(|txn| txn.lease(&vm(&group, 2), NOW))
        .await
        .unwrap();
    let after = store.write(|txn| txn.lease(&new, NOW)).await.unwrap();
    assert_eq!(after, before);
    store.close();
}

#[tokio::test]
async fn a_lease_moves_to_a_new_range_only_when_nothing_uses_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, group) = one_group(dir.path()).await;
    let existing = vm(&group, 1);
    let before = store.write(|txn| txn.lease(&existing, NOW)).await.unwrap();
    store
        .write(|txn| {
            txn.put_vm(existing.clone())?;
            txn.adopt_stage(existing.meta.uid, Stage::Net, NOW)?;
            txn.put_pool(&group.meta.name, pool_of(OTHER))
        })
        .await
        .unwrap();
    let kept = store.write(|txn| txn.lease(&existing, NOW)).await.unwrap();
    assert_eq!(kept, before, "a lease moved under a VM that stands");
    let replaced = store
        .write(|txn| txn.lease(&vm(&group, 1), NOW))
        .await
        .unwrap();
    assert_eq!(replaced.unwrap().address.range().to_string(), OTHER);
    store.close();
}

#[tokio::test]
async fn a_block_that_the_host_uses_itself_is_never_leased() {
    let dir = tempfile::tempdir().unwrap();
    let (store, group) = one_group(dir.path()).await;
    let used: BTreeSet<Block> = pool::blocks(RANGE.parse().unwrap()).step_by(2).collect();
    let pool = Pool {
        range: RANGE.parse().unwrap(),
        gateway: None,
        in_use: used.iter().map(|block| block.network()).collect(),
    };
    store
        .write(|txn| txn.put_pool(&group.meta.name, pool))
        .await
        .unwrap();
    for index in 1..=4 {
        let lease = store
            .write(|txn| txn.lease(&vm(&group, index), NOW))
            .await
            .unwrap();
        assert!(!used.contains(&lease.unwrap().address.block().unwrap()));
    }
    assert!(
        store
            .write(|txn| txn.lease(&vm(&group, 5), NOW))
            .await
            .is_err()
    );
    store.close();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Leases, releases, changes of range and VMs that come to stand, in any order; also over a restart.
    #[test]
    fn no_block_is_ever_leased_twice(steps in prop::collection::vec((0_u8..6, 1_u32..10), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(lease_at_random(steps))?;
    }
}

async fn lease_at_random(steps: Vec<(u8, u32)>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, group) = one_group(dir.path()).await;
    let vms: BTreeMap<u32, _> = (1..10).map(|index| (index, vm(&group, index))).collect();
    let mut existing: BTreeSet<Uid> = BTreeSet::new();
    for (what, index) in steps {
        let vm = &vms[&index];
        let before = leases(&store);
        match what {
            0..=2 => drop(store.write(|txn| txn.lease(vm, NOW)).await),
            3 if !existing.contains(&vm.meta.uid) => store
                .write(|txn| txn.remove_lease(&vm.meta.name))
                .await
                .unwrap(),
            4 if before.contains_key(&vm.meta.name) => {
                store
                    .write(|txn| {
                        txn.put_vm(vm.clone())
                            .and_then(|()| txn.adopt_stage(vm.meta.uid, Stage::Net, NOW))
                    })
                    .await
                    .unwrap();
                existing.insert(vm.meta.uid);
            }
            5 => {
                let range = if index % 2 == 0 { RANGE } else { OTHER };
                store
                    .write(|txn| txn.put_pool(&group.meta.name, pool_of(range)))
                    .await
                    .unwrap();
                store.close();
                store = Store::open(dir.path()).unwrap().0;
                prop_assert_eq!(&leases(&store), &before);
            }
            _ => {}
        }
        let after = leases(&store);
        let blocks: BTreeSet<&Block> = after.values().collect();
        prop_assert_eq!(blocks.len(), after.len(), "two names have one block");
        for vm in vms.values().filter(|vm| existing.contains(&vm.meta.uid)) {
            prop_assert_eq!(
                after.get(&vm.meta.name),
                before.get(&vm.meta.name).or(after.get(&vm.meta.name))
            );
        }
    }
    store.close();
    Ok(())
}

fn leases(store: &Store) -> BTreeMap<Name, Block> {
    store.read(|world| {
        world
            .leases()
            .map(|lease| (lease.name.clone(), lease.address.block().unwrap()))
            .collect()
    })
}

async fn one_group(dir: &std::path::Path) -> (Store, HostGroup) {
    let (store, _) = Store::open(dir).unwrap();
    let group = group("web", 8, spec(Some(RANGE), ""));
    store
        .write(|txn| {
            txn.put_group(group.clone())?;
            txn.put_pool(&group.meta.name, pool_of(RANGE))
        })
        .await
        .map_err(|error: store::Error| error)
        .unwrap();
    (store, group)
}

fn pool_of(range: &str) -> Pool {
    Pool {
        range: range.parse().unwrap(),
        gateway: None,
        in_use: BTreeSet::new(),
    }
}
