//! A crash before every step, on the way up and on the way down; the next life makes it good.
//! Out of scope: a crash between two plugins of one ADD (`tests/kernel/cni`).

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use slicectl::api::meta::Uid;
use slicectl::reconcile::converge;
use slicectl::reconcile::net::cni::{CheckMode, CniNet, Swept, sweep};

use crate::cni_stages::fixture::{Fixture, NETWORK, crash_before, instance, ping};
use test_support::kernel::{self, Canaries};

#[test]
fn after_a_crash_before_any_step_the_next_life_converges_or_leaves_nothing_on_a_bridge() {
    kernel::private(async {
        let canaries = Canaries::release();
        crashes(&Fixture::bridge()).await;
        canaries.assert_alive();
    });
}

#[test]
fn after_a_crash_before_any_step_the_next_life_converges_or_leaves_nothing_point_to_point() {
    kernel::private(async {
        let canaries = Canaries::release();
        crashes(&Fixture::ptp()).await;
        canaries.assert_alive();
    });
}

async fn crashes(fixture: &Fixture) {
    let (_, up) = fixture.up().await.unwrap();
    let down = fixture.down().await.unwrap();
    let before = fixture.left();

    for step in 0..up.len() {
        let crashed = fixture.up_with(&crash_before(step)).await;
        assert!(crashed.is_err(), "no crash before step {step} of {up:?}");
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before, "given up before `{}`", up[step]);

        fixture.up_with(&crash_before(step)).await.unwrap_err();
        let (connection, _) = fixture.up().await.unwrap();
        ping(&connection);
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before, "gone on before `{}`", up[step]);
    }
    for step in 0..down.len() {
        fixture.up().await.unwrap();
        let crashed = fixture.down_with(&crash_before(step)).await;
        assert!(crashed.is_err(), "no crash before step {step} of {down:?}");
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before, "down again before `{}`", down[step]);

        fixture.up().await.unwrap();
        fixture.down_with(&crash_before(step)).await.unwrap_err();
        let (connection, _) = fixture.up().await.unwrap();
        ping(&connection);
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before, "up again before `{}`", down[step]);
    }
}

#[test]
fn a_sweep_takes_what_nothing_references_and_spares_the_living_and_foreign_objects() {
    kernel::private(async {
        let fixture = Fixture::bridge();
        fixture.up().await.unwrap();
        fixture.down().await.unwrap();
        let before = fixture.left();

        let first = fixture.desired.clone();
        let (connection, _) = fixture.up().await.unwrap();
        let with_one = fixture.left();
        // A second VM, whose namespace and run directory are lost, as after a boot.
        let lost: Uid = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut second = first.clone();
        second.label = instance().vm_label(&"web-2".parse().unwrap(), lost);
        let reconciler = CniNet::new(fixture.runtime.clone(), CheckMode::Never);
        let done = converge(&reconciler, &second, &slicectl::reconcile::no_probe()).await;
        done.result.unwrap();
        drop(reconciler);
        let (netns, dir) = (second.netns(), second.vm_dir());
        kernel::run(&format!(
            "umount {0}; rm {0} {1}; rm -r {2}",
            netns.display(),
            second.handle().display(),
            dir.display()
        ));
        // Reservations without any record: ours of nobody, and a stranger's.
        let reservation = |ip: &str| fixture.path("data/net").join(ip);
        let nobody =
            instance().container_id("00000000-0000-4000-8000-000000000002".parse().unwrap());
        std::fs::write(reservation("10.77.0.77"), format!("{nobody}\r\neth0")).unwrap();
        std::fs::write(reservation("10.77.0.78"), "somebody\r\neth0").unwrap();

        let uid = slicectl::owner::uid_of(&first.label);
        let living = || [uid].into();
        let networks = [NETWORK.to_owned()];
        let swept = sweep(&fixture.runtime, &instance(), &living, &networks).await;
        assert_eq!(swept.failures, Vec::<String>::new());
        assert_eq!(swept.detached, [instance().container_id(lost)]);
        assert_eq!(swept.reservations, [reservation("10.77.0.77")]);
        std::fs::remove_file(reservation("10.77.0.78")).expect("the stranger's");
        assert_eq!(fixture.left(), with_one);
        ping(&connection);
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before);
    });
}

/// A record of an attachment, and the address reserved for it.
fn attached(fixture: &Fixture, uid: Uid, ip: &str) {
    reserve(fixture, uid, ip);
    let id = instance().container_id(uid);
    let results = fixture.path("cache/slice/results");
    std::fs::create_dir_all(&results).unwrap();
    let record = serde_json::json!({
        "kind": "cniCacheV1", "containerId": id, "ifName": "eth0", "networkName": NETWORK, "config": "e30="
    });
    std::fs::write(
        results.join(format!("{NETWORK}-{id}-eth0")),
        record.to_string(),
    )
    .unwrap();
}

fn reserve(fixture: &Fixture, uid: Uid, ip: &str) {
    let folder = fixture.path("data/net");
    std::fs::create_dir_all(&folder).unwrap();
    let id = instance().container_id(uid);
    std::fs::write(folder.join(ip), format!("{id}\r\neth0")).unwrap();
}

#[test]
fn a_vm_that_is_created_while_a_sweep_looks_keeps_all_and_the_living_are_asked_a_few_times_only() {
    kernel::private(async {
        let fixture = Fixture::bridge();
        let many: Vec<Uid> = (0..200).map(|_| Uid::random()).collect();
        for (uid, at) in many.iter().zip(2..) {
            attached(&fixture, *uid, &format!("10.77.0.{at}"));
        }
        let known = Mutex::new(BTreeSet::from_iter(many));
        let asked = AtomicUsize::new(0);
        let living = || {
            let before = known.lock().unwrap().clone();
            // Stored right after we were asked; then the plugins run, who are done with one of them.
            let at = asked.fetch_add(1, Ordering::Relaxed);
            let born = [Uid::random(), Uid::random()];
            known.lock().unwrap().extend(born);
            attached(&fixture, born[0], &format!("10.77.1.{at}"));
            reserve(&fixture, born[1], &format!("10.77.2.{at}"));
            before
        };
        let before = fixture.left();
        let networks = [NETWORK.to_owned()];
        let swept = sweep(&fixture.runtime, &instance(), &living, &networks).await;
        assert_eq!(swept, Swept::default());
        let left = fixture.left();
        assert!(left.is_superset(&before));
        let asked = asked.into_inner();
        assert!((2..5).contains(&asked), "asked {asked} times");
        let reserved = left.iter().filter(|left| left.contains("/10.77."));
        assert_eq!(reserved.count(), 200 + 2 * asked);
    });
}
