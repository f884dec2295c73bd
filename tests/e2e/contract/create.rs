//! Creating and deleting VMs: bodies, answers, waits.
//! Out of scope: requests that are sent again (`idempotent`).

use std::time::{Duration, Instant};

use serde_json::json;

use super::{agent_on, assert_error, guest, socket_of, with_slots, with_vmm};

#[test]
fn bodies_of_all_clients_are_accepted_and_answered_with_an_address() {
    with_slots(|harness, api| {
        // No body, empty, null, and fields of other versions are the same.
        let bodies = [
            None,
            Some(""),
            Some("null"),
            Some("{}"),
            Some(
                r#"{"count":1,"github_user":"","disk_image":"","gpu_count":0,"persistent":true,"later":{}}"#,
            ),
            Some(
                r#"{"cpus":0,"ram_bytes":0,"tags":null,"ssh_keys":[],"secrets":[],"network":null,"userdata":""}"#,
            ),
            Some(r#"{"cpus":1,"ram_bytes":134217728}"#),
        ];
        for body in bodies {
            let answer = api.send("POST", "/hostgroup/sandbox/nodes", body);
            assert_eq!(answer.status, 200, "{body:?}: {answer:?}");
            let created = answer.json();
            let name = created["hostname"].as_str().expect("a name");
            assert!(name.starts_with("sandbox-"), "{name}");
            assert_eq!(created["hostgroup"], "sandbox");
            let ip = created["ip"].as_str().expect("a text");
            assert!(
                ip.parse::<ipnetwork::Ipv4Network>()
                    .is_ok_and(|it| it.prefix() == 30),
                "{ip}"
            );
            let created_at = created["created_at"].as_str().expect("a text");
            assert!(created_at.parse::<jiff::Timestamp>().is_ok());
            assert!(["amd64", "arm64"].contains(&created["arch"].as_str().expect("a text")));
            // Lists have the same address without its length.
            let nodes = api.get("/nodes").json();
            let mut nodes = nodes.as_array().expect("a list").iter();
            let node = nodes.find(|node| node["hostname"] == name).expect("the VM");
            assert_eq!(format!("{}/30", node["ip"].as_str().expect("a text")), ip);
            assert_eq!(harness.place(name).ip, node["ip"]);
            // It is the same object as one of slicectl.
            let vm = harness.get(&format!("vm {name}"));
            assert!(vm["on_demand"].is_object(), "{vm}");

            let deleted = api.delete(&format!("/hostgroup/sandbox/nodes/{name}"));
            assert_eq!(deleted.status, 200);
            let deleted = deleted.json();
            assert_eq!(deleted["disk_removed"], "true", "a text");
            assert!(deleted["message"].is_string());
            assert!(
                harness.get(&format!("vm {name}")).is_null(),
                "it is removed"
            );
            let again = api.delete(&format!("/hostgroup/sandbox/nodes/{name}"));
            assert_error(&again, 404, "not found");
        }
    });
}

#[test]
fn lists_of_a_vm_replace_those_of_its_group_or_are_inherited_and_are_described() {
    with_slots(|_, api| {
        let inherited = json!(["10.0.0.0/8"]);
        // The request, the override that is described, what is in effect.
        let table = [
            (
                json!({}),
                json!(null),
                json!({"allow": inherited, "drop": []}),
            ),
            (
                json!({"network": {"allow": ["1.1.1.1"]}}),
                json!({"allow": ["1.1.1.1"]}),
                json!({"allow": ["1.1.1.1"], "drop": []}),
            ),
            (
                json!({"network": {"allow": [], "drop": ["8.8.8.8"]}}),
                json!({"allow": [], "drop": ["8.8.8.8"]}),
                json!({"allow": [], "drop": ["8.8.8.8"]}),
            ),
        ];
        for (body, overrides, effective) in table {
            let created = api.post("/hostgroup/sandbox/nodes", &body).json();
            let name = created["hostname"].as_str().expect("a name").to_owned();
            let described = api.get(&format!("/vm/{name}")).json();
            let network = &described["network"];
            assert_eq!(network["mode"], "isolated");
            assert_eq!(
                network["host_group"],
                json!({"allow": inherited, "drop": []})
            );
            assert_eq!(network["effective"], effective, "{body}");
            assert_eq!(network.get("override").unwrap_or(&json!(null)), &overrides);
            let source = if overrides.is_null() {
                "hostgroup"
            } else {
                "vm"
            };
            assert_eq!(network["policy_source"], source);
            assert_eq!(described["hostname"], name);
            assert_eq!(described["storage"], "none");
            assert_eq!(described["open_agent_connections"], 0);
            assert!(described.get("bg_execs").is_none(), "unknown, not empty");
        }
    });
}

#[test]
fn a_request_that_waits_is_answered_when_the_agent_answers() {
    with_vmm("", |harness, api| {
        let (harness, api) = (&*harness, api.clone());
        let answer = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                api.post(
                    "/hostgroup/box/nodes?wait=agent&timeout=60s",
                    &json!({"tags": ["waits"]}),
                )
            });
            let vm = harness.until("the VM", || harness.vms().pop());
            let _agent = agent_on(harness, &socket_of(harness, &vm));
            let answer = waiting.join().expect("an answer");
            let health = api.get(&format!("/vm/{vm}/health"));
            assert_eq!(health.status, 200, "at once: {health:?}");
            let health = health.json();
            assert_eq!(health["hostname"], vm);
            assert_eq!(health["userdata_ran"], true, "there is none");
            assert!(
                health["agent_uptime"].as_u64().is_some_and(|it| it > 1000),
                "nanoseconds"
            );
            assert!(health["system_uptime"].is_u64() && health["agent_version"].is_string());
            assert_eq!(
                api.send("HEAD", &format!("/vm/{vm}/health"), None).status,
                200
            );
            answer
        });
        assert_eq!(answer.status, 200, "{answer:?}");
        let found = api.get("/nodes?tag=waits").json();
        assert_eq!(found[0]["hostname"], answer.json()["hostname"]);
        assert!(
            found[0].get("last_agent_call").is_none(),
            "health is no use of it"
        );
    });
}

