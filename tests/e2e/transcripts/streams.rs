//! Output that goes on: watches, `logs -f`, `wait`; what ends it; and what a terminal gets.
//! Out of scope: output that ends by itself.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use test_support::harness::{Harness, PATIENCE, group, slots, with_daemon};
use test_support::programs;
use test_support::transcript::Runner;

use super::{broken, guest_is_up, sandbox};

/// A `slicectl` that goes on, and its lines; ended with the value.
struct Follower {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    fn start(harness: &Harness, arguments: &str) -> Self {
        let mut child = Runner::of(harness)
            .command(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("slicectl");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line in time")
    }

    /// The lines up to the first that satisfies the condition.
    #[track_caller]
    fn lines_until(&self, is_last: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        while !lines.last().is_some_and(|line: &String| is_last(line)) {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("the last line is missing: {lines:#?}");
            };
            lines.push(line);
        }
        lines
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Until the daemon has so many connections.
fn connections(harness: &Harness, count: usize) {
    // The listener is bound under a temporary name in this directory, which the kernel keeps, and renamed.
    let directory = format!(" {}/", harness.run.display());
    harness.until("the connections", || {
        let sockets = std::fs::read_to_string("/proc/thread-self/net/unix").ok()?;
        // The accepted end has the path of the listener; 03 is SS_CONNECTED, 01 the state of the listener.
        let open = sockets.lines().filter(|line| {
            line.contains(&directory) && line.split_whitespace().nth(5) == Some("03")
        });
        (open.count() == count).then_some(())
    });
}

#[test]
fn a_watch_prints_rows_in_the_columns_of_the_first_table() {
    with_daemon(|harness| {
        harness.apply(&slots(2, ""));
        let watch = Follower::start(&harness, "get vms -w");
        let first: Vec<String> = (0..3).map(|_| watch.line()).collect();
        let column = first[0].find("STATUS").expect("a column");
        harness.ctl("vm add sandbox --name extra");
        let is = |line: &str, status: &str| {
            line.starts_with("extra ") && line[column..].starts_with(status)
        };
        watch.lines_until(|line| is(line, "Ready"));
        harness.ctl("vm delete extra");
        let rows = watch.lines_until(|line| is(line, "Deleted"));
        assert!(rows.iter().any(|row| is(row, "Terminating")), "{rows:#?}");
    });
}

#[test]
fn a_watch_in_json_prints_each_change_on_a_line_with_its_type() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        harness.ctl("vm add sandbox --name extra --wait");
        let watch = Follower::start(&harness, "get vm extra -w -o json");
        let change = |line: &str| {
            let change: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(change["object"]["metadata"]["name"], "extra");
            change["type"].as_str().expect("a type").to_owned()
        };
        assert_eq!(change(&watch.line()), "ADDED");
        harness.ctl("vm add sandbox --name other --wait");
        harness.ctl("vm delete extra");
        let lines = watch.lines_until(|line| change(line) == "DELETED");
        let (_, before) = lines.split_last().expect("changes");
        assert!(!before.is_empty());
        assert!(
            before.iter().all(|line| change(line) == "MODIFIED"),
            "{lines:#?}"
        );
    });
}

#[test]
fn names_are_watched_with_deletions_visible() {
    with_daemon(|harness| {
        harness.apply(&slots(0, ""));
        harness.ctl("vm add sandbox --name extra --wait");
        let watch = Follower::start(&harness, "get vm/extra -w -o name");
        assert_eq!(watch.line(), "vm/extra");
        harness.ctl("vm delete extra");
        let lines = watch.lines_until(|line| line == "vm/extra deleted");
        let (_, before) = lines.split_last().expect("changes");
        assert!(before.iter().all(|line| line == "vm/extra"), "{lines:#?}");
    });
}

#[test]
fn events_and_logs_are_followed() {
    with_daemon(|harness| {
        harness.apply(&sandbox(&harness));
        for vm in ["sandbox-1", "sandbox-2"] {
            guest_is_up(&harness, vm);
        }
        let events = Follower::start(&harness, "events -w vm/sandbox-1");
        assert!(events.line().starts_with("LAST SEEN"));
        let logs = Follower::start(&harness, "logs -f sandbox-1");
        assert_eq!(logs.line(), "tiny: sandbox-1 starts");
        harness.ctl("vm stop sandbox-2 --wait=60s");
        harness.ctl("vm stop sandbox-1 --wait=60s");
        let lines = logs.lines_until(|line| line.contains("powers off"));
        assert!(
            lines.iter().all(|line| !line.contains("sandbox-2")),
            "{lines:#?}"
        );
        let lines = events.lines_until(|line| line.contains("stop"));
        assert!(
            lines.iter().all(|line| line.contains("vm/sandbox-1")),
            "{lines:#?}"
        );
    });
}

/// `broken`, whose VM becomes ready when this is applied: without a VMM it needs no kernel.
fn mended() -> String {
    group("broken", 1, "169.254.105.0/24", "")
}

fn apply_broken(harness: &Harness) {
    let file = harness.write("broken.yaml", &broken());
    harness.ctl(&format!("apply -f {file}"));
    harness.until("the missing kernel", || {
        let vm = harness.get("vm broken-1").to_string();
        vm.contains("ActionFailed")
            .then_some(())
            .or_else(|| vm.contains("Invalid").then_some(()))
    });
}

