//! The second listener of the API: settings, token, TLS, and clients that are hostile.
//! Out of scope: the daemon's own socket (`local_users`, `liveness`); what requests answer (`transcripts`).

mod attacks;
mod hostile;
mod settings;
pub mod tls;
mod token;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use test_support::harness::{Harness, group, with_daemon};

/// The default port.
pub const PORT: u16 = 8080;

/// The status and the whole text of a response; status 0: the connection was closed without one.
fn exchange(mut stream: impl Read + Write, text: &str) -> (u16, String) {
    // A server that refuses the head may close before it has read all.
    let _ = stream.write_all(text.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or(0), answer)
}

/// A request with this `Authorization`, if it is not empty.
fn text(line: &str, authorization: &str) -> String {
    let authorization = match authorization {
        "" => String::new(),
        value => format!("authorization: {value}\r\n"),
    };
    format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{authorization}\r\n")
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).expect("a timeout");
    stream
}

fn request(port: u16, line: &str, authorization: &str) -> (u16, String) {
    exchange(connect(port), &text(line, authorization))
}

fn is_open(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

pub fn configure(harness: &Harness, settings: &str) {
    harness.write("new.yaml", settings);
    let new = harness.dir.path().join("new.yaml");
    fs::rename(new, harness.dir.path().join("sliced.yaml")).expect("renamed");
}

pub fn listens(harness: &Harness, port: u16) {
    harness.until("it listens", || is_open(port).then_some(()));
}

/// The previous socket is closed after the next one listens.
fn closes(harness: &Harness, port: u16) {
    harness.until("it is closed", || (!is_open(port)).then_some(()));
}

/// The default token, as a header.
pub fn bearer(harness: &Harness) -> String {
    let path = harness.state().join("api/token");
    let token = fs::read_to_string(path).expect("a token");
    format!("Bearer {}", token.trim())
}

/// The options of slicectl for the default listener.
fn options(harness: &Harness) -> String {
    let token = harness.state().join("api/token");
    format!(
        "--url http://127.0.0.1:{PORT} --token-file {}",
        token.display()
    )
}

fn reported(harness: &Harness, reason: &str, part: &str) {
    harness.until(part, || {
        let messages = harness.messages("host", reason);
        messages
            .iter()
            .any(|text| text.contains(part))
            .then_some(())
    });
}

#[test]
fn there_is_no_listener_unless_it_is_configured_and_it_follows_the_settings() {
    with_daemon(|harness| {
        assert!(!is_open(PORT));
        assert!(!harness.state().join("api").exists());
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        configure(&harness, "api: {port: 8081}\n");
        listens(&harness, 8081);
        closes(&harness, PORT);
        // Invalid settings change nothing, and TCP has a token always.
        configure(&harness, "api: {port: 8082, auth: {enabled: false}}\n");
        harness.until("it is refused", || {
            let log = harness.log();
            log.contains("a TCP listener requires a token")
                .then_some(())
        });
        assert!(is_open(8081) && !is_open(8082));
        assert_eq!(request(8081, "GET /v1/version", "").0, 401);
        let socket = harness.run.join("api.sock");
        configure(
            &harness,
            &format!("api: {{socket: {}}}\n", socket.display()),
        );
        harness.until("the socket", || socket.exists().then_some(()));
        closes(&harness, 8081);
        configure(&harness, "# nothing\n");
        harness.until("it is off", || (!socket.exists()).then_some(()));
        configure(&harness, "api: {bind_address: \"::1\", ui: false}\n");
        harness.until("IPv6", || {
            TcpStream::connect(("::1", PORT)).is_ok().then_some(())
        });
        let events = harness.messages("host", "ApiListenerChanged").join("\n");
        for part in [
            "API listens on 127.0.0.1:8080 (token, not encrypted)",
            "API listens on 127.0.0.1:8081",
            "api.sock (no token)",
            "API no longer listens",
            "API listens on [::1]:8080 (token, not encrypted, no web page)",
        ] {
            assert!(events.contains(part), "{part}: {events}");
        }
    });
}

#[test]
fn flags_and_the_environment_replace_the_settings() {
    test_support::harness::empty(|mut harness| {
        harness.write("sliced.yaml", "api: {port: 8081}\n");
        harness.env.push(("SLICE_API_PORT", "8082".to_owned()));
        harness.start();
        listens(&harness, 8082);
        assert!(!is_open(8081));
        assert_eq!(request(8082, "GET /", "").0, 200);
        harness.stop();
        harness.args.push("--api-port=8083".to_owned());
        harness.args.push("--api-ui=false".to_owned());
        harness.start();
        listens(&harness, 8083);
        assert_eq!(request(8083, "GET /", "").0, 401);
        assert_eq!(request(8083, "GET /", &bearer(&harness)).0, 404);
        harness.stop();
        harness.args = vec!["--api-auth=false".to_owned()];
        let output = harness.run_to_end(harness.sliced());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(error.contains("requires a token"), "{error}");
    });
}

#[test]
fn a_port_in_use_is_reported_and_tried_again() {
    with_daemon(|harness| {
        let other = TcpListener::bind(("127.0.0.1", PORT)).expect("a listener");
        configure(&harness, "api: {}\n");
        reported(
            &harness,
            "ApiListenerFailed",
            "cannot listen on 127.0.0.1:8080: Address already in use",
        );
        drop(other);
        reported(
            &harness,
            "ApiListenerChanged",
            "API listens on 127.0.0.1:8080",
        );
        assert_eq!(request(PORT, "GET /healthz", "").0, 200);
        let failures = harness.messages("host", "ApiListenerFailed");
        assert_eq!(failures.len(), 1, "{failures:?}");
    });
}

#[test]
fn a_unix_socket_needs_no_token_and_follows_its_mode_and_the_user() {
    with_daemon(|harness| {
        let socket = harness.run.join("api.sock");
        // A path as the address is a socket, too.
        let settings = format!("api: {{bind_address: {}}}\n", socket.display());
        configure(&harness, &settings);
        harness.until("the socket", || socket.exists().then_some(()));
        let mode = fs::metadata(&socket)
            .expect("a socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        let get = |line: &str, authorization: &str| {
            let stream = UnixStream::connect(&socket).expect("a connection");
            exchange(stream, &text(line, authorization)).0
        };
        for authorization in ["", "Bearer ", "Bearer anything", "Basic x"] {
            assert_eq!(
                get("GET /v1/version", authorization),
                200,
                "{authorization}"
            );
        }
        assert_eq!(get("GET /healthz", ""), 200);
        assert_eq!(get("GET /nowhere", ""), 404);
        let path = harness.write("a.yaml", &group("a", 1, "169.254.100.0/22", ""));
        harness.ctl(&format!(
            "--url {} apply -f {path} --wait",
            socket.display()
        ));
        let created = harness.messages("hostgroup/a", "Created");
        assert!(created[0].contains("by root (uid 0)"), "{created:?}");
        // Others may not connect, even if the mode would let them.
        let as_nobody = || {
            let mut command = Command::new(test_support::programs::built("slicectl"));
            command
                .args(["--url", socket.to_str().expect("UTF-8"), "get", "vms"])
                .uid(65534)
                .gid(65534);
            let output = command.output().expect("slicectl");
            assert!(!output.status.success());
            String::from_utf8_lossy(&output.stderr).into_owned()
        };
        let error = as_nobody();
        assert!(error.contains("permission denied"), "{error}");
        fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).expect("changed");
        let error = as_nobody();
        assert!(error.contains("user 65534 may not connect"), "{error}");
        // With a token, users of the socket need both.
        let settings = format!(
            "api: {{socket: {}, auth: {{enabled: true}}}}\n",
            socket.display()
        );
        configure(&harness, &settings);
        harness.until("a token is required", || {
            (get("GET /v1/version", "") == 401).then_some(())
        });
        assert_eq!(get("GET /v1/version", &bearer(&harness)), 200);
    });
}

