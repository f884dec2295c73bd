//! Bridge mode: every single action of it, on a bridge that we make and on one that the user made; reboots, two daemons.
//! Out of scope: what a port of a bridge is (`tests/kernel/bridge_stages`).

use std::path::Path;

use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};

use crate::crash::life::{Dirs, End, Intent};
use crate::crash::scenes::{leases, rewrite_boot_id};
use crate::crash::sweep::{self, Scene};
use crate::crash::world::{host, whole};
use test_support::kernel::{self, Canaries};
use test_support::objects::bridged;

/// The host network creates the bridge. Beside it a stranger's TAP with a filter, which settles on it.
const FRESH: Scene = Scene {
    template: || bridged("brvm0", "192.168.137.1/24"),
    counted: 2,
    strangers: "ip tuntap add foreign0 mode tap
        ip link set foreign0 alias slice/foreign up
        tc qdisc add dev foreign0 clsact
        tc filter add dev foreign0 ingress prio 7 protocol ip bpf da bytecode '1,6 0 0 4294967295'",
    settlers: "ip link set foreign0 master brvm0",
    build: 19,
    teardown: 8,
};

/// The user made the bridge, with a NIC, addresses and a filter. The NIC's MAC, which is the bridge's, is higher than most.
const THEIRS: Scene = Scene {
    template: || bridged("br0", "192.168.137.1/24"),
    counted: 2,
    strangers: USERS_BRIDGE,
    settlers: "true",
    build: 17,
    teardown: 6,
};

const USERS_BRIDGE: &str = "
    ip link add br0 type bridge
    ip link add nic0 address fe:80:00:00:00:00 type veth peer name cable0
    ip link set nic0 master br0
    ip link set nic0 up
    ip link set cable0 up
    ip link set br0 up
    ip addr add 192.168.137.1/24 dev br0
    ip addr add 192.168.7.1/24 dev br0
    bridge fdb add 02:00:00:00:00:77 dev nic0 master static
    tc qdisc add dev br0 clsact
    tc filter add dev br0 ingress prio 7 protocol ip bpf da bytecode '1,6 0 0 4294967295'";

#[test]
fn killed_before_any_action_of_a_bridge_groups_build_the_next_life_finishes_it() {
    sweep::killed_building(&FRESH);
}

#[test]
fn killed_before_any_action_of_a_bridge_groups_teardown_the_next_life_finishes_it() {
    sweep::killed_taking_down(&FRESH);
}

#[test]
fn an_action_of_a_bridge_groups_build_that_fails_is_tried_again() {
    sweep::failing_building(&FRESH);
}

#[test]
fn an_action_of_a_bridge_groups_teardown_that_fails_is_tried_again() {
    sweep::failing_taking_down(&FRESH);
}

#[test]
fn killed_during_the_bring_up_of_a_bridge_group_and_without_its_state_it_adopts_what_exists() {
    sweep::robbed_building(&FRESH);
}

#[test]
fn killed_and_robbed_of_its_state_during_a_bridge_groups_teardown_nothing_is_left_over() {
    sweep::robbed_taking_down(&FRESH);
}

#[test]
fn killed_before_any_action_on_a_users_bridge_the_next_life_finishes_the_build() {
    sweep::killed_building(&THEIRS);
}

#[test]
fn killed_before_any_action_on_a_users_bridge_the_next_life_finishes_the_teardown() {
    sweep::killed_taking_down(&THEIRS);
}

fn two(bridge: &str, gateway: &str) -> HostGroupSpec {
    HostGroupSpec {
        count: 2,
        update: UpdatePolicy::Rolling,
        template: bridged(bridge, gateway),
    }
}

#[test]
fn a_users_bridge_is_byte_by_byte_the_same_while_vms_are_on_it_and_after_them() {
    kernel::private_sync(|| {
        kernel::run(USERS_BRIDGE);
        // Without timers, and without what the kernel reckons from all ports' features.
        let look = || {
            kernel::run(
                "for l in br0 nic0; do ip -d -j link show $l; ip -d -j addr show $l; done | sed -E 's/\"([a-z_]*timer|tso_max_[a-z]*)\":[^,]*,//g'
                 bridge -j fdb show dev nic0; bridge -j fdb show dev br0; bridge -d -j link show dev nic0
                 tc -j filter show dev br0 ingress; tc -j qdisc show dev br0
                 ip -4 route show dev br0; ip neigh show dev br0 nud all | grep -v PERMANENT || true
                 cat /proc/sys/net/ipv4/conf/br0/*  /proc/sys/net/ipv6/conf/br0/disable_ipv6",
            )
        };
        let dirs = Dirs::below(Path::new("/run/place"));
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        // Its own link-local address becomes final.
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let before = look();
        let spec = two("br0", "192.168.137.1/24");
        assert_eq!(dirs.live(Intent::Apply("web", &spec)), End::Converged);
        assert_eq!(look(), before);
        assert_eq!(
            kernel::run("ip -o link show master br0").lines().count(),
            3,
            "nic0 and two VMs"
        );
        assert_eq!(dirs.live(Intent::Delete("web")), End::Converged);
        assert_eq!(look(), before);
    });
}

#[test]
fn after_a_reboot_a_bridge_group_is_rebuilt_with_the_same_leases() {
    let disk = tempfile::tempdir().unwrap();
    let dirs = Dirs {
        state: disk.path().join("state"),
        run: Path::new("/run/slice").into(),
    };
    let build = || {
        let spec = two("brvm0", "192.168.137.1/24");
        assert_eq!(dirs.live(Intent::Apply("web", &spec)), End::Converged);
        (leases(&dirs), whole(&dirs))
    };
    let (leases_before, before) = kernel::private_sync(build);
    rewrite_boot_id(&dirs);
    kernel::private_sync(|| {
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        assert_eq!(leases(&dirs), leases_before);
        assert_eq!(whole(&dirs), before);
    });
}

#[test]
fn two_daemons_with_a_bridge_each_do_not_disturb_each_other() {
    kernel::private_sync(|| {
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let canaries = Canaries::release();
        let (a, b) = (
            Dirs::below(Path::new("/run/a")),
            Dirs::below(Path::new("/run/b")),
        );
        let mut amber = two("br1", "192.168.138.1/24");
        if let slicectl::api::network::NetworkSpec::Bridge(spec) = &mut amber.template.network {
            spec.tap_prefix = "amber".to_owned();
        }
        let blue = two("br0", "192.168.137.1/24");
        assert_eq!(b.live(Intent::Apply("blue", &blue)), End::Converged);
        let alone = host(&b);
        assert_eq!(a.live(Intent::Apply("amber", &amber)), End::Converged);
        let together = host(&a);
        assert_eq!(
            b.live_counting(Intent::Same),
            (End::Converged, vec![]),
            "the other's world is at rest"
        );
        assert_eq!(host(&a), together);
        assert_eq!(a.live(Intent::Delete("amber")), End::Converged);
        assert_eq!(host(&b), alone, "byte by byte");
        assert_eq!(b.live(Intent::Delete("blue")), End::Converged);
        canaries.assert_alive();
    });
}
