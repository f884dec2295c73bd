//! Words about bridge and CNI groups that only a daemon on a host can say: the way to them, and their quarrels.
//! Out of scope: whether packets find that way.

use test_support::harness::{Harness, slots, with_daemon};
use test_support::kernel::run;

const WEB: &str = "\
config:
  host_groups:
    - {name: web, network: {bridge: brvm0, tap_prefix: vm, gateway: 192.168.137.1/24}}
";

/// An uplink with two addresses and the better default route, and another uplink.
fn lan() {
    for (link, addresses, gateway, metric) in [
        ("wlan0", "10.9.0.7/24", "10.9.0.1", 600),
        ("eth0", "192.168.1.20/24 192.168.1.21/24", "192.168.1.1", 10),
    ] {
        run(&format!(
            "ip link add {link} type veth peer name {link}p && ip link set {link}p up && ip link set {link} up"
        ));
        for address in addresses.split(' ') {
            run(&format!("ip addr add {address} dev {link}"));
        }
        run(&format!(
            "ip route add default via {gateway} metric {metric}"
        ));
    }
}

/// Stores it without waiting for its VMs.
fn store(harness: &Harness, manifest: &str) {
    let path = harness.write("manifest.yaml", manifest);
    harness.ctl(&format!("apply -f {path}"));
}

#[test]
fn route_names_the_bridges_subnet_and_the_hosts_address_on_its_best_default_route() {
    with_daemon(|harness| {
        store(&harness, WEB);
        let reported = harness.until("a subnet", || {
            let output = harness.try_ctl("route web --via 192.168.1.99");
            output.status.success().then_some(output.stdout)
        });
        assert!(
            String::from_utf8(reported)
                .unwrap()
                .contains("192.168.1.99")
        );
        let reported = harness.refused("route web", 1);
        assert!(reported.contains("--via"), "{reported}");
        lan();
        let reported = harness.ctl("route web");
        let commands: Vec<&str> = reported.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            commands,
            [
                "ip route add 192.168.137.0/24 via 192.168.1.20",
                "route -n add -net 192.168.137.0/24 192.168.1.20"
            ]
        );
    });
}

#[test]
fn there_is_no_route_to_isolated_and_cni_groups_and_the_reason_is_reported() {
    with_daemon(|harness| {
        store(&harness, &slots(0, ""));
        store(
            &harness,
            "config: {host_groups: [{name: job, count: 0, network_name: absent}]}",
        );
        let reported = harness.refused("route sandbox", 1);
        assert!(
            reported.contains("isolated mode: its VMs are not reachable"),
            "{reported}"
        );
        let reported = harness.refused("route job", 1);
        assert!(
            reported.contains("the plugins of network \"absent\""),
            "{reported}"
        );
        let reported = harness.refused("route none-such", 1);
        assert!(
            reported.contains("hostgroup/none-such not found"),
            "{reported}"
        );
    });
}

#[test]
fn a_bridge_group_that_would_take_anothers_taps_is_refused_with_its_name() {
    with_daemon(|harness| {
        store(&harness, WEB);
        let path = harness.write("other.yaml", &WEB.replace("name: web", "name: other"));
        let reported = harness.refused(&format!("apply -f {path}"), 1);
        assert!(
            reported.contains(
                "\"vm\" is already the prefix of group \"web\" created by slicectl apply"
            ),
            "{reported}"
        );
    });
}