#[test]
fn slicectl_works_over_tcp_as_on_the_socket() {
    with_daemon(|harness| {
        configure(&harness, "api: {}\n");
        listens(&harness, PORT);
        let options = options(&harness);
        let path = harness.write("a.yaml", &group("a", 1, "169.254.100.0/22", ""));
        harness.ctl(&format!("{options} apply -f {path} --wait"));
        for arguments in [
            "get vms",
            "get hostgroups -o json",
            "describe vm/a-1",
            "events",
            "explain a-1 1.1.1.1",
            "version",
            "gc --dry-run",
            "doctor -o json",
            "secret list",
            "wait vm/a-1 --for ready",
        ] {
            let output = harness.try_ctl(&format!("{options} {arguments}"));
            let local = harness.try_ctl(arguments);
            assert_eq!(output.status, local.status, "{arguments}");
            let is_empty = [output.stdout.is_empty(), local.stdout.is_empty()];
            assert_eq!(is_empty[0], is_empty[1], "{arguments}: {output:?}");
        }
        let created = harness.messages("hostgroup/a", "Created");
        assert!(
            created[0].contains("by API token (127.0.0.1)"),
            "{created:?}"
        );
        harness.ctl(&format!("{options} delete hostgroup/a --wait"));
        assert!(harness.vms().is_empty());
        // Without a token, with a wrong one, and without a daemon.
        let url = format!("--url http://127.0.0.1:{PORT}");
        let error = harness.refused(&format!("{url} get vms"), 1);
        assert!(
            error.contains("requires a token; use --token-file"),
            "{error}"
        );
        let wrong = harness.write("wrong", "0123456789abcdef0123456789abcdef");
        let error = harness.refused(&format!("{url} --token-file {wrong} get vms"), 1);
        assert!(error.contains("refused the token"), "{error}");
        let nobody = "--url http://127.0.0.1:9";
        let error = harness.refused(&format!("{nobody} doctor"), 1);
        assert!(error.contains("only when it runs on that host"), "{error}");
        let error = harness.refused(&format!("{nobody} get vms"), 1);
        assert!(
            error.contains("cannot connect to sliced at http://127.0.0.1:9: connection refused"),
            "{error}"
        );
    });
}
