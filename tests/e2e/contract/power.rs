//! Pause, resume, shutdown, relaunch.
//! Out of scope: what real VMMs do.

use serde_json::json;

use super::{agent_on, assert_error, guest, with_vmm};

fn status(api: &super::Api, vm: &str) -> String {
    let node = api.get(&format!("/vm/{vm}")).json();
    node["status"].as_str().expect("a text").to_owned()
}

#[test]
fn each_request_is_answered_when_the_vm_has_reached_the_state() {
    with_vmm("", |harness, api| {
        let guest = guest(harness, api, &json!({"persistent": true}));
        let (vm, _agent) = (&guest.name, agent_on(harness, &guest.socket));
        let post =
            |verb: &str, body: Option<&str>| api.send("POST", &format!("/vm/{vm}/{verb}"), body);
        let exec = format!("/vm/{vm}/exec?cmd=true&buffered=true");
        harness.until("the agent answers", || {
            (api.get(&format!("/vm/{vm}/health")).status == 200).then_some(())
        });
        assert_error(&post("relaunch", None), 409, "runs");
        for _ in 0..2 {
            assert_eq!(post("pause", None).status, 200);
            assert_eq!(status(api, vm), "Paused");
        }
        // Nothing of a paused guest hangs.
        for (method, path) in [
            ("POST", "exec?cmd=true"),
            ("GET", "exec"),
            ("GET", "cp?path=/etc/passwd"),
            ("POST", "cp?path=/tmp/x"),
            ("GET", "fs/stat?path=/"),
            ("GET", "fs/watch?paths=/tmp"),
            ("GET", "shell"),
            ("GET", "forward"),
            ("GET", "health"),
        ] {
            assert_error(
                &api.send(method, &format!("/vm/{vm}/{path}"), None),
                409,
                "is paused",
            );
        }
        assert_error(&post("relaunch", None), 409, "is paused");
        for _ in 0..2 {
            assert_eq!(post("resume", None).status, 200);
            assert_eq!(status(api, vm), "Running");
        }
        assert_eq!(api.send("POST", &exec, None).json()["exit_code"], 0);

        for body in [
            Some("{}"),
            None,
            Some("null"),
            Some(r#"{"action":"reboot"}"#),
            Some(r#"{"action":"shutdown"}"#),
        ] {
            let answer = post("shutdown", body);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(status(api, vm), "Stopped", "it is not started again");
            assert_error(&post("pause", None), 409, "is stopped");
            assert_error(&api.send("POST", &exec, None), 409, "is stopped");
            let answer = post("relaunch", None);
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["hostname"], *vm);
            assert!(
                answer.json()["ip"]
                    .as_str()
                    .is_some_and(|ip| ip.contains('/'))
            );
            assert_eq!(status(api, vm), "Running");
        }
        assert_eq!(post("shutdown?action=reboot", None).status, 200);
        // A stopped VM stays that across a restart of the daemon, and is deleted as one.
        harness.restart();
        assert_eq!(status(api, vm), "Stopped");
        assert_eq!(
            api.delete(&format!("/hostgroup/box/nodes/{vm}")).status,
            200
        );
        assert_eq!(api.get("/nodes").json(), json!([]));
    });
}

#[test]
fn the_console_of_a_vm_is_its_log() {
    with_vmm("", |harness, api| {
        let guest = guest(harness, api, &json!({}));
        for query in ["", "?lines=0", "?lines=2", "?tail=2", "?lines=-1"] {
            let answer = api.get(&format!("/vm/{}/logs{query}", guest.name));
            assert_eq!(answer.status, 200, "{answer:?}");
            let logs = answer.json();
            assert_eq!(logs["hostname"], guest.name);
            let content = logs["content"].as_str().expect("a text");
            assert_eq!(logs["lines"].as_u64(), Some(content.lines().count() as u64));
            if query.ends_with("=2") {
                assert!(content.lines().count() <= 2, "{content}");
            }
        }
    });
}
