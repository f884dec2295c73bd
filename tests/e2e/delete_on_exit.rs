//! VMs that are deleted when their guest ends by itself: real guests that power off and reboot, and a daemon that is killed meanwhile.
//! Out of scope: which exit counts as the guest's own (`reconcile::power`).

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use test_support::harness::{Harness, group, signal, slots, with_daemon};
use test_support::linux::{boots, guests, pid, type_line, vmm};
use test_support::tiny::is_alive;

use super::contract::client::Api;
use super::guests::{initrd, kernel};

/// A group of Linux guests on demand.
fn with_group(test: impl FnOnce(&mut Harness, &Api) + Send) {
    with_daemon(|mut harness| {
        let image = initrd(&harness, "");
        harness.apply(&guests(&slots(0, ""), &kernel(), &image, ""));
        let api = Api::of(&harness);
        test(&mut harness, &api);
    });
}

/// A VM that is created by the API.
fn created(api: &Api, body: &Value) -> String {
    let created = api.post("/hostgroup/sandbox/nodes", body);
    assert_eq!(created.status, 200, "{created:?}");
    let name = created.json()["hostname"].clone();
    name.as_str().expect("a name").to_owned()
}

/// Waits until the VM is gone and its group does not recreate it; the event has the reason.
#[track_caller]
fn is_deleted(harness: &Harness, vm: &str, why: &str) {
    harness.ctl(&format!("wait vm/{vm} --for deleted --timeout 60s"));
    assert!(!harness.vms().contains(&vm.to_owned()));
    let events = harness.events("");
    let of_vm = events.iter().filter(|event| {
        event["object"] == json!(format!("vm/{vm}")) && event["reason"] == json!("Deleting")
    });
    let messages: Vec<_> = of_vm
        .filter_map(|event| event["message"].as_str())
        .collect();
    assert!(
        messages.len() == 1 && messages[0].contains(why),
        "{messages:?}"
    );
}

/// That the group has no entry of a VM left, which would create it again.
#[track_caller]
fn is_wanted_by_none(harness: &Harness) {
    let group = harness.get("hg sandbox");
    assert!(group["status"]["on_demand"].is_null(), "{group}");
}

#[test]
fn a_vm_of_the_api_that_is_not_persistent_is_deleted_when_its_guest_powers_off_or_reboots() {
    with_group(|harness, api| {
        for command in ["poweroff -f", "reboot -f"] {
            let vm = created(api, &json!({"tags": ["name=runner"]}));
            boots(harness, &vm, 1);
            type_line(harness, &vm, command);
            is_deleted(harness, &vm, "the guest powered off or rebooted");
            assert_eq!(api.get("/nodes").json(), json!([]));
            is_wanted_by_none(harness);
        }
        // Its friendly name is free again, and a persistent VM is started again.
        let vm = created(api, &json!({"tags": ["name=runner"], "persistent": true}));
        boots(harness, &vm, 1);
        type_line(harness, &vm, "poweroff -f");
        boots(harness, &vm, 2);
    });
}

#[test]
fn no_other_end_deletes_a_vm_that_is_deleted_on_exit() {
    with_group(|harness, api| {
        harness.ctl("vm add sandbox --name job --rm --wait=60s");
        assert!(
            harness
                .ctl("describe vm/job")
                .contains("deleted, if its guest")
        );
        boots(harness, "job", 1);
        // Neither a failure, nor what users request.
        let killed = pid(harness, "job");
        signal(killed, Signal::KILL);
        boots(harness, "job", 2);
        type_line(harness, "job", "echo c > /proc/sysrq-trigger");
        boots(harness, "job", 3);
        harness.ctl("vm restart job --wait=60s");
        boots(harness, "job", 4);
        harness.ctl("vm stop job --wait=60s");
        harness.stays(Duration::from_secs(1), || vmm(harness, "job"));
        harness.ctl("vm start job --wait=60s");
        boots(harness, "job", 5);
        for (times, action) in [(6, ""), (7, "?action=reboot")] {
            let stopped = api.send("POST", &format!("/vm/job/shutdown{action}"), None);
            assert_eq!(stopped.status, 200, "{stopped:?}");
            assert_eq!(api.get("/vm/job").json()["status"], "Stopped");
            harness.stays(Duration::from_millis(500), || vmm(harness, "job"));
            let started = api.send("POST", "/vm/job/relaunch", None);
            assert_eq!(started.status, 200, "{started:?}");
            boots(harness, "job", times);
        }
        type_line(harness, "job", "poweroff -f");
        is_deleted(harness, "job", "the guest powered off or rebooted");

        // Where sliced sees no end, it is not promised.
        harness.apply(&group("plain", 0, "169.254.104.0/22", ""));
        let text = harness.refused("vm add plain --rm", 1);
        assert!(text.contains("hypervisor: none"), "{text}");
        harness.ctl("vm add sandbox --name kept --wait=60s");
        boots(harness, "kept", 1);
        type_line(harness, "kept", "poweroff -f");
        boots(harness, "kept", 2);
    });
}

#[test]
fn a_daemon_that_is_killed_when_a_guest_ends_deletes_the_vm_afterwards_and_runs_it_once() {
    with_group(|harness, api| {
        // Before the guest ends, and at several moments after it: some before its end is stored, some before the deletion is.
        for delay in [
            None,
            Some(0),
            Some(2),
            Some(5),
            Some(10),
            Some(20),
            Some(50),
        ] {
            let vm = created(api, &json!({}));
            boots(harness, &vm, 1);
            let guest = pid(harness, &vm);
            type_line(harness, &vm, "sleep 1; poweroff -f");
            if delay.is_none() {
                harness.kill();
            }
            harness.until("the guest has ended", || (!is_alive(guest)).then_some(()));
            if let Some(delay) = delay {
                std::thread::sleep(Duration::from_millis(delay));
                harness.kill();
            }
            harness.start();
            harness.until(&format!("deleted, {delay:?}"), || {
                harness.vms().is_empty().then_some(())
            });
            is_wanted_by_none(harness);
            let starts = harness.events(&format!("vm/{vm}"));
            let starts = starts.iter().filter(|event| event["reason"] == "Started");
            assert!(starts.count() <= 1, "{delay:?}");
        }
    });
}
