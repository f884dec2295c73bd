//! Watches and events across restarts of the daemon, and across objects of the same name.
//! Out of scope: the columns.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use test_support::harness::{Harness, slots, with_daemon};
use test_support::transcript::Runner;

use super::build;
use super::guests::print_as_guest;

/// A command that runs until it is dropped; its output is in files.
pub struct Watch {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Watch {
    pub fn start(harness: &Harness, name: &str, command: &str) -> Self {
        let path = |stream: &str| harness.dir.path().join(format!("{name}.{stream}"));
        let (stdout, stderr) = (path("out"), path("err"));
        let file = |path: &PathBuf| Stdio::from(File::create(path).expect("a file"));
        let child = Runner::of(harness)
            .command(command)
            .stdout(file(&stdout))
            .stderr(file(&stderr))
            .spawn()
            .expect("slicectl");
        Self {
            child,
            stdout,
            stderr,
        }
    }

    pub fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.stdout).expect("its output");
        text.lines().map(str::to_owned).collect()
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.stderr).expect("its errors")
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its status").is_none()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watches_go_on_when_the_daemon_is_killed_and_started() {
    with_daemon(|mut harness| {
        harness.apply(&slots(2, ""));
        let mut names = Watch::start(&harness, "names", "get vms -w -o name");
        let mut rows = Watch::start(&harness, "rows", "get vms -w");
        let mut events = Watch::start(&harness, "events", "events -w -o json");
        harness.until("the first rows", || (rows.lines().len() == 3).then_some(()));
        harness.until("the first names", || {
            (names.lines().len() == 2).then_some(())
        });
        harness.kill();
        harness.start();
        let three = harness.write("three.yaml", &slots(3, ""));
        harness.ctl(&format!("apply -f {three} --wait=60s"));
        harness.until("the new VM", || {
            let is_new = |line: &String| line.starts_with("sandbox-3") && line.contains("True");
            rows.lines().iter().any(is_new).then_some(())
        });
        harness.until("its name", || {
            names
                .lines()
                .contains(&"vm/sandbox-3".to_owned())
                .then_some(())
        });
        harness.until("its event", || {
            let is_new = |line: &String| line.contains("vm/sandbox-3") && line.contains("Ready");
            events.lines().iter().any(is_new).then_some(())
        });
        for watch in [&mut names, &mut rows, &mut events] {
            assert!(watch.is_running(), "{}", watch.errors());
            assert_eq!(
                watch.errors().matches("reconnecting").count(),
                1,
                "{}",
                watch.errors()
            );
        }
        assert_unrepeated(&rows.lines());
        let header = rows
            .lines()
            .iter()
            .filter(|line| line.starts_with("NAME"))
            .count();
        assert_eq!(header, 1, "{:?}", rows.lines());
        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready");
        let two = harness.write("two.yaml", &slots(2, ""));
        harness.ctl(&format!("apply -f {two}"));
        harness.until("its deletion", || {
            let is_deleted = |line: &String| line == "vm/sandbox-3 deleted";
            names.lines().iter().any(is_deleted).then_some(())
        });
    });
}

/// They are not stored: a watch that waits for stored changes only would not show them.
#[test]
fn what_blocks_a_group_and_the_problems_of_its_manifest_reach_a_watch() {
    with_daemon(|harness| {
        let file = harness.conf().join("sandbox.yaml");
        let slots = slots(1, "");
        std::fs::write(&file, &slots).expect("written");
        harness.until("the group", || {
            harness
                .ctl("get hg --no-headers")
                .contains("1/1")
                .then_some(())
        });
        let rows = Watch::start(&harness, "rows", "get hg -w");
        let missing = slots.replace(
            "hypervisor: none",
            "hypervisor: qemu\n      kernel_file: /nowhere/vmlinuz",
        );
        for (text, status) in [
            ("config: [", "InvalidManifest"),
            (slots.as_str(), "Ready"),
            (missing.as_str(), "InvalidSpec"),
            (slots.as_str(), "Ready"),
        ] {
            std::fs::write(&file, text).expect("written");
            harness.until(status, || {
                let last = rows.lines().pop().unwrap_or_default();
                last.contains(status).then_some(())
            });
        }
    });
}

