//! Contact that is lost: etcd without a majority, partitions, wiped and restored clusters, daemons that start meanwhile.
//! Out of scope: replacement.

use super::super::hosts::{Fleet, fleet};
use super::{group, nothing_left, ready};

/// The reason of the condition `FleetContact` of a host.
pub(super) fn contact(fleet: &Fleet, host: usize) -> Option<String> {
    let output = fleet.hosts[host].harness.try_ctl("fleet status -o json");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(found["contact"]["reason"].as_str()?.to_owned())
}

#[track_caller]
pub(super) fn until_contact(fleet: &Fleet, host: usize, reason: &str) {
    fleet.until(&format!("contact is {reason}"), |fleet| {
        (contact(fleet, host).as_deref() == Some(reason)).then_some(())
    });
}

#[test]
fn without_a_majority_of_etcd_vms_stay_drift_is_repaired_and_a_daemon_starts_with_its_vms() {
    fleet(2, 2, |fleet| {
        fleet.apply(&group("web", 4, ""));
        ready(fleet, 4);
        let counts = fleet.counts();
        for member in [0, 1] {
            fleet.lab.kill(member);
        }
        until_contact(fleet, 0, "Unreachable");
        // Drift: the namespace of a VM is deleted.
        let host = &fleet.hosts[0];
        let netns = host.left().lines().next().expect("a namespace").to_owned();
        host.run(&format!("ip netns del {netns}"));
        let name = host.vms()[0].clone();
        for name in host.vms() {
            host.harness.until("the VM is repaired", || {
                let vm = host.harness.get(&format!("vm {name}"));
                (vm["status"]["ready"] == true).then_some(())
            });
        }
        let uid = host.harness.get(&format!("vm {name}"))["metadata"]["uid"].clone();
        fleet.hosts[0].harness.kill();
        fleet.hosts[0].harness.start();
        assert_eq!(
            fleet.hosts[0].harness.get(&format!("vm {name}"))["metadata"]["uid"],
            uid
        );
        assert_eq!(fleet.counts(), counts);
        for member in [0, 1] {
            fleet.lab.restart_without_majority(member);
        }
        for host in 0..2 {
            until_contact(fleet, host, "Connected");
        }
        let vms = ready(fleet, 4);
        assert!(vms.iter().all(|vm| vm["epoch"] == 1), "{vms:?}");
        fleet.ctl("delete hostgroup/web --fleet");
        nothing_left(fleet);
    });
}

#[test]
fn a_partitioned_node_keeps_its_vms_and_nothing_else_runs_them() {
    fleet(3, 1, |fleet| {
        fleet.apply(&group("web", 6, ""));
        ready(fleet, 6);
        fleet.hosts[2].cut_off();
        fleet.within(
            std::time::Duration::from_secs(90),
            "the node is Unknown",
            |fleet| {
                let nodes = fleet.get("nodes")?;
                let node = nodes.iter().find(|node| node["name"] == "node-c")?;
                (node["states"][0] == "Unknown").then_some(())
            },
        );
        // More VMs go to the others.
        fleet.ctl("scale hostgroup/web --fleet --count 8");
        fleet.until("the others have the new ones", |fleet| {
            (fleet.counts() == [3, 3, 2]).then_some(())
        });
        fleet.hosts[2].heal();
        let vms = ready(fleet, 8);
        assert!(vms.iter().all(|vm| vm["epoch"] == 1), "{vms:?}");
    });
}

#[test]
fn another_cluster_at_the_same_addresses_deletes_nothing_until_it_is_accepted() {
    fleet(2, 1, |fleet| {
        fleet.apply(&group("web", 4, ""));
        ready(fleet, 4);
        fleet.lab.replace();
        for host in 0..2 {
            until_contact(fleet, host, "WrongCluster");
        }
        assert_eq!(fleet.counts(), [2, 2]);
        let doctor = fleet.hosts[0].harness.try_ctl("doctor");
        let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(text.contains("fleet accept"), "{text}");
        for host in &fleet.hosts {
            host.harness.ctl("fleet accept --yes");
        }
        for host in 0..2 {
            until_contact(fleet, host, "Connected");
        }
        // The objects are not in this cluster: that is no request to delete the VMs.
        assert_eq!(fleet.counts(), [2, 2]);
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert_eq!(fleet.counts(), [2, 2]);
    });
}

#[test]
fn a_restored_snapshot_deletes_nothing_until_it_is_accepted() {
    fleet(2, 1, |fleet| {
        let snapshot = fleet.lab.snapshot("before");
        fleet.apply(&group("web", 4, ""));
        ready(fleet, 4);
        fleet.lab.restore(&snapshot);
        for host in 0..2 {
            fleet.until("the rewound cluster is noticed", |fleet| {
                let reason = contact(fleet, host)?;
                matches!(reason.as_str(), "Rewound" | "WrongCluster").then_some(())
            });
        }
        assert_eq!(fleet.counts(), [2, 2]);
    });
}

#[test]
fn settings_without_a_fleet_leave_its_vms_running() {
    fleet(1, 1, |fleet| {
        fleet.apply(&group("web", 2, ""));
        ready(fleet, 2);
        let host = &mut fleet.hosts[0];
        let path = host.harness.dir().join("sliced.yaml");
        let text = std::fs::read_to_string(&path).expect("readable");
        std::fs::write(&path, "").expect("written");
        host.harness.until("no fleet", || {
            let output = host.harness.try_ctl("fleet status");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            text.contains("not part of a fleet").then_some(())
        });
        assert_eq!(host.vms().len(), 2);
        host.harness.restart();
        assert_eq!(host.vms().len(), 2);
        std::fs::write(&path, text).expect("written");
        until_contact(fleet, 0, "Connected");
        ready(fleet, 2);
    });
}
