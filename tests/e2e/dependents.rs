//! What depends on something that VMs share, after that was broken and repaired: a bridge of ours, and what isolated VMs need of the host.
//! Out of scope: drift of what one VM has (`drift`, `bridge_drift`).

use std::time::Duration;

use test_support::harness::{self, bridge_group, slots, with_daemon};
use test_support::kernel::run;

/// From the change to everything as it was.
const BOUND: Duration = Duration::from_secs(1);

const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";
const APART: &str =
    "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24\nisolate_ports: true";

/// Applies each sabotage and waits until everything is as before: each VM's neighbour entry, filters, routes and rules. A new daemon is
/// started for every three of them, because many repairs by one daemon count as a conflicting writer.
fn all_comes_back(group: &str, manifest: &str, sabotages: &[&str]) {
    for some in sabotages.chunks(3) {
        with_daemon(|harness| {
            harness.apply(manifest);
            harness.until("it rests", || {
                let world = harness::world();
                std::thread::sleep(Duration::from_millis(300));
                (harness::world() == world).then_some(())
            });
            let (world, quick) = (harness::world(), look());
            for sabotage in some {
                run(sabotage);
                // A whole look takes too long to measure by.
                harness.within(BOUND, sabotage, || (look() == quick).then_some(()));
                harness.until(sabotage, || {
                    (harness::world() == world && look() == quick).then_some(())
                });
            }
            harness.ctl(&format!("wait hg/{group} --for ready --timeout 10s"));
        });
    }
}

fn look() -> String {
    run("ip -4 neigh show nud permanent | sort; ip -4 -o addr show | sed 's/^[0-9]*: //' | grep -E '^(brvm0|sl)' || true
         ip -o -d link show type bridge | grep -oE 'brvm0: <[^>]*>|link/ether [^ ]*|vlan_filtering [01]' || true
         grep -H . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv*/conf/brvm0/disable_ipv6 /proc/sys/net/ipv4/conf/brvm0/forwarding /proc/sys/net/ipv6/conf/vmtap0/disable_ipv6 2>/dev/null || true
         ip -4 route | grep -E ' (sl|brvm0)' | sort || true
         iptables-save -t filter | grep -c SLICE- || true")
}

const OF_A_BRIDGE: [&str; 11] = [
    "ip addr flush dev brvm0",
    "ip addr del 192.168.137.1/24 dev brvm0",
    "ip addr flush dev brvm0; ip addr add 192.168.137.1/24 dev brvm0",
    "ip link set brvm0 down",
    "ip link set brvm0 down; ip link set brvm0 up",
    "ip link set brvm0 address 02:00:00:00:00:99",
    "ip link set brvm0 down; ip link set brvm0 address 02:00:00:00:00:98; ip link set brvm0 up",
    "ip link del brvm0",
    "ip neigh flush dev brvm0 nud permanent",
    // Not disable_ipv6: the kernel reports no change of it on a bridge without carrier on its ports, and the next look sets it back.
    // A kernel that was built without it has nothing to break.
    "ip link set brvm0 type bridge vlan_filtering 1 || true",
    "ip link set brvm0 type bridge vlan_filtering 1 && bridge vlan del vid 1 dev vmtap0 || true",
];

#[test]
fn what_depends_on_a_bridge_comes_back_with_it_within_a_second() {
    all_comes_back("web", &bridge_group("web", 3, WEB), &OF_A_BRIDGE[..7]);
}

#[test]
fn what_depends_on_a_bridge_that_was_made_again_or_set_otherwise_comes_back_within_a_second() {
    all_comes_back("web", &bridge_group("web", 3, WEB), &OF_A_BRIDGE[7..]);
}

#[test]
fn what_depends_on_a_bridge_of_vms_that_are_kept_apart_comes_back_within_a_second() {
    all_comes_back(
        "web",
        &bridge_group("web", 2, APART),
        &[
            OF_A_BRIDGE[0],
            OF_A_BRIDGE[4],
            OF_A_BRIDGE[6],
            OF_A_BRIDGE[7],
        ],
    );
}

#[test]
fn what_isolated_vms_need_of_the_host_comes_back_within_a_second() {
    all_comes_back(
        "sandbox",
        &slots(3, "drop: [\"192.168.1.0/24\"]"),
        &[
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.conf.all.forwarding=0",
            "iptables -F FORWARD",
            "iptables -t raw -F PREROUTING; iptables -t nat -F POSTROUTING",
            "for c in $(iptables -S | grep -o '^-N SLICE-[A-Za-z0-9-]*' | cut -c4-); do iptables -F $c; done",
            "iptables -t nat -F $(iptables -t nat -S | grep -o 'SLICE-[a-z0-9]*-NAT' | head -n1)",
            "ip link set $(ip -o link | grep -o 'sl[a-z0-9]\\{12,\\}' | head -n1) down",
            "ip -4 route flush proto 4; ip route flush table main match 169.254.0.0/16",
        ],
    );
}
