//! Requests that are sent again because their answer was lost: no VM twice, none lost.
//! Out of scope: crashes between the actions of a bring-up (`tests/kernel/crash`).

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use test_support::harness::Harness;

use super::client::Api;
use super::{assert_error, with_slots};

const CREATE: &str = "/hostgroup/sandbox/nodes";

fn named(label: &str) -> Value {
    json!({"tags": [format!("name={label}")]})
}

/// The names of the VMs with this friendly name.
fn with_name(api: &Api, label: &str) -> Vec<String> {
    let nodes = api.get(&format!("/nodes?tag=name={label}")).json();
    let nodes = nodes.as_array().expect("a list").iter();
    nodes
        .map(|node| node["hostname"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn a_create_that_is_sent_again_is_a_conflict_and_never_a_second_vm() {
    with_slots(|harness, api| {
        let first = api.post(CREATE, &named("web"));
        assert_eq!(first.status, 200);
        let first = first.json()["hostname"]
            .as_str()
            .expect("a name")
            .to_owned();
        assert_error(
            &api.post(CREATE, &named("web")),
            409,
            "the name web is taken",
        );
        assert_eq!(with_name(api, "web"), std::slice::from_ref(&first));
        // A name of a VM is none for another one, and the VM of another group counts.
        let other = test_support::harness::group("other", 0, "169.254.104.0/22", "");
        harness.apply(&other);
        assert_error(
            &api.post("/hostgroup/other/nodes", &named("web")),
            409,
            "taken",
        );
        harness.ctl("vm add other --name own --wait");
        assert_error(
            &api.post(CREATE, &named("own")),
            409,
            "it is that of vm/own",
        );
        // At the same time: one of them is the first.
        let statuses = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let answer = api.post(CREATE, &named("race"));
                    statuses.lock().expect("not poisoned").push(answer.status);
                });
            }
        });
        let mut statuses = statuses.into_inner().expect("not poisoned");
        statuses.sort_unstable();
        assert_eq!(statuses[0], 200);
        assert_eq!(statuses[1..], [409; 15]);
        assert_eq!(with_name(api, "race").len(), 1);
        // After a deletion the name is free, at once.
        assert_eq!(
            api.delete(&format!("/hostgroup/sandbox/nodes/{first}"))
                .status,
            200
        );
        assert_eq!(api.post(CREATE, &named("web")).status, 200);
        // slicectl has no such rule.
        harness.ctl("vm add other --tag name=web");
    });
}

/// Sends a request until it is answered, as a client does after its connection is lost.
fn insist(api: &Api, label: &str) -> u16 {
    let body = named(label).to_string();
    for _ in 0..2000 {
        if let Some(answer) = api.send_bytes("POST", CREATE, Some(body.as_bytes()))
            && answer.status != 503
        {
            return answer.status;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no answer");
}

#[test]
fn kill_9_between_a_create_and_its_answer_makes_no_vm_twice_and_loses_none() {
    with_slots(|harness, api| {
        const CLIENTS: usize = 8;
        const EACH: usize = 6;
        let done = Mutex::new(BTreeSet::new());
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let done = &done;
                scope.spawn(move || {
                    for number in 0..EACH {
                        let label = format!("c{client}x{number}");
                        let status = insist(api, &label);
                        assert!([200, 409].contains(&status), "{label}: {status}");
                        done.lock().expect("not poisoned").insert(label);
                    }
                });
            }
            for pause in [150, 300, 90, 450, 30] {
                std::thread::sleep(Duration::from_millis(pause));
                harness.kill();
                harness.start();
            }
        });
        let done = done.into_inner().expect("not poisoned");
        assert_eq!(done.len(), CLIENTS * EACH);
        check(harness, api, &done);
        harness.kill();
        harness.start();
        check(harness, api, &done);
    });
}

fn check(harness: &Harness, api: &Api, labels: &BTreeSet<String>) {
    for label in labels {
        assert_eq!(with_name(api, label).len(), 1, "{label}");
    }
    harness.until("all are ready", || {
        let group = harness.get("hg sandbox");
        let all = labels.len() as u64 + 1;
        (group["status"]["ready_count"] == all && group["status"]["current"] == all).then_some(())
    });
}
