//! The steps of a plan in a store, what the agent reads of it, and the amounts of the node.
//! Out of scope: which steps ([`crate::fleet::node`]); etcd and running VMs (`tests/e2e/fleet/daemons`).

mod fence_file;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::available::{self, Files, HostFacts};
use super::execute::execute;
use super::local::Local;
use crate::api::fleet::StopTimes;
use crate::api::host_group::{HostGroupSpec, Origin, UpdatePolicy};
use crate::api::manifest::{Source, parse};
use crate::api::meta::{Meta, Name, Timestamp, Uid};
use crate::api::on_demand::OnDemand;
use crate::api::stage::Stage;
use crate::api::vm::{Power, Vm};
use crate::fleet::node::{LocalVm, RemoveCause, Run, Step, StopCause};
use crate::store::{Error, Store};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn uid(number: u128) -> Uid {
    Uid(uuid::Uuid::from_u128(number))
}

/// The copy of the group `web` with this much memory.
fn spec(ram_mb: u32) -> HostGroupSpec {
    let text = format!(
        "config: {{host_groups: [{{name: web, count: 0, vcpu: 2, ram_mb: {ram_mb}, hypervisor: qemu, kernel_file: /vmlinuz, image: /image, network: {{mode: isolated}}}}]}}"
    );
    let source = Source {
        name: "web.yaml".to_owned(),
        text,
    };
    let groups = parse(&source).expect("a manifest");
    HostGroupSpec {
        update: UpdatePolicy::OnDelete,
        ..groups[0].spec.clone()
    }
}

fn put_group(generation: u64, ram_mb: u32) -> Step {
    Step::PutGroup {
        name: name("web"),
        uid: uid(100),
        generation,
        spec: Box::new(spec(ram_mb)),
    }
}

fn vm(index: u32) -> LocalVm {
    LocalVm {
        uid: uid(index.into()),
        name: name(&format!("web-{index}")),
        group: name("web"),
        group_uid: uid(100),
        index,
        epoch: 3,
        group_generation: 1,
        stop: Some(StopTimes {
            after: Duration::from_secs(60),
            within: Duration::from_secs(65),
        }),
        run: Run::NotReady,
        address: None,
        message: None,
    }
}

fn add(index: u32) -> Step {
    Step::AddVm {
        vm: Box::new(vm(index)),
    }
}

async fn run(store: &Store, steps: &[Step]) {
    let done = store
        .write(|txn| execute(txn, &name("n1"), steps, NOW))
        .await;
    let done: Result<(), Error> = done;
    done.expect("stored");
}

fn local(store: &Store) -> Local {
    store.read(Local::of)
}

/// What the group's reconciler does: the VM of an entry exists, and has acquired a stage.
async fn create(store: &Store, index: u32) -> Uid {
    let created = store.write(|txn| {
        let group = txn.world().group(&name("web")).cloned().expect("the group");
        let entry = group.orders[&index].clone();
        let vm = Vm {
            meta: Meta::new(entry.name, NOW),
            group: name("web"),
            index,
            spec: group.spec.template.clone(),
            power: Power::default(),
            on_demand: Some(Box::new(OnDemand {
                overrides: entry.overrides,
                template: group.spec.template,
                fleet: entry.fleet,
            })),
        };
        let uid = vm.meta.uid;
        txn.put_vm(vm)?;
        txn.adopt_stage(uid, Stage::Lease, NOW)?;
        Ok::<_, Error>(uid)
    });
    created.await.expect("stored")
}

/// An empty store in a directory.
fn open(dir: &Path) -> Store {
    Store::open(dir).expect("a store").0
}

#[tokio::test]
async fn what_the_steps_store_is_what_the_next_plan_and_the_next_daemon_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let refuse = Step::RefuseVm {
        uid: uid(9),
        epoch: 4,
        reason: "it is full".to_owned(),
    };
    run(&store, &[put_group(1, 128), add(1), add(2), refuse]).await;
    let group = store.read(|world| world.group(&name("web")).cloned());
    let origin = Origin::Fleet {
        uid: uid(100),
        generation: 1,
    };
    assert_eq!(group.expect("the group").origin, origin);
    let stored = local(&store);
    assert_eq!(
        stored.vms,
        BTreeMap::from([1, 2].map(|n| (uid(n.into()), vm(n))))
    );
    assert_eq!(stored.groups[0].generation, 1);
    assert_eq!(stored.refusals[&uid(9)].reason, "it is full");
    assert!(stored.other_groups.is_empty() && stored.other_vms.is_empty());
    create(&store, 1).await;
    assert_eq!(local(&store).vms, stored.vms, "it is not Ready yet");
    store.close();
    let store = open(dir.path());
    assert_eq!(local(&store).vms, stored.vms);
    assert_eq!(local(&store).refusals, stored.refusals);
    run(&store, &[Step::ForgetRefusal { uid: uid(9) }]).await;
    assert!(local(&store).refusals.is_empty());
    store.close();
}

