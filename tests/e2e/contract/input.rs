//! Wrong types, paths, methods and encodings, in both APIs.
//! Out of scope: values that only a handler refuses (`endpoints`).

use super::client::Answer;
use super::{assert_error, with_slots};

const CREATE: &str = "/hostgroup/sandbox/nodes";

/// That an answer is an error in the form of the API that the path belongs to.
#[track_caller]
fn assert_error_of(path: &str, answer: &Answer, status: u16, sentence: &str) {
    if !path.starts_with("/v1/") {
        return assert_error(answer, status, sentence);
    }
    assert_eq!(answer.status, status, "{answer:?}");
    let error = answer.json();
    let keys: Vec<_> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["error", "problems"], "{answer:?}");
    assert!(
        answer.text().replace("\\\"", "\"").contains(sentence),
        "{answer:?}"
    );
}

#[test]
fn a_body_with_a_wrong_type_is_refused_with_the_field_what_was_found_and_what_is_expected() {
    let deep = "[".repeat(50_000);
    let nested = format!("{{\"tags\":{}1", "[".repeat(50_000));
    with_slots(|_, api| {
        for (method, path, body, status, sentence) in [
            (
                "POST",
                CREATE,
                r#"{"cpus":"many"}"#,
                400,
                "cpus: found string \"many\", expected u32",
            ),
            (
                "POST",
                CREATE,
                r#"{"cpus":99999999999999999999}"#,
                400,
                "cpus: found",
            ),
            (
                "POST",
                CREATE,
                r#"{"tags":[1]}"#,
                400,
                "tags[0]: found integer `1`, expected a string",
            ),
            (
                "POST",
                CREATE,
                r#"{"network":{"allow":5}}"#,
                400,
                "network.allow: found integer `5`, expected a sequence",
            ),
            (
                "POST",
                CREATE,
                "[null]",
                400,
                "found sequence, expected an object",
            ),
            (
                "POST",
                "/v1/groups/sandbox/vms",
                "[null]",
                422,
                "found sequence, expected an object",
            ),
            (
                "POST",
                CREATE,
                r#"{"network":[null,null]}"#,
                400,
                "network: found sequence, expected an object",
            ),
            (
                "POST",
                "/v1/groups/sandbox/vms",
                r#"{"cni":[[],null]}"#,
                422,
                "cni: found sequence, expected an object",
            ),
            (
                "POST",
                "/v1/groups/sandbox/vms",
                r#"{"cni":{"port_mappings":[[80,80]]}}"#,
                422,
                "cni.port_mappings[0]: found sequence, expected an object",
            ),
            (
                "POST",
                "/v1/apply",
                r#"{"sources":[["a.yaml","config: {}"]]}"#,
                422,
                "sources[0]: found sequence, expected an object",
            ),
            ("POST", CREATE, "[1,2", 400, "invalid body"),
            ("POST", CREATE, &deep, 400, "invalid body"),
            ("POST", CREATE, &nested, 400, "tags[0]: found"),
            (
                "PATCH",
                "/vm/sandbox-1/tags",
                r#"{"add":"x"}"#,
                400,
                "add: found string \"x\", expected a sequence",
            ),
            (
                "POST",
                "/vm/sandbox-1/shutdown",
                r#"{"action":1}"#,
                400,
                "action: found integer `1`, expected a string",
            ),
            (
                "POST",
                "/secrets",
                r#"{"name":"x","data":{"hunter2":1}}"#,
                400,
                "data: line 1",
            ),
            ("POST", "/v1/secrets", r#"{"name":5}"#, 400, "name: line 1"),
            (
                "POST",
                "/v1/groups/sandbox/vms",
                r#"{"vcpu":"x"}"#,
                422,
                "vcpu: found string \"x\", expected u32",
            ),
            (
                "PUT",
                "/v1/groups/sandbox/scale",
                r#"{"count":-1}"#,
                422,
                "count: found integer `-1`, expected u32",
            ),
            (
                "POST",
                "/v1/apply",
                r#"{"sources":[{"name":1}]}"#,
                422,
                "sources[0].name: found integer `1`, expected a string",
            ),
            ("POST", "/v1/apply", "{", 400, "invalid body: EOF"),
        ] {
            let answer = api.send(method, path, Some(body));
            assert_error_of(path, &answer, status, sentence);
            assert!(!answer.text().contains("hunter2"), "{answer:?}");
        }
    });
}

#[test]
fn unknown_paths_and_methods_are_errors_in_json_and_a_wrong_method_names_the_right_ones() {
    with_slots(|_, api| {
        for path in [
            "/v1",
            "/v1/",
            "/v1/nowhere",
            "/v1/objects",
            "/v1/vms/sandbox-1/agent/nowhere",
            "/",
            "/nodes/",
            "//nodes",
        ] {
            for method in ["GET", "POST", "DELETE", "BREW"] {
                let answer = api.send(method, path, None);
                assert_error_of(path, &answer, 404, "not found");
            }
        }
        for (method, path, allowed) in [
            ("PUT", "/nodes", "GET,HEAD"),
            ("GET", "/v1/apply", "POST"),
            ("POST", "/v1/version", "GET,HEAD"),
            ("BREW", "/v1/version", "GET,HEAD"),
            ("PATCH", "/healthz", "GET,HEAD"),
            ("TRACE", "/secrets", "GET,HEAD,POST"),
            ("PUT", "/vm/sandbox-1/exec", "GET,HEAD,POST"),
            ("DELETE", "/v1/vms/sandbox-1/agent/health", "GET,HEAD"),
            ("GET", "/v1/vms/sandbox-1/agent/fs/remove", "DELETE"),
        ] {
            let answer = api.send(method, path, None);
            let sentence = format!("does not support method {method}");
            assert_error_of(path, &answer, 405, &sentence);
            let found = answer.header("allow").unwrap_or_default().to_uppercase();
            assert_eq!(found, allowed, "{method} {path}");
        }
    });
}

#[test]
fn every_get_has_a_head_with_the_same_status_and_no_body() {
    with_slots(|_, api| {
        for path in [
            "/healthz",
            "/info",
            "/metrics",
            "/nodes",
            "/nodes/stats",
            "/hostgroup",
            "/openapi.json",
            "/secrets",
            "/vm/sandbox-1",
            "/vm/sandbox-1/logs",
            "/vm/sandbox-1/fs/stat?path=/",
            "/vm/sandbox-1/exec",
            "/vm/other",
            "/v1/version",
            "/v1/objects/vm",
            "/v1/objects/pod",
            "/v1/events",
            "/v1/vms/sandbox-1/agent/health",
            "/v1/vms/other/agent/stats",
            "/nowhere",
        ] {
            let (get, head) = (api.get(path), api.send("HEAD", path, None));
            assert_eq!(head.status, get.status, "{path}: {head:?}");
            assert!(head.body.is_empty(), "{path}: {head:?}");
            assert_eq!(
                head.header("content-type"),
                get.header("content-type"),
                "{path}"
            );
        }
    });
}

#[test]
fn encodings_and_numbers_that_nothing_has_are_refused_and_not_taken_for_something_else() {
    with_slots(|harness, api| {
        for (path, status) in [
            ("/vm/%00", 404),
            ("/vm/%ff", 400),
            ("/v1/objects/vm/%ff", 400),
            ("/v1/objects/vm/%00", 422),
            ("/v1/objects/%20/x", 422),
            ("/v1/vms/%ff/agent/health", 400),
            ("/vm/sandbox-1%2f..%2fother", 404),
            ("/vm/..", 404),
            ("/vm/sandbox-1/logs?lines=99999999999999999999", 400),
            ("/v1/logs/sandbox-1?lines=-1", 400),
            ("/v1/logs/sandbox-1?offset=99999999999999999999", 400),
            ("/nodes?tag=a&tag=b", 400),
            ("/v1/events?object=%00", 400),
            ("/v1/events?follow=maybe", 400),
            ("/v1/explain/sandbox-1", 400),
            ("/v1/explain/sandbox-1?packet=", 422),
            ("/v1/watch?since=", 422),
        ] {
            let answer = api.get(path);
            assert_eq!(answer.status, status, "{path}: {answer:?}");
            assert!(answer.json()["error"].is_string(), "{path}: {answer:?}");
        }
        for timeout in [
            "-1s",
            "-9223372036854775808ns",
            "1e9s",
            "%00",
            "99999999999999999999h",
        ] {
            let path = format!("{CREATE}?wait=none&timeout={timeout}");
            assert_error(&api.send("POST", &path, Some("{}")), 400, "invalid timeout");
        }
        assert_eq!(harness.vms(), ["sandbox-1"], "nothing was created");
    });
}
