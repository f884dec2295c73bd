//! The socket: who gets access, what is replaced, what never is; and what the server answers to invalid requests.
//! Out of scope: the output of `slicectl`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use slicectl::wire::Listener;

use super::fixture::Fixture;

/// Opens the listener inside a runtime, as a daemon does.
fn open(path: &Path) -> Result<Listener, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    Listener::open(path, "no-such-group").map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    })
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_ours_goes_with_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let listener = open(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing beside it"
    );
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_living_daemons_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _living = UnixListener::bind(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.contains("another sliced is listening"), "{error}");
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    fs::write(&path, "precious").unwrap();
    let error = open(&path).unwrap_err();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_listener_does_not_remove_its_successors_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
}

/// The status and body of a request as it stands.
fn ask(fixture: &Fixture, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(fixture.socket()).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses early may close before it has read everything.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer[9..12].parse().unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (status, body)
}

#[test]
fn requests_that_make_no_sense_get_a_status_and_a_problem() {
    let fixture = Fixture::start();
    let cases = [
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
        ("DELETE", "/v1/objects/lease/lab-1", "", 409),
        ("DELETE", "/v1/objects/lease/lab-1?force=true", "", 409),
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
    ];
    for (method, path, body, status) in cases {
        let (found, answer) = ask(&fixture, method, path, body);
        assert_eq!(found, status, "{method} {path}: {answer}");
        let problem: serde_json::Value = serde_json::from_str(&answer).expect(&answer);
        assert!(
            problem["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty())
        );
        assert!(problem["problems"].is_array());
    }
}

#[test]
fn bodies_are_bounded_by_manifest_and_in_all() {
    let fixture = Fixture::start();
    let source = |size: usize| {
        serde_json::json!({"sources": [{"name": "big.yaml", "text": "#".repeat(size)}]}).to_string()
    };
    let (status, answer) = ask(
        &fixture,
        "POST",
        "/v1/apply?dry_run=true",
        &source((1 << 20) + 1),
    );
    assert_eq!(status, 422, "{answer}");
    assert!(answer.contains("big.yaml"), "{answer}");
    let (status, answer) = ask(
        &fixture,
        "POST",
        "/v1/apply?dry_run=true",
        &source(17 << 20),
    );
    assert_eq!(status, 413, "{answer}");
}

#[test]
fn the_server_ends_at_once_though_watches_are_open() {
    let mut fixture = Fixture::start();
    let mut watch = UnixStream::connect(fixture.socket()).unwrap();
    watch
        .write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    super::fixture::wait_for("the watch", || fixture.world.watchers() == 1);
    let start = std::time::Instant::now();
    fixture.stop();
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
}