#[tokio::test]
async fn a_vm_is_stopped_started_updated_and_removed_with_its_entry() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    run(&store, &[put_group(1, 128), add(1), add(2)]).await;
    let first = create(&store, 1).await;
    let power = |uid| store.read(|world| world.vm(uid).map(|vm| (vm.power, vm.meta.generation)));
    let cause = StopCause::NoContact;
    run(&store, &[Step::StopVm { uid: uid(1), cause }]).await;
    assert_eq!(power(first), Some((Power::Running, 2)));
    assert_eq!(local(&store).vms[&uid(1)].run, Run::Stopped);
    run(&store, &[Step::StartVm { uid: uid(1) }]).await;
    assert_eq!(power(first), Some((Power::Running, 3)));
    assert_eq!(local(&store).vms[&uid(1)].run, Run::NotReady);
    // The epoch alone: the VM runs on.
    let update = |epoch, group_generation| Step::UpdateVm {
        uid: uid(1),
        epoch,
        group_generation,
        stop: None,
    };
    run(&store, &[update(5, 1)]).await;
    let found = local(&store).vms[&uid(1)].clone();
    assert_eq!((found.epoch, found.stop), (5, None));
    assert_eq!(power(first), Some((Power::Running, 4)));
    // A template that a running VM cannot get. As long as the scheduler does not update the VM, it runs on: another one was updated.
    let is_deleting = |uid| store.read(|world| world.vm(uid).map(|vm| vm.meta.deleting));
    for update in [update(6, 1), update(5, 1)] {
        run(&store, &[put_group(2, 256), update]).await;
        assert_eq!(is_deleting(first), Some(false));
    }
    // It is updated: it is deleted, and its entry stays.
    run(&store, &[update(5, 2)]).await;
    assert_eq!(is_deleting(first), Some(true));
    let found = local(&store).vms[&uid(1)].clone();
    assert_eq!((found.run, found.group_generation), (Run::NotReady, 2));
    let cause = RemoveCause::Superseded {
        epoch: 6,
        delete_disk: false,
    };
    let removed = [1, 2].map(|n| Step::RemoveVm {
        uid: uid(n),
        cause: cause.clone(),
    });
    run(&store, &removed).await;
    let left = local(&store).vms;
    assert_eq!(left.keys().collect::<Vec<_>>(), [&uid(1)], "2 had no VM");
    assert_eq!(left[&uid(1)].run, Run::Deleting);
    run(&store, &[Step::RemoveGroup { name: name("web") }]).await;
    assert!(local(&store).groups.is_empty());
    store.close();
}

#[tokio::test]
async fn a_removed_vm_keeps_its_persistent_disk_unless_the_fleet_deletes_it() {
    for (delete_disk, kept) in [(false, true), (true, false)] {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path());
        run(&store, &[put_group(1, 128), add(1)]).await;
        let first = create(&store, 1).await;
        let persistent = store.write(|txn| {
            let mut vm = txn.world().vm(first).cloned().expect("the VM");
            vm.spec.storage.persistent = true;
            txn.put_vm(vm)
        });
        persistent.await.expect("stored");
        let cause = RemoveCause::Superseded {
            epoch: 6,
            delete_disk,
        };
        run(&store, &[Step::RemoveVm { uid: uid(1), cause }]).await;
        let found = store.read(|world| world.vm(first).map(|vm| vm.spec.storage.persistent));
        assert_eq!(found, Some(kept));
        store.close();
    }
}

