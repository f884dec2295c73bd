//! Requests that no agent receives.
//! Out of scope: agents that misbehave (`hostile`).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use test_support::harness::group;

use super::{Host, VM, text, with_vm};

#[test]
fn a_vm_without_a_running_guest_is_refused_with_the_reason() {
    with_vm(|host| {
        let harness = &host.harness;
        harness.apply(&group("slot", 1, "169.254.104.0/22", ""));
        let file = harness.write("file", "content");
        // Each command that needs the agent gives the same reason.
        let refused = |vm: &str| {
            let at = format!("{vm}:/tmp/file");
            let commands: [&[&str]; 10] = [
                &["vm", "exec", vm, "--", "true"],
                &["vm", "shell", vm],
                &["vm", "cp", &file, &at],
                &["vm", "cp", &at, "copy"],
                &["vm", "bg", "list", vm],
                &["fs", "ls", vm, "/tmp"],
                &["fs", "rm", vm, "/tmp/file"],
                &["fs", "mkdir", vm, "/tmp/dir"],
                &["fs", "stat", vm, "/tmp/file"],
                &["vm", "port-forward", vm, "127.0.0.1:0:80"],
            ];
            let errors = commands.map(|command| {
                let output = host.ctl(command).output().expect("slicectl");
                let error = text(&output.stderr);
                (command, output.status.code(), error)
            });
            let first = errors[0].2.clone();
            for (command, status, error) in errors {
                assert_eq!((status, &error), (Some(1), &first), "{command:?}");
            }
            first
        };
        assert_eq!(
            refused("slot-1"),
            "error: vm/slot-1 has no agent: hypervisor is none\n"
        );
        assert_eq!(
            refused("box-11"),
            "error: vm/box-11 not found; did you mean vm/box-1?\n"
        );
        harness.ctl(&format!("vm pause {VM} --wait"));
        let paused = "error: vm/box-1 is paused: resume it with slicectl vm resume box-1\n";
        assert_eq!(refused(VM), paused);
        harness.ctl(&format!("vm resume {VM} --wait"));
        harness.ctl(&format!("vm stop {VM} --wait"));
        let stopped = "error: vm/box-1 is stopped: start it with slicectl vm start box-1\n";
        assert_eq!(refused(VM), stopped);
    });
}

/// The status of a request on the daemon's socket, and the body.
fn request(host: &Host, head: &str) -> (u16, String) {
    let socket = host.harness.run.join("sliced.sock");
    let mut stream = UnixStream::connect(socket).expect("a connection");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    write!(stream, "{head}\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.expect("a status"), body.to_owned())
}

#[test]
fn only_the_requests_of_the_protocol_are_forwarded() {
    with_vm(|host| {
        for (request_line, status) in [
            ("GET /v1/vms/box-1/agent/metrics HTTP/1.1", 404),
            ("GET /v1/vms/box-1/agent/exec/../health HTTP/1.1", 404),
            ("GET /v1/vms/box-1/agent/fs%2fstat HTTP/1.1", 404),
            ("GET /v1/vms/box-1/agent//health HTTP/1.1", 404),
            ("PUT /v1/vms/box-1/agent/exec HTTP/1.1", 405),
            ("DELETE /v1/vms/box-1/agent/health HTTP/1.1", 405),
            ("GET /v1/vms/nobody/agent/health HTTP/1.1", 404),
            ("GET /v1/vms/Not_A_Name/agent/health HTTP/1.1", 422),
            ("GET /v1/vms/box-1/agent/shell HTTP/1.1", 426),
            ("GET /v1/vms/box-1/agent/health HTTP/1.1", 409),
        ] {
            let (found, body) = request(host, request_line);
            assert_eq!(found, status, "{request_line}: {body}");
            let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            assert!(
                body["error"]
                    .as_str()
                    .is_some_and(|error| !error.contains("/run/")),
                "{body}"
            );
        }
    });
}