#[test]
fn a_wait_ends_as_soon_as_the_watch_reports_the_goal() {
    with_daemon(|harness| {
        harness.apply(&slots(0, ""));
        harness.ctl("vm add sandbox --name extra --wait");
        let mut ready = Follower::start(&harness, "wait hg/broken --for ready --timeout 60s");
        let gone = Follower::start(&harness, "wait vm/extra --for deleted --timeout 60s");
        connections(&harness, 2);
        apply_broken(&harness);
        assert!(ready.child.try_wait().expect("its status").is_none());
        harness.apply(&mended());
        harness.ctl("vm delete extra");
        assert_eq!(ready.line(), "hostgroup/broken ready");
        assert_eq!(gone.line(), "vm/extra deleted");
        assert!(ready.child.wait().expect("its status").success());
    });
}

#[test]
fn a_wait_outlives_a_restart_of_the_daemon() {
    with_daemon(|mut harness| {
        apply_broken(&harness);
        let wait = Follower::start(&harness, "wait hg/broken --for ready --timeout 60s");
        connections(&harness, 1);
        harness.restart();
        harness.apply(&mended());
        assert_eq!(wait.line(), "hostgroup/broken ready");
    });
}

#[test]
fn a_watch_ends_when_no_daemon_answers_for_longer_than_a_restart_takes() {
    with_daemon(|mut harness| {
        let mut child = Runner::of(&harness)
            .command("get vms -w")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("slicectl");
        connections(&harness, 1);
        harness.stop();
        assert_eq!(child.wait().expect("its status").code(), Some(1));
        let mut error = String::new();
        let mut stderr = child.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut error).expect("an error");
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{error}");
        assert!(lines[0].ends_with("reconnecting"), "{error}");
        assert!(lines[1].starts_with("error: cannot connect"), "{error}");
    });
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    with_daemon(|harness| {
        harness.apply(&sandbox(&harness));
        guest_is_up(&harness, "sandbox-1");
        let vm = harness.get("vm sandbox-1");
        let log = vm["status"]["vmm"]["log"].as_str().expect("a log");
        let mut log = File::options().append(true).open(log).expect("the log");
        log.write_all("a line of the guest\r\n".repeat(100_000).as_bytes())
            .expect("written");
        for command in ["logs sandbox-1", "get vms -w", "events -w"] {
            let mut child = Runner::of(&harness)
                .command(command)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("slicectl");
            let mut line = String::new();
            let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
            stdout.read_line(&mut line).expect("a line");
            drop(stdout);
            harness.until("its end", || {
                // A stream without output notices with its next line that the reader has left.
                harness.ctl("vm add sandbox --name extra");
                harness.ctl("vm delete extra --wait=60s");
                child.try_wait().expect("its status")
            });
            let output = child.wait_with_output().expect("its output");
            assert_eq!(output.status.code(), Some(0), "{command}: {output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
            assert!(!line.is_empty());
        }
    });
}

/// The output on a terminal, which script(1) makes.
fn on_a_terminal(harness: &Harness, arguments: &str, no_color: &str) -> String {
    let binary = programs::built("slicectl");
    let output = Command::new("script")
        .args([
            "-qec",
            &format!("{} {arguments}", binary.display()),
            "/dev/null",
        ])
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .env("TERM", "xterm")
        .env("NO_COLOR", no_color)
        .stdin(Stdio::null())
        .output()
        .expect("script(1) of bsdutils");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn only_terminals_get_colours_and_only_without_no_color() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        apply_broken(&harness);
        let colored = on_a_terminal(&harness, "get vms", "");
        assert!(colored.contains("\u{1b}["), "{colored:?}");
        assert!(colored.contains("broken-1"));
        for command in [
            "get vms",
            "doctor",
            "explain sandbox-1 1.1.1.1",
            "describe vm/broken-1",
        ] {
            let plain = on_a_terminal(&harness, command, "1");
            assert!(!plain.contains('\u{1b}'), "{plain:?}");
            let piped = Runner::of(&harness).run(command);
            assert!(!piped.stdout.contains('\u{1b}'), "{piped:?}");
        }
    });
}

#[test]
fn only_terminals_get_progress() {
    with_daemon(|harness| {
        apply_broken(&harness);
        let command = "wait hg/broken --for ready --timeout 1s";
        let shown = on_a_terminal(&harness, command, "");
        assert!(shown.contains("0/1 VMs ready"), "{shown:?}");
        let piped = Runner::of(&harness).run(command);
        assert!(!piped.stderr.contains("0/1 VMs ready"), "{piped:?}");
    });
}

#[test]
fn a_watch_of_tags_reports_no_other_vms() {
    with_daemon(|harness| {
        harness.apply(&slots(0, ""));
        let watch = Follower::start(&harness, "get vms -l job=42 -w -o name");
        connections(&harness, 1);
        for (name, tag) in [("other", "job=1"), ("mine", "job=42")] {
            harness.ctl(&format!("vm add sandbox --name {name} --tag {tag}"));
        }
        assert_eq!(watch.line(), "vm/mine");
    });
}