/// No row is the same as the one before it of the same object, apart from its age.
#[track_caller]
fn assert_unrepeated(lines: &[String]) {
    let mut last = std::collections::HashMap::new();
    for line in lines {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.pop();
        let before = last.insert(words[0].to_owned(), words.join(" "));
        assert_ne!(before.as_ref(), Some(&words.join(" ")), "{lines:#?}");
    }
}

#[test]
fn a_watch_of_a_group_prints_a_row_only_when_it_has_changed() {
    with_daemon(|harness| {
        let rows = Watch::start(&harness, "rows", "get hg -w");
        harness.apply(&slots(8, ""));
        harness.until("its last row", || {
            rows.lines()
                .iter()
                .any(|line| line.contains("8/8"))
                .then_some(())
        });
        assert_unrepeated(&rows.lines());
    });
}

#[test]
fn logs_that_are_followed_go_on_where_they_were_when_the_daemon_is_killed_and_started() {
    with_daemon(|mut harness| {
        build(&harness);
        let mut all = Watch::start(&harness, "all", "logs -f sandbox-1");
        let mut last = Watch::start(&harness, "last", "logs -f sandbox-1 --lines 1");
        let printed = |watch: &Watch, line: &str| {
            let lines = watch.lines();
            lines.iter().filter(|found| *found == line).count()
        };
        print_as_guest(&harness, "sandbox-1", b"before\n");
        for watch in [&all, &last] {
            harness.until("the line", || (printed(watch, "before") == 1).then_some(()));
        }
        harness.kill();
        harness.start();
        print_as_guest(&harness, "sandbox-1", b"after\n");
        for watch in [&mut all, &mut last] {
            harness.until("the next line", || {
                (printed(watch, "after") == 1).then_some(())
            });
            assert_eq!(printed(watch, "before"), 1, "{:?}", watch.lines());
            assert!(watch.is_running(), "{}", watch.errors());
        }
    });
}

#[test]
fn events_belong_to_the_vm_that_had_the_name() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        harness.until("its event", || {
            harness.messages("vm/sandbox-1", "Ready").pop()
        });
        let first = harness.place("sandbox-1").uid;
        harness.ctl("delete vm/sandbox-1");
        harness.until("the next VM", || {
            let vm = harness.get("vm sandbox-1");
            let is_next = vm["metadata"]["uid"]
                .as_str()
                .is_some_and(|uid| uid != first);
            (is_next && vm["status"]["ready"] == true).then_some(())
        });
        let second = harness.place("sandbox-1").uid;
        harness.until("its event", || {
            let events = harness.events("vm/sandbox-1");
            events
                .iter()
                .any(|event| event["uid"] == second.as_str())
                .then_some(())
        });
        let events = harness.events("vm/sandbox-1");
        assert!(
            events.iter().any(|event| event["uid"] == first.as_str()),
            "{events:?}"
        );
        let shown = |text: &str| text.matches(" Ready ").count();
        let described = harness.ctl("describe vm/sandbox-1");
        let described = described.split("Events:").nth(1).expect("events");
        assert_eq!(shown(described), 1, "{described}");
        let wide = harness.ctl("events vm/sandbox-1 -o wide");
        assert_eq!(shown(&wide), 2, "{wide}");
        assert!(wide.contains(&first) && wide.contains(&second), "{wide}");
    });
}

#[test]
fn a_group_with_a_vm_stopped_by_command_says_so() {
    with_daemon(|harness| {
        build(&harness);
        let table = harness.ctl("get hg sandbox");
        let row = table.lines().nth(1).expect("a row");
        assert!(row.contains("1/2") && row.contains("1 stopped"), "{table}");
        let described = harness.ctl("describe hg sandbox");
        assert!(described.contains("1 ready, 1 stopped"), "{described}");
    });
}