#[tokio::test]
async fn a_node_offers_what_others_do_not_use_and_each_disk_counts_once() {
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let host = HostFacts::of_test(dir.path(), 4, 10 * GIB, [("/image", 3 * GIB)]);
    let amounts = |host: &HostFacts| store.read(|world| available::amounts(world, host, 2));
    let empty = amounts(&host);
    assert_eq!((empty.capacity.vcpus, empty.free.vcpus), (8, 8));
    assert_eq!(empty.free, empty.allocatable);
    run(&store, &[put_group(1, 128), add(1), add(2)]).await;
    create(&store, 1).await;
    let two = amounts(&host);
    assert_eq!(
        two.allocatable, empty.allocatable,
        "those of the fleet are offered"
    );
    assert_eq!(two.free.vcpus, 8 - 2 * 2);
    assert_eq!(two.free.ram_bytes, empty.free.ram_bytes - 2 * (128 << 20));
    assert_eq!(two.free.isolated, empty.free.isolated - 2);
    assert_eq!(two.free.disk_bytes, empty.free.disk_bytes - 2 * 3 * GIB);
    // What a disk has allocated is not available any more, and belongs to the VM.
    let written = host.with_disk("web-1.img", 2 * GIB);
    assert_eq!(amounts(&written).free, two.free);
    // That of a VM that is gone is nobody's.
    let kept = host.with_disk("old-1.img", 2 * GIB);
    assert_eq!(
        amounts(&kept).free.disk_bytes,
        two.free.disk_bytes - 2 * GIB
    );
    store.close();
}

#[test]
fn a_look_at_a_file_that_fails_changes_nothing_and_all_purposes_of_a_file_count() {
    let path = || std::path::PathBuf::from("/image");
    let no = || Err("it cannot be used".to_owned());
    for (before, looks, expected) in [
        (None, vec![Some(Ok(1))], Some(Ok(1))),
        (None, vec![None], None),
        (Some(Ok(1)), vec![None], Some(Ok(1))),
        (Some(no()), vec![None], Some(no())),
        (Some(Ok(1)), vec![Some(no())], Some(no())),
        (Some(no()), vec![Some(Ok(2))], Some(Ok(2))),
        (None, vec![Some(Ok(1)), Some(no())], Some(no())),
        (None, vec![Some(no()), Some(Ok(1))], Some(no())),
    ] {
        let before: Files = before.into_iter().map(|it| (path(), it)).collect();
        let mut files = Files::new();
        for look in looks {
            available::add(&mut files, &before, path(), look);
        }
        assert_eq!(files.get(&path()), expected.as_ref());
    }
}

#[tokio::test]
async fn what_a_user_has_requested_applies_when_the_fleet_starts_the_vm_again() {
    for power in [Power::Stopped, Power::Paused, Power::Running] {
        let dir = tempfile::tempdir().expect("a directory");
        let store = open(dir.path());
        run(&store, &[put_group(1, 128), add(1)]).await;
        let local_uid = create(&store, 1).await;
        let requested = store.write(|txn| {
            let mut vm = txn.world().vm(local_uid).cloned().expect("the VM");
            vm.power = power;
            txn.put_vm(vm)
        });
        let requested: Result<(), Error> = requested.await;
        requested.expect("stored");
        let cause = StopCause::Kept;
        run(&store, &[Step::StopVm { uid: uid(1), cause }]).await;
        run(&store, &[Step::StartVm { uid: uid(1) }]).await;
        let found = store.read(|world| world.vm(local_uid).map(|vm| vm.power));
        assert_eq!(found, Some(power));
        store.close();
    }
}

#[tokio::test]
async fn a_group_of_a_user_is_not_changed_by_steps_that_were_planned_before_it_existed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    run(&store, &[put_group(1, 128)]).await;
    let users = store.write(|txn| {
        let mut group = txn.world().group(&name("web")).cloned().expect("the group");
        group.origin = Origin::Apply;
        txn.put_group(group.clone())?;
        Ok::<_, Error>(group)
    });
    let users = users.await.expect("stored");
    let remove = Step::RemoveGroup { name: name("web") };
    run(&store, &[put_group(2, 256), add(1), remove]).await;
    let found = store.read(|world| world.group(&name("web")).cloned());
    assert_eq!(found, Some(users));
    store.close();
}

#[tokio::test]
async fn a_vm_that_was_bound_to_the_node_by_another_name_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    run(&store, &[put_group(1, 128)]).await;
    let other = |node: &str| store.read(|world| super::local::other_node(world, &name(node)));
    assert_eq!(other("n2"), None, "no VM was bound");
    // With an entry alone, with a VM, and with a VM without an entry.
    let found = Some((name("web-1"), name("n1")));
    run(&store, &[add(1)]).await;
    assert_eq!((other("n1"), other("n2")), (None, found.clone()));
    create(&store, 1).await;
    assert_eq!((other("n1"), other("n2")), (None, found.clone()));
    let cause = RemoveCause::Deleting { forced: false };
    run(&store, &[Step::RemoveVm { uid: uid(1), cause }]).await;
    assert_eq!((other("n1"), other("n2")), (None, found));
    store.close();
}
