//! What commands do: power, logs, input, copies, connections, events; with a token, and with the compatible API.
//! Out of scope: what is refused.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;

use test_support::harness::Harness;
use test_support::kernel;
use test_support::screen::Session;

use super::{A, B, Fleet, Killed, LARGE, VM, text, url, with_fleet};

#[test]
fn commands_for_a_vm_on_another_node_work_as_on_its_own() {
    with_fleet(|fleet| {
        let described = fleet.succeeds(&["describe", "vm", VM]);
        assert!(described.contains(VM), "{described}");
        let output = fleet.succeeds(&["get", "vm", VM, "-o", "json"]);
        assert!(output.contains("169.254.100."), "{output}");
        let verdict = fleet.run(&["explain", VM, "1.1.1.1:443"]);
        assert!(verdict.stderr.is_empty(), "{}", text(&verdict.stderr));
        // The user is one of node-a, and his events are at the VM.
        fleet.succeeds(&["vm", "exec", VM, "--uid", "0", "--", "true"]);
        let events = fleet.succeeds(&["events", "vm", VM]);
        assert!(events.contains("(uid 0) on node node-a"), "{events}");
        power(fleet);
        follows_logs(fleet);
        events_of_all(fleet);
        let unknown = fleet.fails(&["logs", "box-9"]);
        assert!(unknown.contains("vm/box-9 not found"), "{unknown}");
    });
}

fn events_of_all(fleet: &Fleet) {
    let events = fleet.succeeds(&["events", "--fleet"]);
    assert!(events.starts_with("NODE "), "{events}");
    for expected in ["node-a", "node-b", "GuestAccess"] {
        assert!(events.contains(expected), "{expected}: {events}");
    }
    // A node that does not answer is an error, and the events of the others are printed.
    fleet.register("node-c", Some(&url("10.66.0.9")));
    let output = fleet.a.until("node-a knows node-c", || {
        let output = fleet.run(&["events", "--fleet", "-o", "json"]);
        text(&output.stderr).contains("node-c").then_some(output)
    });
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    assert!(
        errors.contains("error: there is no answer of node node-c"),
        "{errors}"
    );
    assert!(text(&output.stdout).contains(r#""node":"node-b""#));
}

fn power(fleet: &Fleet) {
    let state = |expected: &str| {
        fleet.b.until(expected, || {
            let vm = fleet.b.get(&format!("vm {VM}"));
            (vm["status"]["vmm"]["state"].as_str()?.to_lowercase() == expected).then_some(())
        });
    };
    fleet.succeeds(&["vm", "pause", VM, "--wait"]);
    state("paused");
    let refused = fleet.fails(&["vm", "exec", VM, "--", "true"]);
    assert!(refused.contains("is paused"), "{refused}");
    fleet.succeeds(&["vm", "resume", VM, "--wait"]);
    state("running");
}

fn follows_logs(fleet: &Fleet) {
    let mut following = fleet.ctl(&["logs", "-f", VM]).spawn().expect("slicectl");
    let mut lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    let _following = Killed(following);
    let first = lines.next().expect("a line").expect("text");
    assert!(!first.is_empty());
}

#[test]
fn input_copies_and_connections_pass_between_nodes() {
    with_fleet(|fleet| {
        let content: Vec<u8> = (0..LARGE as u32 / 4).flat_map(u32::to_le_bytes).collect();
        exec_with_input(fleet, &content);
        fs::write(fleet.file("source"), &content).expect("written");
        let in_vm = fleet.file("in-vm");
        let before = [memory(&fleet.a), memory(&fleet.b)];
        let vm = format!("{VM}:{}", in_vm.display());
        fleet.succeeds(&["vm", "cp", "source", &vm, "--uid", "0"]);
        assert!(fs::read(&in_vm).expect("read") == content);
        fleet.succeeds(&["vm", "cp", &vm, "back"]);
        assert!(fs::read(fleet.file("back")).expect("read") == content);
        // It is not read into memory.
        for (harness, before) in [&fleet.a, &fleet.b].into_iter().zip(before) {
            let growth = memory(harness).saturating_sub(before);
            assert!(growth < 8 << 20, "sliced: {growth} bytes");
        }
        let directory = fleet.a.dir.path().display().to_string();
        let listed = fleet.succeeds(&["fs", "ls", VM, &directory]);
        assert!(listed.contains("in-vm"), "{listed}");
        forwards_a_port(fleet, &content[..4 << 20]);
        a_shell_has_a_terminal(fleet);
        // The node of the VM answers: this VMM has no console.
        let refused = fleet.fails(&["console", VM]);
        assert!(refused.contains("has no console input"), "{refused}");
        a_client_that_goes_ends_its_command(fleet);
    });
}

/// The greatest resident memory of a daemon so far, in bytes.
fn memory(harness: &Harness) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", harness.pid())).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a size") << 10
}

