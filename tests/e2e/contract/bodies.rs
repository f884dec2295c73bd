//! What clients of several ages send as a body: none, `null`, `{}`, and fields that this server does not know; and HEAD.
//! Out of scope: what the fields do.

use serde_json::json;

use super::{assert_error, guest, with_agent, with_vmm};

/// The same request: nothing is asked for.
const NOTHING: [Option<&str>; 6] = [
    None,
    Some(""),
    Some(" \n"),
    Some("null"),
    Some("{}"),
    Some(r#"{"later": {"x": [1, null]}, "count": 1}"#),
];

#[test]
fn a_request_without_parameters_is_the_same_with_each_body_that_says_nothing() {
    with_agent(|_, api, vm| {
        let started = api.send(
            "POST",
            &format!("/vm/{vm}/exec?cmd=true&background=true"),
            None,
        );
        let id = started.json()["exec_id"].clone();
        let id = id.as_str().expect("an id");
        api.post("/secrets", &json!({"name": "token", "data": "YQ=="}));
        for body in NOTHING {
            for (method, path, status) in [
                ("POST", format!("/vm/{vm}/pause"), 200),
                ("POST", format!("/vm/{vm}/resume"), 200),
                ("POST", format!("/vm/{vm}/suspend"), 501),
                ("POST", format!("/vm/{vm}/restore"), 501),
                ("POST", format!("/vm/{vm}/relaunch"), 409),
                ("POST", format!("/vm/{vm}/exec?cmd=true&buffered=true"), 200),
                ("POST", format!("/vm/{vm}/exec/{id}/kill"), 200),
                ("PATCH", format!("/vm/{vm}/tags"), 200),
                ("PATCH", "/secrets/token".to_owned(), 200),
                // Parameters that are missing are an error with a sentence.
                ("POST", format!("/vm/{vm}/fs/mkdir"), 400),
                ("POST", "/secrets".to_owned(), 400),
            ] {
                let answer = api.send(method, &path, body);
                assert_eq!(
                    answer.status, status,
                    "{method} {path} {body:?}: {answer:?}"
                );
                if status >= 400 {
                    assert_error(&answer, status, "");
                }
            }
        }
        assert_eq!(api.get("/secrets").json()[0]["size"], 1, "it is unchanged");
    });
}

#[test]
fn a_vm_is_shut_down_and_relaunched_with_each_body_that_says_nothing() {
    with_vmm("", |harness, api| {
        let vm = guest(harness, api, &json!({})).name;
        for body in NOTHING {
            for verb in ["shutdown", "relaunch"] {
                let answer = api.send("POST", &format!("/vm/{vm}/{verb}"), body);
                assert_eq!(answer.status, 200, "{verb} {body:?}: {answer:?}");
            }
        }
    });
}

#[test]
fn fields_of_other_versions_are_ignored_in_every_body() {
    with_agent(|harness, api, vm| {
        let dir = harness.dir.path().join("made");
        let started = api.send(
            "POST",
            &format!("/vm/{vm}/exec?cmd=sleep&args=600&background=true"),
            None,
        );
        let id = started.json()["exec_id"].clone();
        let id = id.as_str().expect("an id");
        let later = json!({"x": [1, null]});
        for (method, path, body, status) in [
            (
                "POST",
                format!("/vm/{vm}/fs/mkdir"),
                json!({"path": dir, "recursive": true, "later": later}),
                200,
            ),
            (
                "POST",
                "/secrets".to_owned(),
                json!({"name": "token", "data": "YQ==", "later": later}),
                201,
            ),
            (
                "PATCH",
                "/secrets/token".to_owned(),
                json!({"permissions": "0644", "later": later}),
                200,
            ),
            (
                "PATCH",
                format!("/vm/{vm}/tags"),
                json!({"add": ["a"], "later": later}),
                200,
            ),
            (
                "POST",
                format!("/vm/{vm}/exec/{id}/kill"),
                json!({"signal": "KILL", "later": later}),
                200,
            ),
            (
                "POST",
                "/hostgroup/box/nodes".to_owned(),
                json!({"tags": ["b"], "network": {"allow": [], "later": later}, "later": later}),
                200,
            ),
            (
                "POST",
                format!("/vm/{vm}/shutdown"),
                json!({"action": "reboot", "later": later}),
                200,
            ),
        ] {
            let answer = api.send(method, &path, Some(&body.to_string()));
            assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        }
        assert!(dir.is_dir());
        assert_eq!(api.get("/secrets").json()[0]["permissions"], "0644");
    });
}

#[test]
fn head_is_answered_as_get_without_a_body() {
    with_agent(|_, api, vm| {
        for (path, status) in [
            ("/healthz".to_owned(), 200),
            ("/nodes".to_owned(), 200),
            (format!("/vm/{vm}/health"), 200),
            ("/vm/other/health".to_owned(), 404),
            ("/nowhere".to_owned(), 404),
        ] {
            let answer = api.send("HEAD", &path, None);
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (status, ""),
                "{path}"
            );
            assert_eq!(api.get(&path).status, status, "{path}");
        }
        assert_eq!(
            api.send("POST", &format!("/vm/{vm}/pause"), None).status,
            200
        );
        let paused = api.send("HEAD", &format!("/vm/{vm}/health"), None);
        assert_eq!(paused.status, 409, "a paused guest does not answer");
    });
}

#[test]
fn a_way_of_copying_that_is_unknown_is_named_so_that_clients_take_another() {
    with_agent(|harness, api, vm| {
        let file = harness.dir.path().join("file");
        std::fs::write(&file, "x").expect("written");
        let file = file.display();
        for (method, mode) in [
            ("GET", "cp-v1-other"),
            ("POST", "cp-v1-other"),
            ("GET", "zip"),
        ] {
            let path = format!("/vm/{vm}/cp?path={file}&mode={mode}&copy_semantics=cp-v1");
            let answer = api.send(method, &path, Some("y"));
            assert_error(&answer, 400, &format!("invalid mode: {mode}"));
        }
        let path = format!("/vm/{vm}/cp?path={file}&mode=cp-v1-binary&copy_semantics=cp-v1");
        let copied = api.get(&path);
        assert_eq!((copied.status, copied.text().as_str()), (200, "x"));
        assert_eq!(copied.header("x-slicer-source-type"), Some("file"));
        assert!(copied.header("x-slicer-source-name-base64").is_some());
    });
}
