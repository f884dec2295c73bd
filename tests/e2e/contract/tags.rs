//! Tags: filters of lists, changes, the name of a VM.
//! Out of scope: names of VMs that are created (`idempotent`).

use std::process::Command;

use serde_json::{Value, json};
use test_support::harness::{Harness, bridge_group, slots, with_daemon};

use super::client::Api;
use super::{assert_error, with_slots};

fn create(api: &Api, tags: &Value) -> String {
    let created = api.post("/hostgroup/sandbox/nodes", &json!({ "tags": tags }));
    assert_eq!(created.status, 200, "{created:?}");
    created.json()["hostname"]
        .as_str()
        .expect("a name")
        .to_owned()
}

fn found(api: &Api, path: &str) -> Vec<String> {
    let nodes = api.get(path).json();
    let nodes = nodes.as_array().expect("a list").iter();
    let names = nodes.map(|node| node["hostname"].as_str().expect("a name").to_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn lists_are_filtered_by_a_tag_or_by_its_begin() {
    with_slots(|harness, api| {
        let a = create(
            api,
            &json!(["job=1", "free text", "sdk-test", "name=first"]),
        );
        let b = create(api, &json!(["job=12", "sdk-other"]));
        let both = |list: &[&String]| {
            let mut list: Vec<String> = list.iter().map(|name| (*name).clone()).collect();
            list.sort();
            list
        };
        for (query, expected) in [
            ("tag=job=1", both(&[&a])),
            ("tag=job%3D1", both(&[&a])),
            ("tag=free%20text", both(&[&a])),
            ("tag=free+text", both(&[&a])),
            ("tag=name%3Dfirst", both(&[&a])),
            ("tag=job", both(&[])),
            ("tag_prefix=job=1", both(&[&a, &b])),
            ("tag_prefix=sdk-", both(&[&a, &b])),
            ("tag_prefix=sdk-o", both(&[&b])),
            ("tag=nothing", both(&[])),
            ("other=1&tag=sdk-test", both(&[&a])),
        ] {
            assert_eq!(found(api, &format!("/nodes?{query}")), expected, "{query}");
            assert_eq!(
                found(api, &format!("/hostgroup/sandbox/nodes?{query}")),
                expected
            );
        }
        // The Go SDK escapes its query.
        assert_eq!(
            found(api, "/hostgroup/sandbox/nodes%3Ftag=sdk-test"),
            std::slice::from_ref(&a)
        );
        assert_eq!(
            found(api, "/hostgroup/sandbox/nodes%3ftag=name=first"),
            std::slice::from_ref(&a)
        );
        // Those that are KEY=VALUE are tags of slicectl, too.
        let listed = harness.ctl("get vms -l job=12 -o name");
        assert_eq!(listed.trim(), format!("vm/{b}"));
        assert_eq!(
            harness.get(&format!("vm {a}"))["on_demand"]["plain_tags"],
            json!(["free text", "sdk-test"])
        );
    });
}

#[test]
fn tags_are_changed_at_once_and_survive_a_restart() {
    with_slots(|harness, api| {
        let vm = create(api, &json!(["env=ci", "k3s", "name=web"]));
        create(api, &json!(["name=db"]));
        let path = format!("/vm/{vm}/tags");
        let all = json!({"hostname": vm, "tags": ["env=ci", "name=web", "k3s"]});
        assert_eq!(api.get(&path).json(), all);
        // The change, the status, the tags or a part of the sentence.
        let table = [
            (json!({}), Ok(json!(["env=ci", "name=web", "k3s"]))),
            (
                json!({"add": ["a", "a", "env=dev"], "remove": ["k3s"]}),
                Ok(json!(["env=ci", "name=web", "a", "env=dev"])),
            ),
            (
                json!({"add": ["name=other"]}),
                Err((400, "the name of a VM")),
            ),
            (
                json!({"remove": ["name=web"]}),
                Err((400, "the name of a VM")),
            ),
            (
                json!({"replace": [], "add": ["a"]}),
                Err((400, "expected one of them")),
            ),
            (json!({"add": [""]}), Err((400, "it is empty"))),
            (json!({"add": 7}), Err((400, "invalid body"))),
            (
                json!({"replace": ["z", "b=1"]}),
                Ok(json!(["b=1", "name=web", "z"])),
            ),
            (json!({"replace": []}), Ok(json!(["name=web"]))),
            (json!({"name": "db"}), Err((409, "the name db is taken"))),
            (
                json!({"name": "web2", "add": ["x"]}),
                Ok(json!(["name=web2", "x"])),
            ),
            (json!({"name": ""}), Ok(json!(["x"]))),
            (
                json!({"name": "web", "unknown": 1}),
                Ok(json!(["name=web", "x"])),
            ),
        ];
        for (body, expected) in table {
            let answer = api.send("PATCH", &path, Some(&body.to_string()));
            match expected {
                Ok(tags) => {
                    assert_eq!(answer.status, 200, "{body}: {answer:?}");
                    assert_eq!(
                        answer.json(),
                        json!({"hostname": vm, "tags": tags}),
                        "{body}"
                    );
                }
                Err((status, sentence)) => assert_error(&answer, status, sentence),
            }
        }
        let uid = harness.get(&format!("vm {vm}"))["metadata"]["uid"].clone();
        harness.kill();
        harness.start();
        assert_eq!(api.get(&path).json()["tags"], json!(["name=web", "x"]));
        assert_eq!(found(api, "/nodes?tag=x"), std::slice::from_ref(&vm));
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        assert_eq!(
            harness.get(&format!("vm {vm}"))["metadata"]["uid"],
            uid,
            "it is not replaced"
        );
    });
}

#[test]
fn frequent_changes_of_tags_are_no_drift_of_the_host() {
    let bridge = "bridge: brvm0\ntap_prefix: vmtap\ngateway: 192.168.137.1/24";
    for manifest in [slots(0, ""), bridge_group("sandbox", 0, bridge)] {
        with_daemon(|harness| {
            harness.apply(&manifest);
            let api = Api::of(&harness);
            changes_of_tags_are_no_drift(&harness, &api);
        });
    }
}

fn changes_of_tags_are_no_drift(harness: &Harness, api: &Api) {
    let vm = create(api, &json!([]));
    harness.ctl(&format!("wait vm/{vm} --for ready --timeout 20s"));
    for number in 0..10 {
        let tag = format!("change-{number}");
        let path = format!("/vm/{vm}/tags");
        let body = json!({ "replace": [tag] }).to_string();
        assert_eq!(api.send("PATCH", &path, Some(&body)).status, 200);
        // Written, so that each change is reconciled by itself.
        harness.until("the record has the tag", || {
            let written = Command::new("grep")
                .args(["-rqs", &tag])
                .arg(harness.run.join("vm"))
                .status();
            written.is_ok_and(|status| status.success()).then_some(())
        });
    }
    let shown = harness.get(&format!("vm {vm}"));
    assert_eq!(shown["status"]["ready"], true, "{shown}");
    let events = harness.ctl(&format!("events vm/{vm}"));
    for reason in ["Drift", "Contested"] {
        assert!(!events.contains(reason), "{events}");
    }
}
