//! A crash before every step, on the way up and on the way down; the next life makes it good.
//! Out of scope: a crash between two plugins of one ADD (`tests/cni`).

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use slicectl::api::meta::Uid;
use slicectl::reconcile::converge;
use slicectl::reconcile::net::cni::{CheckMode, CniNet, Swept, sweep};

use crate::ground::{Ground, NETWORK, crash_before, instance, ping};
use crate::support::kernel::{self, Canaries};

#[test]
fn after_a_crash_before_any_step_the_next_life_converges_or_leaves_nothing_on_a_bridge() {
    kernel::private(async {
        let canaries = Canaries::release();
        crashes(&Ground::bridge()).await;
        canaries.assert_alive();
    });
}

#[test]
fn after_a_crash_before_any_step_the_next_life_converges_or_leaves_nothing_point_to_point() {
    kernel::private(async {
        let canaries = Canaries::release();
        crashes(&Ground::ptp()).await;
        canaries.assert_alive();
    });
}

async fn crashes(ground: &Ground) {
    let (_, up) = ground.up().await.unwrap();
    let down = ground.down().await.unwrap();
    let before = ground.left();

    for step in 0..up.len() {
        let crashed = ground.up_with(&crash_before(step)).await;
        assert!(crashed.is_err(), "no crash before step {step} of {up:?}");
        ground.down().await.unwrap();
        assert_eq!(ground.left(), before, "given up before `{}`", up[step]);

        ground.up_with(&crash_before(step)).await.unwrap_err();
        let (connection, _) = ground.up().await.unwrap();
        ping(&connection);
        ground.down().await.unwrap();
        assert_eq!(ground.left(), before, "gone on before `{}`", up[step]);
    }
    for step in 0..down.len() {
        ground.up().await.unwrap();
        let crashed = ground.down_with(&crash_before(step)).await;
        assert!(crashed.is_err(), "no crash before step {step} of {down:?}");
        ground.down().await.unwrap();
        assert_eq!(ground.left(), before, "down again before `{}`", down[step]);

        ground.up().await.unwrap();
        ground.down_with(&crash_before(step)).await.unwrap_err();
        let (connection, _) = ground.up().await.unwrap();
        ping(&connection);
        ground.down().await.unwrap();
        assert_eq!(ground.left(), before, "up again before `{}`", down[step]);
    }
}

#[test]
fn a_sweep_takes_what_nobody_wants_and_spares_the_living_and_strangers() {
    kernel::private(async {
        let ground = Ground::bridge();
        ground.up().await.unwrap();
        ground.down().await.unwrap();
        let before = ground.left();

        let first = ground.desired.clone();
        let (connection, _) = ground.up().await.unwrap();
        let with_one = ground.left();
        // A second VM, whose namespace and run directory are lost, as after a boot.
        let lost: Uid = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let mut second = first.clone();
        second.label = instance().vm_label(&"web-2".parse().unwrap(), lost);
        let hands = CniNet::new(ground.runtime.clone(), CheckMode::Never);
        let done = converge(&hands, &second, &slicectl::reconcile::no_probe()).await;
        done.result.unwrap();
        drop(hands);
        let (netns, dir) = (second.netns(), second.vm_dir());
        kernel::run(&format!(
            "umount {0}; rm {0} {1}; rm -r {2}",
            netns.display(),
            second.handle().display(),
            dir.display()
        ));
        // Reservations without any record: ours of nobody, and a stranger's.
        let reservation = |ip: &str| ground.path("data/net").join(ip);
        let nobody =
            instance().container_id("00000000-0000-4000-8000-000000000002".parse().unwrap());
        std::fs::write(reservation("10.77.0.77"), format!("{nobody}\r\neth0")).unwrap();
        std::fs::write(reservation("10.77.0.78"), "somebody\r\neth0").unwrap();

        let uid = slicectl::owner::uid_of(&first.label);
        let living = || [uid].into();
        let networks = [NETWORK.to_owned()];
        let swept = sweep(&ground.runtime, &instance(), &living, &networks).await;
        assert_eq!(swept.failures, Vec::<String>::new());
        assert_eq!(swept.detached, [instance().container_id(lost)]);
        assert_eq!(swept.reservations, [reservation("10.77.0.77")]);
        std::fs::remove_file(reservation("10.77.0.78")).expect("the stranger's");
        assert_eq!(ground.left(), with_one);
        ping(&connection);
        ground.down().await.unwrap();
        assert_eq!(ground.left(), before);
    });
}

/// A record of an attachment, and the address reserved for it.
fn attached(ground: &Ground, uid: Uid, ip: &str) {
    reserve(ground, uid, ip);
    let id = instance().container_id(uid);
    let results = ground.path("cache/slice/results");
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

fn reserve(ground: &Ground, uid: Uid, ip: &str) {
    let folder = ground.path("data/net");
    std::fs::create_dir_all(&folder).unwrap();
    let id = instance().container_id(uid);
    std::fs::write(folder.join(ip), format!("{id}\r\neth0")).unwrap();
}

#[test]
fn a_vm_that_is_born_while_a_sweep_looks_keeps_all_and_the_living_are_asked_a_few_times_only() {
    kernel::private(async {
        let ground = Ground::bridge();
        let many: Vec<Uid> = (0..200).map(|_| Uid::random()).collect();
        for (uid, at) in many.iter().zip(2..) {
            attached(&ground, *uid, &format!("10.77.0.{at}"));
        }
        let known = Mutex::new(BTreeSet::from_iter(many));
        let asked = AtomicUsize::new(0);
        let living = || {
            let before = known.lock().unwrap().clone();
            // Stored right after we were asked; then the plugins run, who are done with one of them.
            let at = asked.fetch_add(1, Ordering::Relaxed);
            let born = [Uid::random(), Uid::random()];
            known.lock().unwrap().extend(born);
            attached(&ground, born[0], &format!("10.77.1.{at}"));
            reserve(&ground, born[1], &format!("10.77.2.{at}"));
            before
        };
        let before = ground.left();
        let networks = [NETWORK.to_owned()];
        let swept = sweep(&ground.runtime, &instance(), &living, &networks).await;
        assert_eq!(swept, Swept::default());
        let left = ground.left();
        assert!(left.is_superset(&before));
        let asked = asked.into_inner();
        assert!((2..5).contains(&asked), "asked {asked} times");
        let reserved = left.iter().filter(|left| left.contains("/10.77."));
        assert_eq!(reserved.count(), 200 + 2 * asked);
    });
}
