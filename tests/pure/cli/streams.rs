//! What streams, what breaks off, and what a terminal sees.
//! Out of scope: answers that end by themselves.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use slicectl::api::event::EventReason;
use slicectl::api::view::Kind;

use super::fixture::{Fixture, wait_for};
use super::golden::slicectl;
use super::world::{self, Group, State};

/// A `slicectl` that goes on, ended with the value.
struct Going {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Going {
    fn start(fixture: &Fixture, words: &str) -> Self {
        let mut child = command(fixture, words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
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

    fn line(&self) -> String {
        self.lines
            .recv_timeout(Duration::from_secs(5))
            .expect("a line within 5 s")
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(fixture: &Fixture, words: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("slicectl"));
    command
        .args(words.split_whitespace())
        .env("SLICE_SOCKET", fixture.socket())
        .stdin(Stdio::null());
    command
}

#[test]
fn a_watch_streams_rows_in_the_columns_of_the_first_table() {
    let fixture = Fixture::start();
    let going = Going::start(&fixture, "get vms -w");
    let first: Vec<String> = (0..5).map(|_| going.line()).collect();
    let column = first[0].find("STATUS").unwrap();
    fixture
        .world
        .put(world::vm_object("sandbox-2", 2, State::Up));
    let changed = going.line();
    assert!(changed.starts_with("sandbox-2"), "{changed}");
    assert!(changed[column..].starts_with("Running"), "{changed}");
    fixture.world.remove(Kind::Vm, &world::name("sandbox-3"));
    let gone = going.line();
    assert!(
        gone.starts_with("sandbox-3") && gone[column..].starts_with("Deleted"),
        "{gone}"
    );
}

#[test]
fn a_watch_in_json_tells_each_change_on_a_line_with_its_type() {
    let fixture = Fixture::start();
    let going = Going::start(&fixture, "get vm sandbox-1 -w -o json");
    let types = |line: String| {
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["object"]["metadata"]["name"], "sandbox-1");
        value["type"].as_str().unwrap().to_owned()
    };
    assert_eq!(types(going.line()), "ADDED");
    fixture
        .world
        .put(world::vm_object("sandbox-2", 2, State::Up));
    fixture
        .world
        .put(world::vm_object("sandbox-1", 1, State::Going));
    assert_eq!(types(going.line()), "MODIFIED");
    fixture.world.remove(Kind::Vm, &world::name("sandbox-1"));
    assert_eq!(types(going.line()), "DELETED");
}

#[test]
fn names_are_watched_with_deletions_visible() {
    let fixture = Fixture::start();
    let going = Going::start(&fixture, "get vm/lab-1 -w -o name");
    assert_eq!(going.line(), "vm/lab-1");
    fixture.world.remove(Kind::Vm, &world::name("lab-1"));
    assert_eq!(going.line(), "vm/lab-1 deleted");
}

#[test]
fn events_and_logs_stream_what_comes() {
    let fixture = Fixture::start();
    let events = Going::start(&fixture, "events -w host");
    assert!(events.line().starts_with("LAST SEEN"));
    assert!(events.line().contains("Drift"));
    let logs = Going::start(&fixture, "logs -f sandbox-1");
    for n in 0..3 {
        assert!(logs.line().contains(&format!("line {n} of the guest")));
    }
    wait_for("both to listen", || fixture.world.watchers() == 2);
    fixture
        .world
        .happen("vm/lab-1", EventReason::Power, "not for the first");
    fixture
        .world
        .happen("host", EventReason::Drift, "once more");
    assert!(events.line().contains("once more"));
    assert_eq!(logs.line(), "not for the first");
}

#[test]
fn a_wait_ends_the_moment_the_watch_tells_it() {
    let fixture = Fixture::start();
    let mut ready = Going::start(&fixture, "wait hg/late --for ready --timeout 20s");
    let gone = Going::start(&fixture, "wait vm/sandbox-3 --for deleted --timeout 20s");
    wait_for("both to watch", || fixture.world.watchers() == 2);
    let late = Group {
        name: world::name("late"),
        count: 2,
        warnings: vec![],
    };
    fixture.world.put(world::group_object(&late, 1));
    assert!(ready.child.try_wait().unwrap().is_none());
    fixture.world.put(world::group_object(&late, 2));
    fixture.world.remove(Kind::Vm, &world::name("sandbox-3"));
    assert_eq!(ready.line(), "hostgroup/late ready");
    assert_eq!(gone.line(), "vm/sandbox-3 deleted");
    assert!(ready.child.wait().unwrap().success());
}

#[test]
fn a_wait_outlives_a_restart_of_the_daemon() {
    let mut fixture = Fixture::start();
    let going = Going::start(&fixture, "wait vm/sandbox-2 --for ready --timeout 20s");
    wait_for("the watch", || fixture.world.watchers() == 1);
    fixture.stop();
    fixture
        .world
        .put(world::vm_object("sandbox-2", 2, State::Up));
    fixture.serve();
    assert_eq!(going.line(), "vm/sandbox-2 ready");
}

#[test]
fn a_watch_ends_with_the_daemon_and_says_so() {
    let mut fixture = Fixture::start();
    let mut child = command(&fixture, "get vms -w")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the watch", || fixture.world.watchers() == 1);
    fixture.stop();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(
        said.starts_with("error: ") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let fixture = Fixture::start();
    for words in ["logs lab-1", "get vms -w", "events -w"] {
        let mut child = command(&fixture, words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        drop(stdout);
        wait_for("the end", || {
            // A stream that is silent learns of it with the next line.
            fixture
                .world
                .put(world::vm_object("sandbox-2", 2, State::Up));
            fixture.world.happen("host", EventReason::Drift, "again");
            child.try_wait().unwrap().is_some()
        });
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words}");
        assert!(!line.is_empty());
    }
}

/// What a terminal would get: `script(1)` makes one.
fn on_a_terminal(fixture: &Fixture, words: &str, no_color: &str) -> String {
    let binary = assert_cmd::cargo::cargo_bin("slicectl");
    let output = Command::new("script")
        .args([
            "-qec",
            &format!("{} {words}", binary.display()),
            "/dev/null",
        ])
        .env("SLICE_SOCKET", fixture.socket())
        .env("TERM", "xterm")
        .env("NO_COLOR", no_color)
        .stdin(Stdio::null())
        .output()
        .expect("script(1) of bsdutils is there");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let fixture = Fixture::start();
    let coloured = on_a_terminal(&fixture, "get vms", "");
    assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    assert!(coloured.contains("Conflict"));
    for words in [
        "get vms",
        "doctor",
        "explain sandbox-1 1.1.1.1",
        "describe vm/sandbox-2",
    ] {
        let plain = on_a_terminal(&fixture, words, "1");
        assert!(!plain.contains('\u{1b}'), "{plain:?}");
        let piped = slicectl(&fixture).args(words).run();
        assert!(!piped.stdout.contains('\u{1b}'), "{piped:?}");
    }
}

#[test]
fn progress_is_for_terminals_alone() {
    let fixture = Fixture::start();
    let words = "wait hg/sandbox --for ready --timeout 1500ms";
    let seen = on_a_terminal(&fixture, words, "");
    assert!(seen.contains("1/3 VMs ready"), "{seen:?}");
    let piped = slicectl(&fixture).args(words).run();
    assert!(!piped.stderr.contains("1/3 VMs ready"), "{piped:?}");
}

#[test]
fn a_watch_of_tags_tells_of_no_other_vms() {
    let fixture = Fixture::start();
    let going = Going::start(&fixture, "get vms -l job=42 -w -o name");
    wait_for("the watch", || fixture.world.watchers() == 1);
    for (name, tag) in [("other", "job=1"), ("mine", "job=42")] {
        let words = format!("vm add sandbox --name {name} --tag {tag}");
        assert_eq!(slicectl(&fixture).args(&words).run().code, 0);
    }
    assert_eq!(going.line(), "vm/mine");
}