fn exec_with_input(fleet: &Fleet, content: &[u8]) {
    let arguments = ["vm", "exec", VM, "--uid", "0", "--", "wc", "-c"];
    let mut child = fleet
        .ctl(&arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("slicectl");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(content).expect("sent");
    drop(input);
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), content.len().to_string());
}

fn forwards_a_port(fleet: &Fleet, content: &[u8]) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            all.reverse();
            let _ = stream.write_all(&all);
        }
    });
    let arguments = ["vm", "port-forward", VM, &format!("0:{port}")];
    let mut child = fleet.ctl(&arguments).spawn().expect("slicectl");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = lines.next().map(|line| line.expect("text"));
    let Some(line) = line else {
        panic!(
            "{}",
            text(&child.wait_with_output().expect("output").stderr)
        );
    };
    let _forwarding = Killed(child);
    let local = line.split(' ').nth(1).expect("an address");
    let mut stream = TcpStream::connect(local).expect("a connection");
    stream.write_all(content).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half-closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    answer.reverse();
    assert!(answer == content, "{} bytes", answer.len());
}

fn a_shell_has_a_terminal(fleet: &Fleet) {
    let arguments = ["vm", "shell", VM, "--uid", "0", "--shell", "/bin/sh"];
    let mut session = Session::start(100, &mut fleet.ctl(&arguments));
    session.wait_for("Ctrl-] leaves");
    session.type_keys("stty size; echo $((6 * 7))-done\r");
    session.wait_for("40 100");
    session.wait_for("42-done");
    session.resize(120, 50);
    session.type_keys("sleep 0.3; stty size\r");
    session.wait_for("50 120");
    session.type_keys("exit 9\r");
    assert_eq!(session.end(), (Some(9), true));
}

fn a_client_that_goes_ends_its_command(fleet: &Fleet) {
    let pid = fleet.file("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
    let arguments = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", &script];
    let client = Killed(fleet.ctl(&arguments).spawn().expect("slicectl"));
    let pid = fleet.b.until("the command runs", || {
        let text = fs::read_to_string(&pid).ok()?;
        text.trim().parse::<u32>().ok()
    });
    drop(client);
    let is_running = || {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with("sleep"))
    };
    fleet
        .b
        .until("the command ends", || (!is_running()).then_some(()));
}

#[test]
fn a_user_with_the_token_of_one_node_reaches_vms_on_others() {
    with_fleet(|fleet| {
        let token = fleet.a.state().join("api/token");
        let arguments = format!(
            "--url {} --token-file {} --ca {} vm exec {VM} --uid 0 -- echo there",
            url(A),
            token.display(),
            fleet.lab.pki.ca().display()
        );
        assert_eq!(fleet.a.ctl(&arguments), "there\n");
        let events = fleet.b.ctl(&format!("events vm {VM}"));
        assert!(
            events.contains("API token (10.66.0.1) on node node-a"),
            "{events}"
        );
        let path = fleet.a.dir.path().display();
        let answer = get(fleet, &format!("/vm/{VM}/fs/stat?path={path}"), &token);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("\"name\""),
            "{answer}"
        );
        let answer = get(fleet, &format!("/vm/{VM}"), &token);
        assert!(answer.contains("169.254.100."), "{answer}");
        // The token of node-a is none of node-b.
        let wrong = arguments.replace(&url(A), &url(B));
        let error = fleet.a.refused(&wrong, 1);
        assert!(error.contains("refused the token"), "{error}");
    });
}

/// A response of node-a to a request of the compatible API.
fn get(fleet: &Fleet, path: &str, token: &Path) -> String {
    let arguments = format!(
        "curl -sS -i --cacert {} -H \"Authorization: Bearer $(cat {})\" '{}{path}'",
        fleet.lab.pki.ca().display(),
        token.display(),
        url(A)
    );
    kernel::run(&arguments)
}
