//! Access to real Linux guests under QEMU with `slice-agent` as their init: through the vsock device and its back end.
//! Out of scope: the same in detail, with the agent on the host (`guest_access`); guests with another init (`inject`).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::harness::{self, Harness, with_daemon};
use test_support::linux::guests;
use test_support::programs;
use test_support::screen::Session;

use super::guests::{guest_dir, kernel};

const VM: &str = "sandbox-1";

/// `slicectl` with these arguments.
pub fn ctl(harness: &Harness, words: &[&str]) -> Command {
    let mut command = Command::new(programs::built("slicectl"));
    command
        .args(words)
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .env_remove("TERM")
        .current_dir(harness.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The output of `slicectl vm exec VM -- …`.
pub fn exec(harness: &Harness, words: &[&str]) -> Output {
    let words = [&["vm", "exec", VM, "--uid", "0", "--"], words].concat();
    ctl(harness, &words).output().expect("slicectl")
}

/// The standard output of a command of `slicectl` that succeeds.
#[track_caller]
pub fn succeeds(harness: &Harness, words: &[&str]) -> String {
    let output = ctl(harness, words).output().expect("slicectl");
    assert!(output.status.success(), "{words:?}: {output:?}");
    text(&output.stdout)
}

/// One isolated VM with the agent as its init; its agent answers.
fn boot(harness: &Harness) {
    let initrd = guest_dir().join("initrd-agent");
    assert!(
        initrd.exists(),
        "there is no {0}: make it with `examples/guest/agent.sh {1}/slice-agent && examples/guest/build.sh {1}`",
        initrd.display(),
        guest_dir().display()
    );
    boot_as(
        harness,
        &harness::slots(1, ""),
        &initrd.display().to_string(),
    );
}

/// The same for a group of slots.
fn boot_as(harness: &Harness, slots: &str, initrd: &str) {
    harness.apply(&guests(slots, &kernel(), initrd, ""));
    harness.ctl(&format!("wait vm/{VM} --for agent --timeout 60s"));
}

/// A command that has started and prints a line, then goes on; its process.
fn running(harness: &Harness, script: &str) -> Child {
    let words = ["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", script];
    let mut child = ctl(harness, &words).spawn().expect("slicectl");
    let mut line = [0; 8];
    let stdout = child.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut line).expect("its first line");
    assert_eq!(&line, b"started\n");
    child
}

#[test]
fn commands_files_shells_ports_and_figures_of_a_real_guest() {
    with_daemon(|harness| {
        boot(&harness);
        commands(&harness);
        files(&harness);
        shell(&harness);
        ports(&harness);
        figures(&harness);
    });
}

#[test]
fn the_figures_of_a_guest_on_a_bridge_are_those_of_its_own_tap() {
    with_daemon(|harness| {
        let initrd = guest_dir().join("initrd-agent").display().to_string();
        let slots = harness::bridge_group("sandbox", 1, "bridge: br9\ngateway: 10.9.0.1/24");
        boot_as(&harness, &slots, &initrd);
        figures(&harness);
    });
}

/// What `vm top` shows is what the guest does.
fn figures(harness: &Harness) {
    let top = || {
        let top = succeeds(harness, &["vm", "top", VM, "-o", "json"]);
        let rows: Value = serde_json::from_str(&top).expect("JSON");
        rows[0].clone()
    };
    let sent = |row: &Value| row["host"]["network"]["sent_bytes"].as_u64();
    let before = top();
    assert_eq!(before["vm"], VM);
    let script = "ping -c 3 -s 1000 -W 1 -i 0.2 $(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'); true";
    succeeds(
        harness,
        &["vm", "exec", VM, "--uid", "0", "--", "sh", "-c", script],
    );
    let after = top();
    let grown = sent(&after)
        .zip(sent(&before))
        .map(|(now, then)| now - then);
    assert!(
        grown.is_some_and(|bytes| (3_000..100_000).contains(&bytes)),
        "{before} {after}"
    );
    assert!(
        after["guest"]["totalMemory"].as_u64() > Some(1 << 20),
        "{after}"
    );
    // The guest computes meanwhile.
    let mut busy = running(harness, "echo started; while :; do :; done");
    let percent = top()["cpu_percent"].as_f64();
    assert!(percent.is_some_and(|percent| percent > 5.0), "{percent:?}");
    busy.kill().expect("killed");
    busy.wait().expect("its status");
    let table = succeeds(harness, &["vm", "top"]);
    let row = table.lines().find(|line| line.starts_with(VM));
    assert!(
        row.is_some_and(|row| row.contains("Mi/") && !row.contains(" - ")),
        "{table}"
    );
}

fn commands(harness: &Harness) {
    let table: [(&[&str], i32, &[u8]); 5] = [
        (&["hostname"], 0, b"sandbox-1\n"),
        (&["sh", "-c", "exit 7"], 7, b""),
        (&["sh", "-c", "kill -TERM $$"], 143, b""),
        (&["printf", "\\000\\377\\n"], 0, b"\0\xff\n"),
        (&["/nowhere"], 127, b""),
    ];
    for (words, status, stdout) in table {
        let output = exec(harness, words);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {output:?}");
        assert_eq!(output.stdout, stdout, "{words:?}: {output:?}");
    }
    // 4 MiB there and back through the device.
    let sent: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_le_bytes).collect();
    let words = ["vm", "exec", VM, "--uid", "0", "--", "cat"];
    let mut command = ctl(harness, &words);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("slicectl");
    let (mut input, copy) = (child.stdin.take().expect("a pipe"), sent.clone());
    let writer = std::thread::spawn(move || input.write_all(&copy).expect("written"));
    let output = child.wait_with_output().expect("its output");
    writer.join().expect("all is written");
    assert!(output.status.success() && output.stdout == sent);
}

