//! Members of etcd that are killed, and clusters that are replaced.
//! Out of scope: nodes that fail.

use std::time::{Duration, Instant};

use slicectl::fleet::contact::State;
use slicectl::fleet::keys::Key;
use slicectl::fleet::link::boottime;
use slicectl::fleet::object::Vm;
use test_support::kernel;

use super::super::lab::PATIENCE;
use super::fleet::{Fleet, LONG, counts, group, until};

/// The VMs without what a scheduler writes into all of them.
fn bindings(vms: &[Vm]) -> Vec<(String, u64, String)> {
    let bound = vms.iter().filter_map(|vm| {
        let binding = vm.binding.as_ref()?;
        Some((vm.meta.name.to_string(), vm.epoch, binding.node.to_string()))
    });
    bound.collect()
}

#[test]
fn scheduling_goes_on_after_the_leader_of_etcd_and_after_the_majority_was_lost() {
    kernel::private(async {
        let mut fleet = Fleet::start([20, 20, 20]).await;
        let mut web = group("web", 10);
        fleet.put_group(&web).await;
        let before = fleet.bound(10).await;

        let killed = fleet.lab.leader();
        fleet.lab.kill(killed);
        let begin = Instant::now();
        web.spec.count = 20;
        fleet.put_group(&web).await;
        fleet.bound(20).await;
        println!(
            "20 bound {:?} after the leader of etcd was killed",
            begin.elapsed()
        );

        let second = (killed + 1) % 3;
        fleet.lab.kill(second);
        let begin = Instant::now();
        for node in &fleet.nodes {
            until("contact is lost", LONG, || (!node.may_act()).then_some(())).await;
        }
        println!(
            "no contact {:?} after the majority was lost",
            begin.elapsed()
        );
        let leads = || fleet.nodes.iter().any(|it| it.leads());
        until("nobody leads", LONG, || (!leads()).then_some(())).await;
        for node in &fleet.nodes {
            until("an error", PATIENCE, || node.link.last_error()).await;
            println!("{}", node.link.last_error().unwrap());
            let kept = node.link.read(|mirror, _| mirror.vms.len());
            assert_eq!(kept, 20);
        }
        fleet.lab.restart_without_majority(killed);
        fleet.lab.restart_without_majority(second);
        let begin = Instant::now();
        web.spec.count = 30;
        fleet.put_group(&web).await;
        let after = fleet.bound(30).await;
        println!("30 bound {:?} after the majority was back", begin.elapsed());
        let kept = bindings(&after);
        for bound in bindings(&before) {
            assert!(kept.contains(&bound), "{bound:?}");
        }
        assert_eq!(counts(&after).1, 30);
        for node in &fleet.nodes {
            until("contact", LONG, || node.may_act().then_some(())).await;
            until("no error", PATIENCE, || {
                node.link.last_error().is_none().then_some(())
            })
            .await;
        }
    });
}

#[test]
fn another_cluster_changes_nothing_until_it_is_accepted() {
    kernel::private(async {
        let mut fleet = Fleet::start([20, 20, 20]).await;
        fleet.put_group(&group("web", 10)).await;
        fleet.bound(10).await;
        for node in &fleet.nodes {
            let has_all = || node.link.read(|mirror, _| mirror.vms.len() == 10);
            until("ten VMs", PATIENCE, || has_all().then_some(())).await;
        }
        fleet.lab.replace();
        let mut found_id = 0;
        for node in &fleet.nodes {
            let found = until("another cluster", LONG, || {
                match node.link.read(|_, contact| contact.state(boottime())) {
                    State::WrongCluster { found, .. } => Some(found),
                    _ => None,
                }
            });
            found_id = found.await;
            let stored = node.stored.lock().unwrap().last().copied().unwrap();
            assert_eq!(stored.unaccepted.unwrap().cluster_id, found_id);
        }
        // Longer than the lease of a leader and a renewal.
        tokio::time::sleep(Duration::from_secs(17)).await;
        fleet.client = fleet.lab.client("control");
        let page = std::num::NonZeroU32::new(100).unwrap();
        let listing = fleet.client.range("/slice/v1/", None, page).await.unwrap();
        assert_eq!(listing.kvs, [], "nothing is written to another cluster");
        for node in &fleet.nodes {
            assert!(!node.leads() && !node.may_act());
            let kept = node.link.read(|mirror, _| mirror.vms.len());
            assert_eq!(kept, 10, "the objects stay as they were listed");
            node.link.accept(found_id, boottime());
        }
        for node in &fleet.nodes {
            until("contact", LONG, || node.may_act().then_some(())).await;
            assert!(node.link.is_stored());
            let stored = node.stored.lock().unwrap().last().copied().unwrap();
            assert_eq!((stored.cluster_id, stored.unaccepted), (found_id, None));
        }
        fleet.put_group(&group("db", 3)).await;
        fleet.bound(3).await;
    });
}

#[test]
fn a_cluster_that_was_restored_from_a_snapshot_changes_nothing_and_is_reported() {
    kernel::private(async {
        let mut fleet = Fleet::start([20, 20, 20]).await;
        fleet.put_group(&group("web", 3)).await;
        fleet.bound(3).await;
        let snapshot = fleet.lab.snapshot("before.db");
        fleet.put_group(&group("db", 9)).await;
        fleet.bound(12).await;
        for node in &fleet.nodes {
            let has_all = || node.link.read(|mirror, _| mirror.vms.len() == 12);
            until("12 VMs", PATIENCE, || has_all().then_some(())).await;
        }
        fleet.lab.restore(&snapshot);
        for node in &fleet.nodes {
            until("an earlier revision", LONG, || {
                let state = node.link.read(|_, contact| contact.state(boottime()));
                matches!(state, State::Rewound { .. }).then_some(())
            })
            .await;
            let kept = node.link.read(|mirror, _| mirror.vms.len());
            assert_eq!(kept, 12, "the objects stay as they were listed");
        }
        tokio::time::sleep(Duration::from_secs(17)).await;
        assert_eq!(fleet.vms().await.len(), 3);
        assert!(fleet.nodes.iter().all(|node| !node.leads()));
    });
}

#[test]
fn writes_whose_outcome_is_unknown_bind_no_vm_twice_when_they_are_applied_later() {
    kernel::private(async {
        let fleet = Fleet::start([500, 500, 500]).await;
        let leader = fleet.leader().await;
        let control = &fleet.nodes[leader].control;
        let before = control.status().sent.transactions;
        for number in 0..6 {
            fleet.put_group(&group(&format!("g{number}"), 250)).await;
        }
        let is_writing = || (control.status().sent.transactions > before).then_some(());
        until("a transaction", PATIENCE, is_writing).await;
        // The member that the leader sends its requests to.
        let member = (leader + 1) % 3;
        fleet.lab.pause(member);
        let begin = Instant::now();
        fleet.bound(1500).await;
        println!(
            "1500 bound {:?} after a member was suspended",
            begin.elapsed()
        );
        let (_, key) = fleet.client.get(Key::Election).await.unwrap();
        let key = key.unwrap();
        println!("the election key was written {} times", key.version);
        fleet.lab.resume(member);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let vms = fleet.bound(1500).await;
        assert_eq!((vms.len(), counts(&vms).1), (1500, 1500));
        assert!(vms.iter().all(|vm| vm.epoch == 1), "bound once");
        assert!(counts(&vms).0.values().all(|count| *count == 500));
    });
}
