//! Several daemons with one desired state: placement, deletion, outages, wiped clusters, drains.
//! Out of scope: the client and the scheduler alone.

mod clock;
mod files;
mod left;
mod lost;
mod replaced;
mod started;
mod storm;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::hosts::{Fleet, fleet};

/// A group of slots.
pub(super) fn group(name: &str, count: u32, placement: &str) -> String {
    format!(
        "config:
  host_groups:
    - name: {name}
      count: {count}
      vcpu: 1
      ram_mb: 128
      hypervisor: none
      {placement}
      network:
        mode: isolated
        allow: [1.1.1.1/32]
"
    )
}

/// The number of VMs in each state.
pub(super) fn states(vms: &[Value]) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    for vm in vms {
        let state = vm["state"].as_str().unwrap_or_default().to_owned();
        *states.entry(state).or_default() += 1;
    }
    states
}

/// Waits until so many VMs exist and all are Ready; the VMs.
#[track_caller]
pub(super) fn ready(fleet: &Fleet, count: usize) -> Vec<Value> {
    fleet.until(&format!("{count} VMs are Ready"), |fleet| {
        let vms = fleet.get("vms --fleet")?;
        let is_ready = states(&vms).get("Ready") == Some(&count) && vms.len() == count;
        is_ready.then_some(vms)
    })
}

/// Waits until no VM exists anywhere.
#[track_caller]
pub(super) fn nothing_left(fleet: &Fleet) {
    fleet.until("nothing is left", |fleet| {
        let is_empty = fleet.get("vms --fleet")?.is_empty()
            && fleet.get("hostgroups --fleet")?.is_empty()
            && fleet.counts().iter().all(|count| *count == 0);
        is_empty.then_some(())
    });
    for host in &fleet.hosts {
        fleet.until("no namespace is left", |_| {
            host.left().is_empty().then_some(())
        });
        assert!(host.harness.get("hostgroups")["items"] == serde_json::json!([]));
    }
    let left = fleet.lab.ctl("get --prefix --keys-only /slice/v1/status/");
    assert_eq!(left.trim(), "");
}

#[test]
fn twelve_vms_are_spread_over_three_nodes_scaled_and_deleted() {
    fleet(3, 3, |fleet| {
        fleet.apply(&group("web", 12, ""));
        let vms = ready(fleet, 12);
        assert_eq!(fleet.counts(), [4, 4, 4]);
        // The same names on the nodes and in the fleet.
        let mut local: Vec<String> = fleet.hosts.iter().flat_map(|host| host.vms()).collect();
        let mut names: Vec<String> = vms
            .iter()
            .map(|vm| vm["metadata"]["name"].as_str().expect("a name").to_owned())
            .collect();
        local.sort();
        names.sort();
        assert_eq!(local, names);
        assert!(vms.iter().all(|vm| vm["address"].is_string()), "{vms:?}");
        // A VM of the fleet is not changed by one node alone.
        for (words, expected) in [
            ("vm delete web-1", "of the fleet"),
            ("delete hostgroup/web", "of the fleet"),
            ("scale hostgroup/web --count 1", "of the fleet"),
            ("vm add web", "of the fleet"),
        ] {
            let holder = fleet
                .hosts
                .iter()
                .find(|host| host.vms().contains(&"web-1".to_owned()))
                .expect("a node has web-1");
            let output = holder.harness.try_ctl(words);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && text.contains(expected),
                "{words}: {text}"
            );
        }
        fleet.ctl("scale hostgroup/web --fleet --count 5");
        let vms = ready(fleet, 5);
        let left: Vec<u64> = vms.iter().filter_map(|vm| vm["index"].as_u64()).collect();
        assert_eq!(left, [1, 2, 3, 4, 5]);
        fleet.ctl("delete hostgroup/web --fleet");
        nothing_left(fleet);
    });
}

#[test]
fn a_vm_that_a_user_deletes_on_its_node_is_made_again_there() {
    fleet(1, 1, |fleet| {
        fleet.apply(&group("web", 2, ""));
        ready(fleet, 2);
        let uid = |fleet: &Fleet| fleet.hosts[0].harness.get("vm web-1")["metadata"]["uid"].clone();
        let before = uid(fleet);
        fleet.ctl("delete vm/web-1");
        fleet.until("another VM", |fleet| (uid(fleet) != before).then_some(()));
        let vms = ready(fleet, 2);
        assert!(vms.iter().all(|vm| vm["epoch"] == 1), "{vms:?}");
    });
}

