//! The store on a disk that refuses writes, or does not answer.
//! Out of scope: a real disk (`tests/kernel/store.rs`, `tests/kernel/store/full.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::failure::Failure;
use super::{Change, Error, Store, Txn, World};
use crate::api::host_group::{HostGroup, HostGroupSpec, Origin, UpdatePolicy};
use crate::api::meta::{Meta, Timestamp, Uid};
use crate::api::network::{IsolatedSpec, NetworkSpec, TapOwner};
use crate::api::policy::Policy;
use crate::api::stage::Stage;
use crate::api::vm::{Hypervisor, Vm, VmSpec};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Longer than any test takes: a wait of this length is a hang.
const LONG: Duration = Duration::from_secs(30);

fn group(name: &str) -> HostGroup {
    HostGroup {
        adopted: false,
        seen_in: None,
        orders: Default::default(),
        meta: Meta::new(name.parse().expect("a name"), NOW),
        origin: Origin::Apply,
        spec: HostGroupSpec {
            count: 1,
            update: UpdatePolicy::Rolling,
            template: VmSpec {
                storage: Default::default(),
                lifecycle: Default::default(),
                guest_access: Default::default(),
                hypervisor: Hypervisor::None,
                vcpu: 1,
                ram_bytes: 128 << 20,
                kernel_file: None,
                initrd_file: None,
                dns_servers: vec![],
                network: NetworkSpec::Isolated(IsolatedSpec {
                    max_connections: None,
                    range: None,
                    policy: Policy::default(),
                    tap_owner: TapOwner::default(),
                }),
            },
        },
    }
}

/// Writes a group with a VM that has acquired its first stage.
fn put_vm(txn: &mut Txn<'_>) -> Result<Uid, Error> {
    let group = group("fleet");
    let name = HostGroup::vm_name(&group.meta.name, 1).expect("a name");
    let vm = Vm {
        on_demand: None,
        power: Default::default(),
        meta: Meta::new(name, NOW),
        group: group.meta.name.clone(),
        index: 1,
        spec: group.spec.template.clone(),
    };
    let uid = vm.meta.uid;
    txn.put_group(group)?;
    txn.put_vm(vm)?;
    txn.adopt_stage(uid, Stage::Lease, NOW)?;
    Ok(uid)
}

fn checkpoint(world: &World, uid: Uid) -> Option<String> {
    world.status(uid, Stage::Lease)?.checkpoint.clone()
}

/// A store with a disk that does not answer until the returned sender is dropped.
fn store_on_silent_disk() -> (Store, Sender<()>) {
    let (release, released) = channel::<()>();
    let write = move |_| {
        let _ = released.recv();
        Ok(())
    };
    let store = Store::with_write(World::default(), write, Duration::from_millis(50));
    (store.expect("a store"), release)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what)
        .await
        .expect("it does not complete")
}

#[tokio::test]
async fn a_vm_whose_stage_status_was_rolled_back_is_reported_though_no_caller_waited() {
    let full = Arc::new(AtomicBool::new(false));
    let write = {
        let full = full.clone();
        move |_| match full.load(Ordering::SeqCst) {
            true => Err(Failure::Refused("the disk is full".to_owned())),
            false => Ok(()),
        }
    };
    let store = Store::with_write(World::default(), write, LONG).expect("a store");
    let uid = store.write(put_vm).await.expect("there is space");
    full.store(true, Ordering::SeqCst);
    let mut changes = store.watch();
    store
        .write_behind(|txn| txn.set_checkpoint(uid, Stage::Lease, Some("new".into())))
        .unwrap_or_else(|e: Error| panic!("{e}"));
    // A stage status alone enqueues nothing; only the rollback reports the VM.
    while soon(changes.recv()).await != Ok(Change::Vm(uid)) {}
    assert_eq!(store.read(|world| checkpoint(world, uid)), None);
    // The disk has free space again, and the store goes on.
    full.store(false, Ordering::SeqCst);
    while store.read_only().is_some() {
        soon(changes.recv()).await.expect("a change");
    }
    soon(store.write(|txn| txn.put_group(group("more"))))
        .await
        .unwrap_or_else(|e: Error| panic!("{e}"));
    store.close();
}

#[tokio::test]
async fn a_disk_that_does_not_answer_makes_no_caller_wait_for_ever() {
    let (store, _hold) = store_on_silent_disk();
    let first = store.write(put_vm);
    let behind = store.write(|txn| txn.put_group(group("behind")));
    let (first, behind) = soon(async { tokio::join!(first, behind) }).await;
    assert!(matches!(first, Err(Error::Stuck)), "{first:?}");
    assert!(matches!(behind, Err(Error::Stuck)), "{behind:?}");
    soon(store.stuck()).await;
    store.read(|world| {
        assert_eq!(world.vms().count(), 0, "the change was not rolled back");
        assert_eq!(world.groups().count(), 0);
    });
    let mut changes = store.watch();
    let later = store.begin(|txn| txn.put_group(group("later")));
    let refused = later.map(drop).expect_err("it cannot be stored");
    assert_eq!(
        Error::to_string(&refused),
        "the state database does not answer; restart sliced"
    );
    assert_eq!(store.read(|world| world.groups().count()), 0);
    assert!(changes.try_recv().is_err(), "nothing changed");
    // The disk still does not answer.
    soon(close(&store)).await;
    let later = store.write_behind(|txn| txn.put_group(group("later")));
    assert!(matches!(later, Err(Error::Stuck)), "{later:?}");
}

