//! A crash before every step, on the way up and on the way down; the next life makes it good.
//! Not here: a crash between two plugins of one ADD (`tests/cni`).

use slicectl::api::meta::Uid;
use slicectl::reconcile::converge;
use slicectl::reconcile::net::cni::{Attach, Checking, sweep};

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
        let hands = Attach::new(ground.runtime.clone(), Checking::Never);
        let done = converge(&hands, &second, &slicectl::reconcile::unprobed()).await;
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