#[test]
fn a_drained_node_has_no_vm_and_gets_none_until_it_is_uncordoned() {
    fleet(3, 1, |fleet| {
        fleet.apply(&group("web", 9, "placement: {max_unavailable: 3}"));
        ready(fleet, 9);
        fleet.ctl("node drain node-b --timeout 60s");
        ready(fleet, 9);
        assert_eq!(fleet.counts()[1], 0);
        fleet.until("nothing of the VMs is left on the node", |fleet| {
            fleet.hosts[1].left().is_empty().then_some(())
        });
        fleet.ctl("scale hostgroup/web --fleet --count 12");
        ready(fleet, 12);
        assert_eq!(fleet.counts()[1], 0);
        fleet.ctl("node uncordon node-b");
        fleet.ctl("scale hostgroup/web --fleet --count 15");
        ready(fleet, 15);
        assert_eq!(fleet.counts()[1], 3);
    });
}

#[test]
fn a_change_of_a_group_reaches_its_vms_one_after_the_other() {
    fleet(3, 1, |fleet| {
        fleet.apply(&group("web", 6, ""));
        let before = ready(fleet, 6);
        let changed = group("web", 6, "").replace("ram_mb: 128", "ram_mb: 256");
        fleet.apply(&changed);
        let mut most = 0;
        let after = fleet.until("all VMs have the new spec", |fleet| {
            let vms = fleet.get("vms --fleet")?;
            let unavailable = vms.iter().filter(|vm| vm["state"] != "Ready").count();
            most = most.max(unavailable);
            let all = vms.iter().all(|vm| vm["group_generation"] == 2);
            (all && unavailable == 0).then_some(vms)
        });
        assert!(most <= 1, "{most} were unavailable at once");
        let uids = |vms: &[Value]| -> Vec<Value> {
            vms.iter().map(|vm| vm["metadata"]["uid"].clone()).collect()
        };
        assert_eq!(uids(&before), uids(&after));
        // The generation is that of the object: the node of the last one may not have it yet.
        for host in &fleet.hosts {
            fleet.until("the VMs of the node have the new spec", |_| {
                let ram = |name: &String| {
                    let vm = host.harness.get(&format!("vm {name}"));
                    vm["spec"]["ram_bytes"].as_u64()
                };
                let names = host.vms();
                names
                    .iter()
                    .all(|name| ram(name) == Some(256 << 20))
                    .then_some(())
            });
        }
        ready(fleet, 6);
    });
}

#[test]
fn vms_that_no_node_can_run_are_pending_with_the_reason() {
    fleet(2, 1, |fleet| {
        fleet.apply(&group("web", 2, "placement: {node_selector: {zone: z}}"));
        let vms = fleet.until("two pending VMs", |fleet| {
            let vms = fleet.get("vms --fleet")?;
            (vms.len() == 2).then_some(vms)
        });
        let message = "0/2 nodes are available: 2 labels do not match.";
        assert!(
            vms.iter()
                .all(|vm| vm["state"] == "Pending" && vm["message"] == message),
            "{vms:?}"
        );
        fleet.apply(&group("web", 2, "placement: {node_selector: {zone: b}}"));
        ready(fleet, 2);
        assert_eq!(fleet.counts(), [0, 2]);
    });
}

#[test]
fn a_drain_to_a_node_that_refuses_the_vms_ends_on_another_one() {
    fleet(3, 1, |fleet| {
        // The group exists on node-b, and is not of the fleet there.
        let own = fleet.hosts[1].harness.dir().join("own.yaml");
        std::fs::write(&own, group("web", 1, "")).expect("written");
        fleet.hosts[1]
            .harness
            .ctl(&format!("apply -f {}", own.display()));
        fleet.apply(&group(
            "web",
            4,
            "placement: {node_selector: {zone: a}, max_unavailable: 2}",
        ));
        ready(fleet, 4);
        assert_eq!(fleet.counts(), [4, 1, 0]);
        fleet.apply(&group("web", 4, "placement: {max_unavailable: 2}"));
        fleet.ctl("node drain node-a --timeout 90s");
        let vms = ready(fleet, 4);
        assert!(vms.iter().all(|vm| vm["node"] == "node-c"), "{vms:?}");
        assert_eq!(fleet.counts(), [0, 1, 4]);
    });
}

