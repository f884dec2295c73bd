//! What others do to a VM's network is made good; what is theirs stays.
//! Out of scope: our own crashes.

use slicectl::reconcile::Error;
use slicectl::reconcile::net::cni::IFNAME;

use crate::cni_stages::fixture::{Fixture, ping};
use test_support::kernel;

/// Meddles, then asks that the VM is as it was, and that nothing is left when it goes.
fn heals(meddle: impl Fn(&Fixture) + Sync) {
    kernel::private(async {
        let fixture = Fixture::bridge();
        fixture.up().await.unwrap();
        fixture.down().await.unwrap();
        let before = fixture.left();
        fixture.up().await.unwrap();
        // The second time the plugins are asked how the attachment looks while it is whole.
        fixture.up().await.unwrap();
        meddle(&fixture);
        let (connection, taken) = fixture.up().await.unwrap();
        assert!(!taken.is_empty(), "it was not noticed");
        ping(&connection);
        assert_eq!(fixture.up().await.unwrap(), (connection, vec![]));
        fixture.down().await.unwrap();
        assert_eq!(fixture.left(), before);
    });
}

#[test]
fn an_interface_that_was_deleted_is_added_again() {
    heals(|fixture| drop(fixture.inside("ip link del eth0")));
}

#[test]
fn an_interface_with_another_mac_or_without_its_address_is_added_again() {
    heals(|fixture| drop(fixture.inside("ip link set eth0 address 02:00:00:00:00:99")));
    heals(|fixture| drop(fixture.inside("ip addr flush dev eth0")));
}

#[test]
fn an_interface_that_was_set_down_is_set_up() {
    heals(|fixture| drop(fixture.inside("ip link set eth0 down")));
}

#[test]
fn a_namespace_that_was_lost_is_created_again() {
    heals(|fixture| {
        let netns = fixture.netns();
        kernel::run(&format!("umount {0}; rm {0}", netns.display()));
    });
}

#[test]
fn a_host_end_that_check_misses_is_created_again() {
    heals(|fixture| drop(fixture.inside("ip route flush dev eth0")));
}

#[test]
fn a_lost_intent_is_written_again_and_the_vm_stays_connected() {
    kernel::private(async {
        let fixture = Fixture::bridge();
        let (connection, _) = fixture.up().await.unwrap();
        let intent = fixture.desired.vm_dir().join("cni.json");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&intent).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        for damage in [None, Some("{")] {
            match damage {
                None => std::fs::remove_file(&intent).unwrap(),
                Some(text) => std::fs::write(&intent, text).unwrap(),
            }
            let (same, taken) = fixture.up().await.unwrap();
            assert_eq!((same, taken.len()), (connection.clone(), 1), "{taken:?}");
            assert!(!fixture.look().await.network_changed());
        }
    });
}

#[test]
fn a_tap_that_was_meddled_with_is_put_right() {
    heals(|fixture| drop(fixture.inside("ip link del tap0")));
    heals(|fixture| drop(fixture.inside("ip link set tap0 mtu 1300")));
    heals(|fixture| drop(fixture.inside("ip link set tap0 down")));
}

#[test]
fn redirects_are_repaired_and_foreign_filters_stay() {
    heals(|fixture| drop(fixture.inside("tc qdisc del dev eth0 clsact")));
    kernel::private(async {
        let fixture = Fixture::bridge();
        let (connection, _) = fixture.up().await.unwrap();
        fixture.inside(
            "tc filter add dev tap0 ingress prio 9 protocol ip u32 match u8 0 0 action mirred egress mirror dev lo",
        );
        fixture.inside("tc filter del dev tap0 ingress prio 1");
        fixture.up().await.unwrap();
        ping(&connection);
        let filters = fixture.inside("tc filter show dev tap0 ingress");
        assert!(filters.contains("pref 9"), "{filters}");
        let lines = filters
            .lines()
            .filter(|line| line.contains("(Egress Redirect to device eth0)"));
        assert_eq!(lines.count(), 1, "{filters}");
    });
}

#[test]
fn a_strangers_namespace_in_the_way_is_a_conflict_and_stays() {
    kernel::private(async {
        let fixture = Fixture::bridge();
        let netns = fixture.netns();
        std::fs::create_dir_all(netns.parent().unwrap()).unwrap();
        kernel::run(&format!(
            "ip netns add stranger; touch {0}; mount --bind /run/netns/stranger {0}; ip -n stranger link add {IFNAME} type bridge",
            netns.display()
        ));
        let conflict = fixture.up().await.unwrap_err();
        assert!(matches!(conflict, Error::Conflict(_)), "{conflict}");
        fixture.down().await.unwrap();
        kernel::run(&format!(
            "ip -n stranger link show {IFNAME}; umount {}",
            netns.display()
        ));
        let (connection, _) = fixture.up().await.unwrap();
        ping(&connection);
    });
}