#[tokio::test]
async fn a_disk_whose_thread_panicked_counts_as_one_that_does_not_answer() {
    let write = |_| panic!("as sled does over some damage");
    let store = Store::with_write(World::default(), write, LONG).expect("a store");
    let result = soon(store.write(|txn| txn.put_group(group("fleet")))).await;
    assert!(matches!(result, Err(Error::Stuck)), "{result:?}");
    soon(store.stuck()).await;
    soon(close(&store)).await;
}

#[tokio::test]
async fn a_database_that_does_not_close_is_abandoned() {
    struct Slow(Arc<AtomicBool>, std::sync::mpsc::Receiver<()>);
    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.1.recv();
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (_hold, released) = channel::<()>();
    let closed = Arc::new(AtomicBool::new(false));
    let slow = Slow(closed.clone(), released);
    let write = move |_| {
        let _database = &slow;
        Ok(())
    };
    let store =
        Store::with_write(World::default(), write, Duration::from_millis(50)).expect("a store");
    soon(store.write(|txn| txn.put_group(group("fleet"))))
        .await
        .unwrap_or_else(|e: Error| panic!("{e}"));
    soon(close(&store)).await;
    assert!(!closed.load(Ordering::SeqCst), "it is still closing");
}

#[tokio::test]
async fn a_change_to_a_closed_store_is_refused_and_leaves_no_trace() {
    let store = Store::with_write(World::default(), |_| Ok(()), LONG).expect("a store");
    store.close();
    let result = store.write_behind(|txn| txn.put_group(group("late")));
    assert!(matches!(result, Err(Error::Write(_))), "{result:?}");
    assert_eq!(store.read(|world| world.groups().count()), 0);
}

/// A store with a disk that completes one batch for each result that is sent.
fn store_on_slow_disk() -> (Store, Sender<Result<(), Failure>>) {
    let (complete, results) = channel();
    let write = move |_| results.recv().unwrap_or(Ok(()));
    let store = Store::with_write(World::default(), write, LONG);
    (store.expect("a store"), complete)
}

/// Asserts that a future is not complete after a moment.
async fn waits<T>(what: &mut (impl Future<Output = T> + Unpin)) {
    let early = tokio::time::timeout(Duration::from_millis(40), what).await;
    assert!(early.is_err(), "it did not wait for the disk");
}

#[tokio::test]
async fn changes_of_other_writers_are_returned_and_acted_on_when_the_disk_has_them() {
    let (store, complete) = store_on_slow_disk();
    let (uid, first) = store.begin(put_vm).map_err(|e: Error| e).expect("begun");
    let same = store.write(|txn| match txn.world().vm(uid) {
        Some(_) => Ok::<_, Error>("unchanged"),
        None => Err(Error::Write("it was not seen".into())),
    });
    let mut same = Box::pin(same);
    let mut read = Box::pin(store.read_durable(|world| world.vms().count()));
    let mut act = Box::pin(store.durable(&[Change::Vm(uid)]).wait());
    let other = store.durable(&[Change::Vm(Uid::random())]).wait();
    soon(other).await.expect("nothing is pending for it");
    waits(&mut same).await;
    waits(&mut read).await;
    waits(&mut act).await;
    complete.send(Ok(())).expect("the disk is there");
    assert!(matches!(soon(same).await, Ok("unchanged")));
    assert_eq!(soon(read).await, 1);
    soon(act).await.expect("it is on the disk");
    soon(first.wait()).await.expect("it is on the disk");
    // Nothing is pending: no caller waits, and nothing is sent to the disk.
    soon(store.write(|_| Ok::<_, Error>(())))
        .await
        .expect("there");
    assert_eq!(
        soon(store.read_durable(|world| world.vms().count())).await,
        1
    );
}

