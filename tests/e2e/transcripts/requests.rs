//! What the daemon answers to requests that `slicectl` does not send: invalid, too large, open at its end.
//! Out of scope: valid requests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use test_support::harness::{self, Harness, slots, with_daemon};

fn connect(harness: &Harness) -> UnixStream {
    UnixStream::connect(harness.run.join("sliced.sock")).expect("a connection")
}

/// The status and body of the response.
fn response(harness: &Harness, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = connect(harness);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(body.as_bytes());
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    let response = String::from_utf8_lossy(&response).into_owned();
    let status = response[9..12].parse().expect("a status");
    let (_, body) = response.split_once("\r\n\r\n").expect("a body");
    (status, body.to_owned())
}

#[test]
fn invalid_requests_get_a_status_and_a_problem() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        for (method, path, body, expected) in [
            ("GET", "/v1/objects/pod", "", 422),
            ("GET", "/v1/objects/vm/Bad_Name", "", 422),
            ("GET", "/v1/objects/vm/none-such", "", 404),
            ("GET", "/v1/objects/vm?follow=perhaps", "", 400),
            ("GET", "/v1/events?object=web", "", 400),
            ("GET", "/v1/events?object=pod%2Fweb", "", 400),
            ("GET", "/v1/events?object=vm%2FBad_Name", "", 400),
            ("GET", "/v1/nothing", "", 404),
            ("PUT", "/v1/apply", "", 405),
            ("POST", "/v1/apply", "{", 400),
            ("POST", "/v1/apply", "{\"sources\":[{\"name\":1}]}", 422),
            (
                "POST",
                "/v1/apply",
                "{\"sources\":[{\"name\":\"f\",\"text\":\"config: [\"}]}",
                422,
            ),
            ("DELETE", "/v1/objects/lease/sandbox-1", "", 409),
            ("DELETE", "/v1/objects/lease/sandbox-1?force=true", "", 409),
            ("DELETE", "/v1/objects/vm/none-such?force=true", "", 404),
            ("DELETE", "/v1/objects/vm/none-such?force=now", "", 400),
            ("POST", "/v1/groups/sandbox/vms", "{\"cpus\":1}", 422),
            ("POST", "/v1/groups/sandbox/vms", "{\"name\":\"A\"}", 422),
            (
                "POST",
                "/v1/groups/sandbox/vms",
                "{\"allow\":[\"10.0.0.1/8\"]}",
                422,
            ),
            (
                "POST",
                "/v1/groups/sandbox/vms",
                "{\"tags\":{\"a b\":\"c\"}}",
                422,
            ),
            ("POST", "/v1/groups/none-such/vms", "{}", 404),
            ("GET", "/v1/groups/sandbox/vms", "", 405),
            ("DELETE", "/v1/vms/sandbox-1", "", 409),
            ("DELETE", "/v1/vms/none-such", "", 404),
            ("GET", "/v1/explain/sandbox-1?packet=nowhere", "", 422),
            ("GET", "/v1/explain/sandbox-1", "", 400),
        ] {
            let (status, answer) = response(&harness, method, path, body);
            assert_eq!(status, expected, "{method} {path}: {answer}");
            let problem: serde_json::Value = serde_json::from_str(&answer).expect(&answer);
            let error = problem["error"].as_str().unwrap_or_default();
            assert!(!error.is_empty(), "{method} {path}: {answer}");
            assert!(problem["problems"].is_array(), "{method} {path}: {answer}");
        }
    });
}

#[test]
fn bodies_are_bounded_for_each_manifest_and_in_total() {
    with_daemon(|harness| {
        let source = |size: usize| {
            serde_json::json!({"sources": [{"name": "big.yaml", "text": "#".repeat(size)}]})
                .to_string()
        };
        let apply =
            |size: usize| response(&harness, "POST", "/v1/apply?dry_run=true", &source(size));
        let (status, answer) = apply((1 << 20) + 1);
        assert_eq!(status, 422, "{answer}");
        assert!(answer.contains("big.yaml"), "{answer}");
        let (status, answer) = apply(17 << 20);
        assert_eq!(status, 413, "{answer}");
    });
}

#[test]
fn the_daemon_ends_at_once_although_watches_are_open() {
    with_daemon(|mut harness| {
        let mut watch = connect(&harness);
        watch
            .write_all(b"GET /v1/objects/vm?follow=true HTTP/1.1\r\nhost: x\r\n\r\n")
            .expect("sent");
        let mut first = [0; 8];
        watch.read_exact(&mut first).expect("the watch is open");
        let (_, took) = harness.stop();
        let bound = Duration::from_secs(1).mul_f64(harness::crowd());
        assert!(took < bound, "{took:?}");
    });
}