/// Clients send their first request as soon as a VM is created. A Linux with systemd boots for a minute without KVM.
#[test]
fn the_first_request_waits_for_a_guest_that_boots_slowly() {
    with_vmm("", |harness, api| {
        let guest = guest(harness, api, &json!({}));
        let exec = format!("/vm/{}/exec?cmd=true&buffered=true", guest.name);
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| api.send("POST", &exec, None));
            // Clients poll it: it is not waited for, and is 200 only when the agent answers.
            let began = Instant::now();
            let health = api.get(&format!("/vm/{}/health", guest.name));
            assert_error(&health, 503, "");
            assert!(began.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_secs(33));
            let _agent = agent_on(harness, &guest.socket);
            asking.join().expect("an answer")
        });
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["exit_code"], 0);
    });
}

/// Its userdata may also power it off, which deletes it.
#[test]
fn a_vm_that_is_deleted_while_a_request_waits_for_it_is_a_conflict() {
    with_vmm("", |harness, api| {
        let path = "/hostgroup/box/nodes?wait=agent&timeout=60s";
        let answer = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| api.post(path, &json!({})));
            let vm = harness.until("the VM", || harness.vms().pop());
            harness.ctl(&format!("vm delete {vm} --wait=60s"));
            waiting.join().expect("an answer")
        });
        assert_error(&answer, 409, "was deleted before the wait ended");
    });
}

#[test]
fn a_vm_whose_agent_does_not_answer_in_time_is_removed_and_408_says_so() {
    with_vmm("", |harness, api| {
        for wait in ["agent", "userdata"] {
            let begin = Instant::now();
            let path = format!("/hostgroup/box/nodes?wait={wait}&timeout=1500ms");
            let answer = api.post(&path, &json!({"tags": ["name=late"]}));
            assert_error(&answer, 408, "is removed");
            // With the cause, which nobody can ask for any more.
            let error = answer.json()["error"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            assert!(error.contains(" within 1.5s: "), "{error}");
            assert!(begin.elapsed() >= Duration::from_millis(1500));
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{:?}",
                begin.elapsed()
            );
            harness.until("it is removed", || harness.vms().is_empty().then_some(()));
            assert_eq!(api.get("/nodes").json(), json!([]));
        }
        // Without a wait, it is answered at once, and health is none until the agent answers.
        let created = api.post("/hostgroup/box/nodes", &json!({}));
        assert_eq!(created.status, 200);
        let name = created.json()["hostname"]
            .as_str()
            .expect("a name")
            .to_owned();
        let health = api.get(&format!("/vm/{name}/health"));
        assert!([503, 504].contains(&health.status), "{health:?}");
        let stats = api.get(&format!("/node/{name}/stats")).json();
        assert_eq!(stats[0]["hostname"], name, "an array of one");
        assert!(stats[0]["snapshot"].is_null() && stats[0]["error"].is_string());
    });
}

#[test]
fn a_client_that_goes_while_it_waits_leaves_no_vm_behind() {
    use std::io::Write;
    with_vmm("", |harness, api| {
        let mut stream = api.connect();
        let request = "POST /hostgroup/box/nodes?wait=agent&timeout=4s HTTP/1.1\r\nHost: unix\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(request.as_bytes()).expect("sent");
        harness.until("the VM", || (harness.vms().len() == 1).then_some(()));
        drop(stream);
        harness.until("it is removed", || harness.vms().is_empty().then_some(()));
    });
}
