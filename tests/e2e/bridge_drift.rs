//! Drift of what a bridge group has: seen through events and repaired within 2 s, with an event that names it.
//! Out of scope: how each repair is planned.

use std::time::Duration;

use test_support::harness::{self, Harness, bridge_group, with_daemon};
use test_support::kernel::run;

/// The specification's.
const BOUND: Duration = Duration::from_secs(2);

const WEB: &str = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";

/// Breaks something with a command that is told the first guest's MAC; all must stand as before in time, and an event of
/// `object` must speak of `word`. The TAP of the VM beside it stays.
fn repaired(object: &str, word: &str, sabotage: &str) {
    with_daemon(|harness| {
        harness.apply(&bridge_group("web", 2, WEB));
        let mac = harness.get("vm web-1")["status"]["network"]["mac"].clone();
        let world = harness::world();
        let beside = || run("ip -o link show vmtap1 | cut -d: -f1");
        let index = beside();
        assert_eq!(
            drift(&harness, ""),
            [""; 0],
            "before anybody broke anything"
        );
        run(&sabotage.replace("MAC", mac.as_str().unwrap()));
        harness.within(BOUND, word, || {
            let reported = drift(&harness, object)
                .iter()
                .any(|message| message.contains(word));
            (reported && harness::world() == world).then_some(())
        });
        harness.ctl("wait hg/web --for ready --timeout 10s");
        assert_eq!(beside(), index, "the TAP beside it is another one");
        if object != "host" {
            assert_eq!(drift(&harness, "vm/web-2"), [""; 0]);
        }
    });
}

fn drift(harness: &Harness, object: &str) -> Vec<String> {
    harness.messages(object, "Drift")
}

macro_rules! repaired {
    ($($name:ident: $object:literal, $word:literal, $sabotage:expr;)*) => {$(
        #[test]
        fn $name() {
            repaired($object, $word, $sabotage);
        }
    )*};
}

repaired! {
    a_deleted_tap_comes_back: "vm/web-1", "create the TAP", "ip link del vmtap0";
    a_tap_that_is_down_comes_up: "vm/web-1", "turn forwarding on", "ip link set vmtap0 down";
    a_tap_taken_off_its_bridge_comes_back: "vm/web-1", "make the TAP a port",
        "ip link set vmtap0 nomaster";
    a_deleted_filter_comes_back: "vm/web-1", "set filter", "tc filter del dev vmtap0 ingress";
    a_deleted_hook_comes_back: "vm/web-1", "set filter", "tc qdisc del dev vmtap0 clsact";
    a_flag_of_a_port_comes_back: "vm/web-1", "set isolation",
        "bridge link set dev vmtap0 isolated on";
    a_deleted_entry_of_a_bridge_comes_back: "vm/web-1", "pin the guest's MAC to the port",
        "bridge fdb del MAC dev vmtap0 master";
    a_deleted_neighbour_on_a_bridge_comes_back: "vm/web-1", "pin the guest's MAC on the bridge",
        "ip neigh flush nud permanent dev brvm0 to $(ip neigh show dev brvm0 nud permanent | grep MAC | cut -d' ' -f1)";
    a_deleted_bridge_comes_back: "host", "create bridge brvm0", "ip link del brvm0";
    a_bridge_that_is_down_comes_up: "host", "set bridge brvm0 up", "ip link set brvm0 down";
    a_removed_address_of_a_bridge_comes_back: "host", "add address 192.168.137.1/24",
        "ip addr flush dev brvm0";
    a_flushed_chain_for_bridges_comes_back: "host", "write host chains filter",
        "iptables -F $(iptables -S | grep -o 'SLICE-[a-z0-9]*-BR' | head -n1)";
    a_removed_masquerade_of_a_bridge_comes_back: "host", "write host chains nat",
        "iptables -t nat -F $(iptables -t nat -S | grep -o 'SLICE-[a-z0-9]*-NAT' | head -n1)";
}