#[test]
fn each_node_has_a_subnet_of_a_group_in_bridge_mode_and_as_many_vms_as_it_has_addresses() {
    fleet(2, 1, |fleet| {
        let manifest = "config: {host_groups: [{name: br, count: 8, hypervisor: none,
            network: {mode: bridge, bridge: br7, tap_prefix: bt},
            placement: {subnets: {pool: 10.90.0.0/24, prefix_len: 29}}}]}\n";
        fleet.apply(manifest);
        let vms = ready(fleet, 8);
        assert_eq!(fleet.counts(), [4, 4]);
        let addresses: std::collections::BTreeSet<&str> = vms
            .iter()
            .map(|vm| vm["address"].as_str().expect("an address"))
            .collect();
        assert_eq!(addresses.len(), 8, "{addresses:?}");
        let subnets = fleet.ctl("fleet subnets -o json");
        let subnets: Value = serde_json::from_str(&subnets).expect("JSON");
        let subnets = subnets["items"].as_array().expect("items");
        let subnets: Vec<ipnetwork::Ipv4Network> = subnets
            .iter()
            .map(|item| {
                item["subnet"]
                    .as_str()
                    .expect("a subnet")
                    .parse()
                    .expect("a subnet")
            })
            .collect();
        assert_eq!(subnets.len(), 2);
        for address in addresses {
            let address = address.parse().expect("an address");
            let of = subnets.iter().filter(|subnet| subnet.contains(address));
            assert_eq!(of.count(), 1, "{address}");
        }
        // A /29 has addresses for five VMs.
        fleet.ctl("scale hostgroup/br --fleet --count 11");
        let pending = fleet.until("ten VMs are Ready", |fleet| {
            let vms = fleet.get("vms --fleet")?;
            let found = states(&vms);
            let is_done = found.get("Ready") == Some(&10) && found.get("Pending") == Some(&1);
            let pending = vms.iter().find(|vm| vm["state"] == "Pending")?.clone();
            is_done.then_some(pending)
        });
        assert_eq!(
            pending["message"],
            "0/2 nodes are available: 2 no free address in its subnet."
        );
        fleet.ctl("delete hostgroup/br --fleet");
        nothing_left(fleet);
        let left = fleet.lab.ctl("get --prefix --keys-only /slice/v1/ranges/");
        assert_eq!(left.trim(), "");
    });
}

#[test]
fn of_200_vms_for_192_networks_192_are_placed_none_twice_and_8_wait_with_the_reason() {
    fleet(3, 2, |fleet| {
        // A /24 has 64 /30 networks on each node.
        let manifest = group("web", 200, "").replace(
            "mode: isolated",
            "mode: isolated\n        range: 169.254.100.0/24",
        );
        fleet.apply(&manifest);
        let pending = fleet.within(Duration::from_secs(120), "192 VMs are Ready", |fleet| {
            let vms = fleet.get("vms --fleet")?;
            let found = states(&vms);
            let is_done = found.get("Ready") == Some(&192) && found.get("Pending") == Some(&8);
            let pending: Vec<Value> = vms
                .into_iter()
                .filter(|vm| vm["state"] == "Pending")
                .collect();
            is_done.then_some(pending)
        });
        let reason = "0/3 nodes are available: 3 no free /30 network.";
        assert!(
            pending.iter().all(|vm| vm["message"] == reason),
            "{pending:?}"
        );
        assert_eq!(fleet.counts(), [64, 64, 64]);
        let local = fleet.hosts.iter().flat_map(|host| host.vms());
        let local: std::collections::BTreeSet<String> = local.collect();
        assert_eq!(local.len(), 192, "each name is on one node");
        fleet.ctl("scale hostgroup/web --fleet --count 192");
        ready(fleet, 192);
        fleet.ctl("delete hostgroup/web --fleet");
        nothing_left(fleet);
    });
}