#[tokio::test]
async fn changes_that_were_rolled_back_are_neither_returned_nor_acted_on() {
    let (store, complete) = store_on_slow_disk();
    let (uid, _) = store.begin(put_vm).map_err(|e: Error| e).expect("begun");
    let same = store.write(|_| Ok::<_, Error>(()));
    let read = store.read_durable(|world| world.vms().count());
    let act = store.durable(&[Change::Vm(uid)]).wait();
    let behind = store.write_behind(|txn| txn.put_group(group("behind")));
    behind.unwrap_or_else(|e: Error| panic!("{e}"));
    let refuse = async {
        complete
            .send(Err(Failure::Refused("full".into())))
            .expect("the disk is there");
    };
    let (same, read, act, ()) = soon(async { tokio::join!(same, read, act, refuse) }).await;
    assert!(matches!(same, Err(Error::Write(_))), "{same:?}");
    assert!(matches!(act, Err(Error::Write(_))), "{act:?}");
    assert_eq!(
        read, 0,
        "the world was rolled back to the content of the disk"
    );
}

/// It fails as long as the disk is full: whoever waited for it would fail with it.
#[tokio::test]
async fn while_the_disk_is_full_an_intent_is_refused_at_once_and_nothing_waits_for_it() {
    let (store, complete) = store_on_slow_disk();
    complete
        .send(Err(Failure::Refused("full".into())))
        .expect("the disk is there");
    let first = soon(store.write(put_vm)).await;
    assert!(matches!(first, Err(Error::Write(_))), "{first:?}");
    // From here on the disk does not answer.
    let mut changes = store.watch();
    for name in ["one", "two"] {
        let refused = store.begin(|txn| txn.put_group(group(name)));
        let refused = refused.map(drop).expect_err("it cannot be stored");
        assert_eq!(
            Error::to_string(&refused),
            Error::to_string(&Error::Write("full".into()))
        );
    }
    while let Ok(change) = changes.try_recv() {
        // That the disk is full is reported after the first caller has its answer.
        let why = "a caller that runs again for its own change never ends";
        assert_eq!(change, Change::View, "{why}");
    }
    // What a repair does: it waits for all earlier changes, and stores what it has observed.
    soon(store.write(|_| Ok::<_, Error>(())))
        .await
        .expect("nothing is pending");
    soon(store.write_observation(put_vm))
        .await
        .unwrap_or_else(|e: Error| panic!("{e}"));
    assert_eq!(
        soon(store.read_durable(|world| (world.vms().count(), world.groups().count()))).await,
        (1, 1)
    );
    complete.send(Ok(())).expect("the disk is there");
    while store.read_only().is_some() {
        soon(changes.recv()).await.expect("a change");
    }
    complete.send(Ok(())).expect("the disk is there");
    soon(store.write(|txn| txn.put_group(group("one"))))
        .await
        .unwrap_or_else(|e: Error| panic!("{e}"));
}

#[tokio::test]
async fn a_disk_that_lost_accepted_data_gets_no_more_batches() {
    let (store, complete) = store_on_slow_disk();
    complete
        .send(Err(Failure::Unknown("EIO".into())))
        .expect("the disk is there");
    let result = soon(store.write(put_vm)).await;
    assert!(matches!(result, Err(Error::Stuck)), "{result:?}");
    soon(store.stuck()).await;
    // A second fdatasync would succeed, although the data is lost.
    complete.send(Ok(())).ok();
    let again = soon(store.write(put_vm)).await;
    assert!(matches!(again, Err(Error::Stuck)), "{again:?}");
}

async fn close(store: &Store) {
    let store = store.clone();
    let closed = tokio::task::spawn_blocking(move || store.close());
    closed.await.expect("no panic");
}

#[tokio::test]
async fn a_dry_run_is_rolled_back_whole_and_the_next_one_or_the_real_one_gives_the_same() {
    let store = Store::with_write(World::default(), |_| Ok(()), LONG).expect("a store");
    let range: ipnetwork::Ipv4Network = "169.254.100.0/24".parse().expect("a range");
    let pool = super::Pool {
        range,
        gateway: None,
        in_use: Default::default(),
    };
    let ids = crate::api::vmm_ids::IdRange::default();
    let change = |txn: &mut Txn<'_>| {
        let uid = put_vm(txn)?;
        let vm = txn.world().vm(uid).cloned().expect("a VM");
        txn.put_pool(&vm.group, pool.clone())?;
        let lease = txn.lease(&vm, NOW).expect("a lease").expect("a block");
        let user = txn.assign_vmm_id(uid, &ids, 100_000, |_| false)?;
        Ok::<_, Error>((lease.address, user))
    };
    let mut changes = store.watch();
    let foreseen = store.dry_run(change).expect("what would be stored");
    assert_eq!(store.dry_run(change).expect("the same"), foreseen);
    store.read(|world| {
        assert_eq!(world.vms().count(), 0);
        assert_eq!(world.groups().count(), 0);
        assert_eq!(world.pools().count(), 0);
        assert_eq!(world.leases().count(), 0);
        assert!(world.vmm_users().is_empty());
        assert_eq!(world.host_requirements(), Default::default());
    });
    assert!(changes.try_recv().is_err(), "no change is reported");
    let done = store.write(change).await.expect("there is space");
    assert_eq!(done, foreseen);
}