fn files(harness: &Harness) {
    let sent: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_be_bytes).collect();
    let path = |name: &str| harness.dir.path().join(name).display().to_string();
    std::fs::write(path("source"), &sent).expect("written");
    let in_vm = format!("{VM}:/tmp/copy");
    succeeds(harness, &["vm", "cp", &path("source"), &in_vm]);
    succeeds(harness, &["vm", "cp", &in_vm, &path("back")]);
    assert!(std::fs::read(path("back")).expect("read") == sent);
    let listed = succeeds(harness, &["fs", "ls", VM, "/tmp"]);
    assert!(listed.contains("copy"), "{listed}");
    let size = exec(harness, &["stat", "-c", "%s", "/tmp/copy"]);
    assert_eq!(text(&size.stdout).trim(), sent.len().to_string());
}

fn shell(harness: &Harness) {
    let words = ["vm", "shell", VM, "--uid", "0", "--shell", "/bin/sh"];
    let mut session = Session::start(100, &mut ctl(harness, &words));
    session.wait_for("Ctrl-] leaves");
    session.type_keys("stty size; echo $((6 * 7))-in-$(hostname)\r");
    session.wait_for("40 100");
    session.wait_for("42-in-sandbox-1");
    session.type_keys("exit 9\r");
    assert_eq!(session.end(), (Some(9), true));
}

fn ports(harness: &Harness) {
    let server = "nc -l -p 8080 -e sh -c 'read line; echo $(hostname) has received $line'";
    let words = ["vm", "bg", "start", VM, "--uid", "0", "--", "sh", "-c"];
    succeeds(harness, &[&words[..], &[server]].concat());
    harness.until("a server in the guest", || {
        let listening = exec(harness, &["netstat", "-lnt"]);
        text(&listening.stdout).contains(":8080 ").then_some(())
    });
    let words = ["vm", "port-forward", VM, "0:8080"];
    let mut forward = ctl(harness, &words).spawn().expect("slicectl");
    let stdout = forward.stdout.take().expect("a pipe");
    let line = BufReader::new(stdout).lines().next();
    let line = line.expect("a line").expect("text");
    let local = line.split(' ').nth(1).expect("an address");
    let mut stream = TcpStream::connect(local).expect("a connection");
    stream.write_all(b"hello\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "sandbox-1 has received hello\n");
    forward.kill().expect("killed");
    forward.wait().expect("a status");
}

#[test]
fn a_paused_guest_is_refused_at_once_and_a_stop_ends_a_command_with_the_reason() {
    with_daemon(|harness| {
        boot(&harness);
        harness.ctl(&format!("vm pause {VM} --wait"));
        let begin = Instant::now();
        let output = exec(&harness, &["true"]);
        let took = begin.elapsed();
        let message = format!("error: vm/{VM} is paused: resume it with slicectl vm resume {VM}\n");
        assert_eq!(text(&output.stderr), message);
        assert_eq!(output.status.code(), Some(1));
        assert!(took < Duration::from_secs(1), "{took:?}");
        harness.ctl(&format!("vm resume {VM} --wait"));
        harness.ctl(&format!("wait vm/{VM} --for agent --timeout 20s"));
        let child = running(&harness, "echo started; exec sleep 600");
        harness.ctl(&format!("vm stop {VM} --wait=20s"));
        let output = child.wait_with_output().expect("its output");
        let stderr = text(&output.stderr);
        // The guest ends its programs with SIGTERM before it powers off; the client sees that, or the end of the connection.
        match output.status.code() {
            Some(143) => {}
            Some(1) => assert!(stderr.starts_with("error: "), "{stderr}"),
            _ => panic!("{output:?}"),
        }
        let output = exec(&harness, &["true"]);
        let message = format!("error: vm/{VM} is stopped: start it with slicectl vm start {VM}\n");
        assert_eq!(text(&output.stderr), message);
    });
}

#[test]
fn a_background_command_outlives_the_daemon_and_a_foreground_one_ends_with_it() {
    with_daemon(|mut harness| {
        boot(&harness);
        let words = ["vm", "bg", "start", VM, "--uid", "0", "--", "sh", "-c"];
        let script = "echo before; while ! [ -e /tmp/go ]; do sleep 0.1; done; echo after; exit 4";
        let id = succeeds(&harness, &[&words[..], &[script]].concat());
        let id = id.trim();
        let foreground = running(&harness, "echo started; echo $$ >/tmp/pid; exec sleep 600");
        harness.kill();
        let output = foreground.wait_with_output().expect("its output");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{output:?}");
        harness.start();
        harness.ctl(&format!("wait vm/{VM} --for agent --timeout 20s"));
        let list = succeeds(&harness, &["vm", "bg", "list", VM]);
        assert!(list.contains(id) && list.contains("running"), "{list}");
        harness.until("the foreground command has ended", || {
            let found = exec(
                &harness,
                &["sh", "-c", "kill -0 $(cat /tmp/pid) || echo ended"],
            );
            text(&found.stdout).contains("ended").then_some(())
        });
        assert!(exec(&harness, &["touch", "/tmp/go"]).status.success());
        let wait = ["vm", "bg", "wait", VM, id, "--timeout", "20s"];
        let output = ctl(&harness, &wait).output().expect("slicectl");
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let logs = succeeds(&harness, &["vm", "bg", "logs", VM, id]);
        assert_eq!(logs, "before\nafter\n");
    });
}
