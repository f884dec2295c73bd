//! The wall clock of nodes and of the leader is set while VMs run: times without contact are not of the wall clock.
//! Out of scope: backoffs (`src/fleet/schedule`); clocks that have no steps.
//!
//! # How
//! A library that is loaded before libc adds the seconds in a file to `CLOCK_REALTIME`. The clock of the machine is not changed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use test_support::programs;

use super::super::hosts::{Fleet, fleet_with};
use super::replaced::{epoch, holders, replaceable, running};
use super::{group, ready};

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    if (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE) return result;
    char text[32] = {0};
    const char *path = getenv("TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
        close(file);
    }
    return result;
}
"#;

fn library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, LIBRARY).expect("written");
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]);
    let built = command.arg(&library).arg(&source).status();
    assert!(built.expect("cc").success());
    library
}

/// Sets the clocks of these hosts to so many seconds from now, by a replacement of the file.
fn set(fleet: &Fleet, seconds: [i64; 2]) {
    for (host, seconds) in fleet.hosts.iter().zip(seconds) {
        let dir = host.harness.dir();
        std::fs::write(dir.join("clock.new"), seconds.to_string()).expect("written");
        std::fs::rename(dir.join("clock.new"), dir.join("clock")).expect("replaced");
    }
}

/// By how many seconds the clock of the first host differs.
fn difference(fleet: &Fleet, group: &str) -> i64 {
    let found = fleet.hosts[0]
        .harness
        .get(&format!("hostgroup {group} --fleet"));
    let created = &found["metadata"]["created_at"];
    let created = created.as_str().expect("a time");
    let created: Timestamp = created.parse().expect("a time");
    created.duration_since(Timestamp::now()).as_secs()
}

#[test]
fn steps_of_the_wall_clock_stop_and_replace_no_vm_and_work_goes_on() {
    let dir = tempfile::tempdir_in(programs::scratch()).expect("a directory");
    let library = library(dir.path());
    fleet_with(
        2,
        2,
        |host| {
            let clock = host.harness.dir().join("clock");
            std::fs::write(&clock, "0").expect("written");
            let variables = [
                format!("LD_PRELOAD={}", library.display()),
                format!("TEST_CLOCK={}", clock.display()),
            ];
            host.harness.starter.push("env".to_owned());
            host.harness.starter.extend(variables);
            host.start_guard();
        },
        |fleet| {
            fleet.apply(&replaceable(dir.path()));
            ready(fleet, 1);
            let [host] = holders(fleet)[..] else {
                panic!("one host runs the VM: {:?}", holders(fleet));
            };
            let before = (running(fleet, host), epoch(fleet));
            let steps = [
                [3600, 0],
                [0, 3600],
                [-3600, 3600],
                [-86_400, -86_400],
                [0, 0],
            ];
            for (at, step) in steps.into_iter().enumerate() {
                set(fleet, step);
                // The plans of the node, of the guard and of the leader are made each second, or when something changes.
                std::thread::sleep(Duration::from_secs(3));
                let name = format!("more-{at}");
                fleet.apply(&group(&name, 2, ""));
                ready(fleet, 3);
                let found = difference(fleet, &name);
                assert!((found - step[0]).abs() < 60, "{step:?}: {found}");
                fleet.ctl(&format!("delete hg {name} --fleet --wait=60s"));
                assert_eq!((running(fleet, host), epoch(fleet)), before, "{step:?}");
                let nodes = fleet.get("nodes").expect("nodes");
                let is_ready = |node: &serde_json::Value| node["states"][0] == "Ready";
                assert!(nodes.iter().all(is_ready), "{step:?}: {nodes:?}");
            }
        },
    );
}
