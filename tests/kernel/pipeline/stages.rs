//! Stages: taken from below, left from above, never by a VM that is being deleted.
//! Out of scope: leases.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use slicectl::api::condition::{Condition, Reason, Status};
use slicectl::api::host_group::HostGroup;
use slicectl::api::lease::{Address, Lease};
use slicectl::api::meta::{Timestamp, Uid};
use slicectl::api::network::Block;
use slicectl::api::stage::{STAGES, Stage};
use slicectl::store::{self, Acquisition, HostNetworkStatus, HostRequirements, Store, World};

use test_support::objects::{group, spec, vm};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const RANGE: &str = "169.254.100.0/22";

/// What any task may do to a VM at any moment. Each is one transaction, so every interleaving is a sequence.
#[derive(Clone, Debug)]
enum Step {
    Take(usize, Stage),
    Find(usize, Stage, Status),
    Leave(usize, Stage),
    Delete(usize),
    Edit(usize),
    RemoveIfFree(usize),
    HostNetwork(Status),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_the_interleaving_the_pipeline_keeps_its_laws(steps in prop::collection::vec(step(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(climb_and_fall(steps))?;
    }
}

#[test]
fn what_the_host_network_is_about_to_remove_carries_no_vm() {
    let all = network_status(Status::True);
    let nothing = HostRequirements::default();
    assert_eq!(all.limited_to(&all.applied), None, "all of it is wanted");
    let less = all.limited_to(&nothing).unwrap();
    assert_eq!((&less.applied, &less.obsolete), (&nothing, &all.applied));
    assert!(!less.is_converged(&nothing), "it is still there");
    assert!(all.is_converged(&all.applied) && !all.is_converged(&nothing));
    assert_eq!(less.limited_to(&nothing), None, "once is enough");
}

async fn climb_and_fall(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let uids = three_vms(&store).await;
    for step in steps {
        let before = store.read(|world| uids.map(|uid| Page::of(world, uid)));
        match step {
            Step::Take(n, stage) => take(&store, uids[n], stage, &before[n]).await?,
            Step::Leave(n, stage) => leave(&store, uids[n], stage, &before[n]).await?,
            Step::Find(n, stage, status) => {
                let generation =
                    store.read(|world| world.vm(uids[n]).map_or(1, |vm| vm.meta.generation));
                let found = (status, Reason::Converged, String::new());
                write(&store, |txn| {
                    txn.set_condition(uids[n], stage, found, generation, NOW)
                })
                .await;
            }
            Step::Delete(n) => edit(&store, uids[n], |vm| vm.meta.deleting = true).await,
            Step::Edit(n) => edit(&store, uids[n], |vm| vm.meta.generation += 1).await,
            Step::RemoveIfFree(n) => write(&store, |txn| txn.remove_if_released(uids[n])).await,
            Step::HostNetwork(status) => {
                write(&store, |txn| {
                    txn.put_host_network_status(network_status(status))
                })
                .await
            }
        }
        let after = store.read(|world| uids.map(|uid| Page::of(world, uid)));
        for (before, after) in before.iter().zip(&after) {
            let held = before.held.contains(&true);
            prop_assert!(
                after.there || !before.there || before.deleting,
                "a living VM was removed"
            );
            prop_assert!(
                after.there || !held || before.held.iter().filter(|h| **h).count() == 1,
                "a held VM was removed"
            );
            prop_assert!(before.there || !after.there, "a VM rose from the dead");
        }
    }
    store.close();
    Ok(())
}

async fn take(store: &Store, uid: Uid, stage: Stage, before: &Page) -> Result<(), TestCaseError> {
    let firm = store.read(|world| {
        world
            .host_network_status()
            .is_some_and(|g| g.condition.status == Status::True)
    });
    let forwarding_switch = write(store, |txn| txn.acquire(uid, stage, NOW)).await;
    let held = store.read(|world| world.status(uid, stage).is_some_and(|page| page.acquired));
    let place = stage as usize;
    let below = place == 0 || before.ready[place - 1];
    match forwarding_switch {
        Acquisition::Gone => prop_assert!(!before.there || before.deleting),
        Acquisition::Waiting(why) => {
            prop_assert!(before.there && !before.deleting && !why.is_empty());
            prop_assert!(!below || (stage == Stage::Net && !firm));
        }
        Acquisition::Acquired(vm) => {
            prop_assert!(
                before.there && !before.deleting,
                "a VM that is being deleted took {stage}"
            );
            prop_assert!(
                below && (stage != Stage::Net || firm),
                "{stage} was taken over an open step"
            );
            prop_assert!(held && !vm.meta.deleting);
            return Ok(());
        }
    }
    prop_assert_eq!(
        held,
        before.held[place],
        "a closed gate changes nothing of who holds what"
    );
    Ok(())
}

async fn leave(store: &Store, uid: Uid, stage: Stage, before: &Page) -> Result<(), TestCaseError> {
    let left = write(store, |txn| txn.release(uid, stage, NOW)).await;
    let place = stage as usize;
    let above = before.held[place + 1..].contains(&true);
    prop_assert_eq!(
        left,
        !above,
        "{} was left under a stage that is held",
        stage
    );
    let after = store.read(|world| Page::of(world, uid));
    prop_assert!(!left || !after.held[place]);
    prop_assert!(left || after.held == before.held);
    let last = before.deleting && !after.held.contains(&true);
    prop_assert_eq!(
        after.there,
        before.there && !(last && left),
        "a VM goes with its last stage"
    );
    Ok(())
}

/// What the laws speak of.
struct Page {
    there: bool,
    deleting: bool,
    held: [bool; 4],
    ready: [bool; 4],
}

impl Page {
    fn of(world: &World, uid: Uid) -> Self {
        let vm = world.vm(uid);
        let generation = vm.map_or(0, |vm| vm.meta.generation);
        Self {
            there: vm.is_some(),
            deleting: vm.is_some_and(|vm| vm.meta.deleting),
            held: STAGES.map(|stage| world.status(uid, stage).is_some_and(|page| page.acquired)),
            ready: STAGES.map(|stage| {
                world
                    .status(uid, stage)
                    .is_some_and(|page| page.condition.is_true_at(generation))
            }),
        }
    }
}

async fn three_vms(store: &Store) -> [Uid; 3] {
    let group: HostGroup = group("web", 3, spec(Some(RANGE), ""));
    let vms = [1, 2, 3].map(|index| vm(&group, index));
    let uids = [0, 1, 2].map(|n: usize| vms[n].meta.uid);
    write(store, |txn| {
        txn.put_host_network_status(network_status(Status::True))?;
        for (n, vm) in vms.into_iter().enumerate() {
            let block = Block::around([169, 254, 100, n as u8 * 4].into());
            let (name, pool) = (vm.meta.name.clone(), RANGE.parse().unwrap());
            txn.put_lease(Lease {
                name,
                group: vm.group.clone(),
                address: Address::Isolated { pool, block },
                since: NOW,
            })?;
            txn.put_vm(vm)?;
        }
        txn.put_group(group)
    })
    .await;
    uids
}

fn network_status(status: Status) -> HostNetworkStatus {
    let condition = Condition {
        status,
        reason: Reason::Converged,
        message: String::new(),
        since: NOW,
        observed_generation: 0,
    };
    let carries = HostRequirements {
        pools: [RANGE.parse().unwrap()].into(),
        ..HostRequirements::default()
    };
    HostNetworkStatus {
        condition,
        applied: carries,
        obsolete: HostRequirements::default(),
        boot_id: "boot".into(),
        unenforced: None,
        conflicting_writer: None,
        warnings: Vec::new(),
        drops: Vec::new(),
    }
}

async fn edit(store: &Store, uid: Uid, change: impl FnOnce(&mut slicectl::api::vm::Vm)) {
    write(store, |txn| match txn.world().vm(uid).cloned() {
        None => Ok(()),
        Some(mut vm) => {
            change(&mut vm);
            txn.put_vm(vm)
        }
    })
    .await;
}

async fn write<T>(
    store: &Store,
    change: impl FnOnce(&mut store::Txn<'_>) -> Result<T, store::Error>,
) -> T {
    store.write(change).await.unwrap()
}

fn step() -> impl Strategy<Value = Step> {
    let stage = || prop::sample::select(STAGES.to_vec());
    let status = || prop_oneof![4 => Just(Status::True), 1 => Just(Status::False)];
    prop_oneof![
        6 => (0_usize..3, stage()).prop_map(|(n, stage)| Step::Take(n, stage)),
        6 => (0_usize..3, stage(), status()).prop_map(|(n, stage, status)| Step::Find(n, stage, status)),
        4 => (0_usize..3, stage()).prop_map(|(n, stage)| Step::Leave(n, stage)),
        1 => (0_usize..3).prop_map(Step::Delete),
        1 => (0_usize..3).prop_map(Step::Edit),
        1 => (0_usize..3).prop_map(Step::RemoveIfFree),
        1 => status().prop_map(Step::HostNetwork),
    ]
}
