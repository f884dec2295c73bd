//! The host network and its bridges, managed and unmanaged.
//! Out of scope: VMs' ports, but where a bridge must be left as it was found.

use serde_json::Value;
use slicectl::host::iptables::Backend;
use slicectl::owner;
use slicectl::store::HostRequirements;

use crate::bridge_stages::host::{Host, requirements};
use test_support::kernel::{self, Canaries, Neighbour};

/// A link as `ip` shows it, without clocks and counters.
fn shown(link: &str) -> Value {
    let mut all = Value::Array(vec![
        kernel::ip(&format!("link show dev {link}")),
        kernel::ip(&format!("addr show dev {link}")),
        kernel::ip(&format!("route show dev {link}")),
        kernel::ip(&format!("neigh show dev {link} nud permanent")),
    ]);
    without_clocks(&mut all);
    all
}

fn without_clocks(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(without_clocks),
        Value::Object(fields) => {
            // What a bridge can have segmented for it is the least of what its ports can (`br_set_gso_limits`).
            let passing = ["promiscuity", "tso_max_size"];
            fields.retain(|key, _| !key.ends_with("_timer") && !passing.contains(&key.as_str()));
            fields.values_mut().for_each(without_clocks);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A machine behind the link `nic0`.
fn attach_lan(address: &str) {
    let lan = Neighbour::alone("lan");
    kernel::run("ip link add nic0 type veth peer name eth0 netns lan && ip link set nic0 up");
    lan.run(&format!(
        "ip addr add {address} dev eth0 && ip link set eth0 up"
    ));
}

#[test]
fn a_bridge_of_ours_is_made_kept_readdressed_and_removed() {
    kernel::private(async {
        let canaries = Canaries::release();
        let mut host = Host::new().await;
        let one = || requirements("brvm0", &["192.168.137.1/24"]);
        let taken = host.converge_host_network(one()).await;
        assert!(
            taken.contains(&"create bridge brvm0".to_owned()),
            "{taken:?}"
        );
        let link = &kernel::ip("link show brvm0")[0];
        let mac = owner::bridge_mac(&host.instance, "brvm0").to_string();
        assert_eq!(link["address"], mac.as_str());
        assert_eq!(link["mtu"], 1500);
        assert_eq!(
            link["ifalias"],
            host.instance.host_network_label().to_string().as_str()
        );
        let info = &link["linkinfo"]["info_data"];
        assert_eq!(
            (info["stp_state"].as_u64(), info["forward_delay"].as_u64()),
            (Some(0), Some(0))
        );
        let right = shown("brvm0");

        for wrong in [
            "ip link set brvm0 down",
            "ip link set brvm0 type bridge stp_state 1",
            "ip link set brvm0 type bridge forward_delay 1500",
            "ip link set brvm0 mtu 1400",
            "ip link set brvm0 address 02:00:00:00:00:99",
            "ip addr flush dev brvm0",
            "ip link del brvm0",
            "ip link set brvm0 alias ''",
        ] {
            kernel::run(wrong);
            let taken = host.converge_host_network(one()).await;
            assert!(!taken.is_empty(), "{wrong} was not seen");
            let mut now = shown("brvm0");
            let mut right = right.clone();
            for all in [&mut now, &mut right] {
                without(all, "ifindex");
            }
            assert_eq!(now, right, "{wrong}");
        }

        kernel::run("ip addr add 10.9.9.1/24 dev brvm0");
        let both = requirements("brvm0", &["192.168.137.1/24", "192.168.137.254/24"]);
        host.converge_host_network(both).await;
        let taken = host
            .converge_host_network(requirements("brvm0", &["192.168.137.254/24"]))
            .await;
        // The limits are written for the networks of the host's links.
        let taken: Vec<_> = taken
            .iter()
            .filter(|step| !step.contains("LIMIT"))
            .collect();
        assert_eq!(taken[0], "remove address 192.168.137.1/24 from brvm0");
        let has = |address: &str| kernel::run("ip -4 -o addr show dev brvm0").contains(address);
        assert!(!has("137.1/24") && has("137.254/24"));
        assert!(has("10.9.9.1/24"), "an address of somebody else's");

        // Between its birth and its label a crash may fall.
        kernel::run("ip link set brvm0 alias ''");
        let taken = host
            .converge_host_network(HostRequirements::default())
            .await;
        assert!(
            taken.contains(&"delete bridge brvm0".to_owned()),
            "{taken:?}"
        );
        assert!(!kernel::attempt("ip link show brvm0").status.success());
        canaries.assert_alive();
    });
}

fn without(value: &mut Value, key: &str) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(|value| without(value, key)),
        Value::Object(fields) => {
            fields.remove(key);
            fields.values_mut().for_each(|value| without(value, key));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn a_bridge_of_a_users_is_used_and_left_as_it_was_found() {
    kernel::private(async {
        let canaries = Canaries::release();
        let mut host = Host::new().await;
        attach_lan("192.168.137.77/24");
        kernel::run(
            "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6
             ip link add br0 type bridge stp_state 0
             ip link set nic0 mtu 1400 master br0
             ip link set br0 up
             ip addr add 192.168.137.1/24 dev br0
             for i in $(seq 100); do
                 grep -q up /sys/class/net/br0/operstate && break
                 sleep 0.05
             done",
        );
        let look = || {
            (
                shown("br0"),
                shown("nic0"),
                kernel::rules("filter"),
                kernel::rules("nat"),
            )
        };
        let before = look();
        host.converge_host_network(requirements("br0", &["192.168.137.1/24"]))
            .await;
        let wishes = [host.desired_vm(2, "br0"), host.desired_vm(3, "br0")];
        let mut guests = Vec::new();
        for desired_vm in &wishes {
            guests.push(host.vm(desired_vm).await);
        }
        let mut used = shown("br0");
        // The two VMs' neighbours are there as long as they are.
        used[3] = before.0[3].clone();
        assert_eq!(used, before.0);
        assert_eq!(kernel::ip("link show vmtap2")[0]["mtu"], 1400);
        let lan = "192.168.137.77".parse().unwrap();
        assert!((0..50).any(|_| guests[0].resolve(lan).is_some()), "no LAN");
        drop(guests);
        for desired_vm in &wishes {
            host.tear_down(desired_vm).await;
        }
        host.converge_host_network(HostRequirements::default())
            .await;
        assert_eq!(look(), before);
        canaries.assert_alive();
    });
}

#[test]
fn where_another_machine_is_the_gateway_the_host_only_bridges() {
    kernel::private(async {
        let mut host = Host::new().await;
        attach_lan("192.168.137.254/24");
        kernel::run(
            "ip link add br0 type bridge
             ip link set nic0 master br0
             ip link set br0 up
             ip addr add 192.168.137.9/24 dev br0",
        );
        let nat = kernel::rules("nat");
        host.converge_host_network(requirements("br0", &["192.168.137.254/24"]))
            .await;
        assert_eq!(kernel::rules("nat"), nat);
        let accepted: Vec<_> = kernel::rules("filter")
            .into_iter()
            .filter(|rule| rule.ends_with("-j ACCEPT"))
            .collect();
        assert_eq!(accepted.len(), 2);
        assert!(
            accepted.iter().all(|rule| rule.contains("-i br0 -o br0")),
            "{accepted:?}"
        );
        let guest = host.vm(&host.desired_vm(2, "br0")).await;
        let gateway = "192.168.137.254".parse().unwrap();
        assert!((0..50).any(|_| guest.resolve(gateway).is_some()));
    });
}

#[test]
fn a_link_that_is_no_bridge_stops_its_own_vms_only() {
    kernel::private(async {
        let mut host = Host::new().await;
        kernel::run("ip link add eth7 type veth peer name eth8 && ip link set eth7 up");
        let before = shown("eth7");
        let mut both = requirements("eth7", &["192.168.138.1/24"]);
        both.bridges
            .extend(requirements("brvm0", &["192.168.137.1/24"]).bridges);
        host.converge_host_network(both).await;
        assert!(!kernel::run("iptables-save").contains("eth7"));
        host.vm(&host.desired_vm(2, "brvm0")).await;
        let why = host
            .port_diff(&host.desired_vm(3, "eth7"))
            .await
            .unwrap_err();
        assert!(
            why.contains("link eth7 is not ours: it is not a bridge"),
            "{why}"
        );
        let why = host
            .port_diff(&host.desired_vm(3, "br7"))
            .await
            .unwrap_err();
        assert!(why.contains("br7: it does not exist yet"), "{why}");
        host.converge_host_network(HostRequirements::default())
            .await;
        assert_eq!(shown("eth7"), before);
    });
}

#[test]
fn the_number_of_rules_does_not_depend_on_the_number_of_vms() {
    kernel::private(async {
        let mut host = Host::new().await;
        host.converge_host_network(requirements("brvm0", &["192.168.137.1/24"]))
            .await;
        let rules = kernel::run("iptables-save | grep -c ^-A");
        for number in 2..8 {
            host.vm(&host.desired_vm(number, "brvm0")).await;
        }
        assert_eq!(kernel::run("iptables-save | grep -c ^-A"), rules);
        assert!(Backend::detect().is_ok());
    });
}

#[test]
fn a_bridge_of_a_users_without_other_ports_keeps_its_mac() {
    kernel::private(async {
        let mut host = Host::new().await;
        kernel::run("ip link add br0 type bridge && ip link set br0 up");
        let mac = || kernel::ip("link show br0")[0]["address"].clone();
        let before = mac();
        host.converge_host_network(requirements("br0", &["192.168.137.1/24"]))
            .await;
        let wishes: Vec<_> = (2..6)
            .map(|number| host.desired_vm(number, "br0"))
            .collect();
        let ports = wishes.iter().map(|desired_vm| host.port(desired_vm));
        futures::future::join_all(ports).await;
        assert_eq!(mac(), before);
        for desired_vm in &wishes {
            host.tear_down(desired_vm).await;
            assert_eq!(mac(), before);
        }
    });
}
