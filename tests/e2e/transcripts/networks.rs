//! Groups in bridge and CNI mode, and the way to them.
//! Out of scope: whether packets find that way.

use test_support::cni_networks;
use test_support::harness::{bridge_group, group};
use test_support::kernel::run;
use test_support::transcript::Runner;

#[test]
fn bridge_and_cni_objects_are_shown_without_what_they_do_not_have() {
    cni_networks::with_daemon(|harness, networks| {
        networks.bridge("cni0", "10.77.0.0/24");
        let network = "bridge: brvm0\ntap_prefix: t-web-\ngateway: 192.168.137.1/24\nrange: 192.168.137.20-192.168.137.80";
        harness.apply(&bridge_group("web", 1, network));
        harness.apply(&cni_networks::pod(1));
        harness.apply(&group("sandbox", 1, "169.254.100.0/22", ""));
        let runner = Runner::of(&harness);
        runner.check(&[
            (
                "modes-get-hostgroups-wide",
                "get hg web pod sandbox -o wide",
            ),
            ("modes-get-vms-wide", "get vms -o wide"),
            ("modes-get-leases-wide", "get leases -o wide"),
            ("modes-describe-vm", "describe vm/web-1 vm/pod-1"),
            ("modes-describe-hostgroup", "describe hg web pod"),
            ("modes-describe-lease", "describe lease/web-1"),
            ("modes-get-vm-json", "get vm/web-1 -o json"),
            ("explain-bridge", "explain web-1 8.8.8.8"),
            ("route-offline", "route web"),
            ("route-via", "route web --via 10.9.8.7"),
            ("route-same-subnet", "route web --via 192.168.137.9"),
            ("route-isolated", "route sandbox"),
            ("route-cni", "route pod"),
            ("route-missing", "route none-such"),
        ]);
        run("ip link add eth0 type veth peer name uplink; ip link set uplink up; ip link set eth0 up
             ip addr add 192.168.1.20/24 dev eth0; ip route add default via 192.168.1.1");
        runner.check(&[
            ("route", "route web"),
            ("route-json", "route hostgroup/web -o json"),
        ]);
    });
}
