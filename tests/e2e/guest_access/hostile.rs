//! Agents and VMMs that misbehave: each costs a request a timeout and one descriptor, and delays nobody else.
//! Out of scope: the client alone (`src/guest/client/tests.rs`).

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Host, VM, text, with_vm};

/// How a connection is treated after `OK 1` and a request.
type Misbehaviour = fn(UnixStream);

fn endless(mut stream: UnixStream, first: &str, rest: &[u8]) {
    let _ = stream.write_all(first.as_bytes());
    while stream.write_all(rest).is_ok() {}
}

fn say(mut stream: UnixStream, answer: &str) {
    let _ = stream.write_all(answer.as_bytes());
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n\r\n";

/// What it does, and what `slicectl vm exec` says. Silence is tested apart: it takes its timeout.
const TABLE: [(&str, Misbehaviour, &str); 13] = [
    ("closes", |_| {}, "does not answer: invalid response"),
    (
        "sends garbage",
        |stream| say(stream, "\0\u{1}garbage\r\n\r\n"),
        "does not answer: invalid response",
    ),
    (
        "sends an endless head",
        |stream| endless(stream, "HTTP/1.1 200 OK\r\nx: ", &[b'x'; 4096]),
        "does not answer: invalid response",
    ),
    (
        "sends endless headers",
        |stream| endless(stream, "HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        "does not answer: invalid response",
    ),
    (
        "redirects",
        |stream| {
            say(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: /v1/gc\r\ncontent-length: 0\r\n\r\n",
            )
        },
        "unexpected status 302",
    ),
    (
        "upgrades",
        |stream| {
            say(
                stream,
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            )
        },
        "unexpected status 101",
    ),
    (
        "sends an endless line",
        |stream| endless(stream, HEAD, &[b'x'; 4096]),
        "a line has more than",
    ),
    (
        "ends within a line",
        |mut stream| {
            let _ = stream.write_all((HEAD.to_owned() + "{\"type\":").as_bytes());
        },
        "the exit status of the command is unknown",
    ),
    (
        "ends without an exit status",
        |mut stream| {
            let _ = stream.write_all(HEAD.as_bytes());
        },
        "the exit status of the command is unknown",
    ),
    (
        "sends other JSON",
        |stream| say(stream, &(HEAD.to_owned() + "[1,2]\n")),
        "invalid response of the agent",
    ),
    (
        "sends a status without a body",
        |stream| say(stream, "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"),
        "status 500",
    ),
    (
        "sends an endless error",
        |stream| endless(stream, "HTTP/1.1 400 No\r\n\r\n", &[b'x'; 4096]),
        "status 400",
    ),
    (
        "controls the terminal",
        |stream| {
            say(
                stream,
                "HTTP/1.1 400 No\r\ncontent-length: 42\r\n\r\n{\"error\":\"a\\u001b[31mb\\ncccccccccccccccc\"}",
            )
        },
        "error: a\u{fffd}[31mb cccccccccccccccc",
    ),
];

/// Serves the socket of the VM; confirms connections with `line`.
fn serve(host: &Host, line: &'static [u8], act: Misbehaviour) {
    let _ = std::fs::remove_file(&host.socket);
    let listener = UnixListener::bind(&host.socket).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || confirm(stream, line, act));
        }
    });
}

fn confirm(mut stream: UnixStream, line: &[u8], act: Misbehaviour) {
    let mut connect = [0; 12];
    if stream.read_exact(&mut connect).is_err() || stream.write_all(line).is_err() {
        return;
    }
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.extend(byte),
            _ => return,
        }
    }
    act(stream);
}

/// Other requests are answered meanwhile.
fn others_are_served(host: &Host, name: &str) {
    let begin = Instant::now();
    host.harness.ctl("version");
    host.harness.ctl(&format!("get vm {VM}"));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{name}: {took:?}");
}

#[test]
fn an_agent_that_misbehaves_costs_its_request_and_nothing_else() {
    with_vm(|host| {
        host.harness.ctl("version");
        let before = host.descriptors();
        for (name, act, expected) in TABLE {
            serve(host, b"OK 1\n", act);
            let begin = Instant::now();
            let output = host.exec(&["true"]);
            let took = begin.elapsed();
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
            assert!(stderr.contains(expected), "{name}: {stderr}");
            assert!(!stderr.contains("/run/"), "no path of the host: {stderr}");
            assert!(took < Duration::from_secs(15), "{name}: {took:?}");
            others_are_served(host, name);
        }
        host.harness.until("all descriptors are closed", || {
            (host.descriptors() <= before).then_some(())
        });
    });
}

#[test]
fn a_vmm_that_does_not_confirm_connections_costs_a_timeout() {
    with_vm(|host| {
        let long: &'static [u8] = vec![b'9'; 10_000].leak();
        for (name, line, expected, limit) in [
            ("a long line", long, "too long", 3),
            ("another line", &b"NO\n"[..], "not confirmed with OK", 3),
            (
                "silence",
                &b""[..],
                "has not accepted a connection within 5 s",
                8,
            ),
        ] {
            serve(host, line, |stream| say(stream, ""));
            let begin = Instant::now();
            let output = host.exec(&["true"]);
            let stderr = text(&output.stderr);
            assert!(stderr.contains(expected), "{name}: {stderr}");
            assert!(begin.elapsed() < Duration::from_secs(limit), "{name}");
        }
        let _ = std::fs::remove_file(&host.socket);
        let stderr = text(&host.exec(&["true"]).stderr);
        assert!(stderr.contains("the VM has no vsock device"), "{stderr}");
        drop(UnixListener::bind(&host.socket).expect("a socket"));
        let stderr = text(&host.exec(&["true"]).stderr);
        assert!(
            stderr.contains("cannot connect to its vsock device"),
            "{stderr}"
        );
    });
}

#[test]
fn many_silent_agents_do_not_delay_other_requests_and_end_with_their_clients() {
    with_vm(|host| {
        host.harness.ctl("version");
        let before = host.descriptors();
        static WAITING: AtomicUsize = AtomicUsize::new(0);
        serve(host, b"OK 1\n", |stream| {
            WAITING.fetch_add(1, Ordering::Relaxed);
            say(stream, "");
        });
        let clients: Vec<_> = (0..100)
            .map(|_| {
                super::Killed(
                    host.ctl(&["vm", "exec", VM, "--", "true"])
                        .spawn()
                        .expect("slicectl"),
                )
            })
            .collect();
        // The daemon asks for the health of the agent, too.
        host.harness.until("all requests wait", || {
            (WAITING.load(Ordering::Relaxed) >= clients.len()).then_some(())
        });
        others_are_served(host, "100 silent agents");
        drop(clients);
        host.harness.until("all descriptors are closed", || {
            (host.descriptors() <= before).then_some(())
        });
        let begin = Instant::now();
        let output = host.exec(&["true"]);
        let stderr = text(&output.stderr);
        assert!(stderr.contains("no response within 30 s"), "{stderr}");
        assert!(begin.elapsed() < Duration::from_secs(35));
    });
}
