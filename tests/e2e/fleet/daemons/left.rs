//! Nodes that leave the fleet, get another name, have the name of another host, or are of a cluster that was restored.
//! Out of scope: VMs that are replaced.

use std::time::Duration;

use super::super::hosts::{Fleet, Host, fleet};
use super::lost::until_contact;
use super::{group, nothing_left, ready};

/// Changes the settings file of a host; returns what it was.
fn settings(host: &Host, change: impl FnOnce(&str) -> String) -> String {
    let path = host.harness.dir().join("sliced.yaml");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, change(&text)).expect("written");
    text
}

/// Waits until `slicectl fleet status` of a host has this text.
#[track_caller]
fn until_status(fleet: &Fleet, host: usize, expected: &str) {
    let harness = &fleet.hosts[host].harness;
    fleet.until(expected, |_| {
        let output = harness.try_ctl("fleet status");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).replace('\n', " ");
        text.contains(expected).then_some(())
    });
}

#[track_caller]
fn refused(host: &Host, arguments: &str, expected: &str) {
    let output = host.harness.try_ctl(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments}");
    assert!(text.contains(expected), "{arguments}: {text}");
}

#[test]
fn a_node_that_has_left_the_fleet_deletes_its_copies_when_a_user_asks() {
    fleet(1, 1, |fleet| {
        fleet.apply(&group("web", 2, ""));
        ready(fleet, 2);
        refused(&fleet.hosts[0], "delete hostgroup/web", "is of the fleet");
        // Settings that cannot be used are no departure.
        let text = settings(&fleet.hosts[0], |text| text.replace("key.pem", "no.pem"));
        until_status(fleet, 0, "no.pem");
        refused(&fleet.hosts[0], "delete hostgroup/web", "cannot be asked");
        settings(&fleet.hosts[0], |_| String::new());
        until_status(fleet, 0, "not part of a fleet");
        assert_eq!(fleet.hosts[0].vms().len(), 2);
        fleet.hosts[0].harness.ctl("delete hostgroup/web");
        let host = &fleet.hosts[0];
        fleet.until("nothing is left on the node", |_| {
            (host.vms().is_empty() && host.left().is_empty()).then_some(())
        });
        // In the fleet again it gets the VMs again: their objects were not deleted.
        settings(&fleet.hosts[0], |_| text);
        ready(fleet, 2);
    });
}

#[test]
fn the_copies_of_a_cluster_that_was_replaced_can_be_deleted_when_the_other_is_accepted() {
    fleet(1, 1, |fleet| {
        fleet.apply(&group("web", 2, ""));
        ready(fleet, 2);
        fleet.lab.replace();
        until_contact(fleet, 0, "WrongCluster");
        refused(&fleet.hosts[0], "delete hostgroup/web", "no contact");
        fleet.ctl("fleet accept --yes");
        until_contact(fleet, 0, "Connected");
        assert_eq!(fleet.hosts[0].vms().len(), 2);
        fleet.hosts[0].harness.ctl("delete hostgroup/web");
        nothing_left(fleet);
    });
}

#[test]
fn a_node_with_vms_does_not_connect_with_another_name() {
    fleet(2, 1, |fleet| {
        fleet.apply(&group("web", 4, ""));
        ready(fleet, 4);
        let host = &fleet.hosts[1];
        let text = settings(host, |text| text.replace("node: node-b", "node: node-x"));
        until_status(fleet, 1, "was bound to it by the name node-b");
        assert_eq!(fleet.counts(), [2, 2]);
        let found = fleet
            .lab
            .ctl("get --prefix --keys-only /slice/v1/alive/node-x");
        assert_eq!(found.trim(), "");
        settings(&fleet.hosts[1], |_| text);
        until_contact(fleet, 1, "Connected");
        let vms = ready(fleet, 4);
        assert!(vms.iter().all(|vm| vm["epoch"] == 1), "{vms:?}");
    });
}

#[test]
fn of_two_hosts_with_one_name_the_second_gets_no_contact_and_the_first_keeps_it() {
    fleet(2, 2, |fleet| {
        // Its key under its first name exists until the end of its lease.
        fleet.ctl("node cordon node-b");
        settings(&fleet.hosts[1], |text| {
            text.replace("node: node-b", "node: node-a")
        });
        until_status(fleet, 1, "is of another host with the name node-a");
        fleet.apply(&group("web", 3, ""));
        fleet.until("the first host has all VMs", |fleet| {
            (fleet.counts() == [3, 0]).then_some(())
        });
        // Longer than the time to live of the lease.
        for _ in 0..45 {
            std::thread::sleep(Duration::from_secs(1));
            assert_eq!(super::lost::contact(fleet, 0).as_deref(), Some("Connected"));
            assert_eq!(fleet.counts(), [3, 0]);
        }
    });
}

#[test]
fn the_nodes_report_again_after_a_restored_snapshot_is_accepted() {
    fleet(2, 1, |fleet| {
        fleet.apply(&group("web", 2, ""));
        ready(fleet, 2);
        let snapshot = fleet.lab.snapshot("before");
        // The revision of the last status is far behind that of the snapshot.
        for count in [8, 2, 8, 2] {
            fleet.ctl(&format!("scale hostgroup/web --fleet --count {count}"));
            ready(fleet, count);
        }
        fleet.lab.restore(&snapshot);
        for host in 0..2 {
            fleet.until("the rewound cluster is noticed", |fleet| {
                let reason = super::lost::contact(fleet, host)?;
                matches!(reason.as_str(), "Rewound" | "WrongCluster").then_some(())
            });
        }
        for host in &fleet.hosts {
            host.harness.ctl("fleet accept --yes");
        }
        fleet.ctl("scale hostgroup/web --fleet --count 4");
        ready(fleet, 4);
    });
}
