//! VMs of a fleet that are never replaced are started in any state of the connection; directly after a boot of the host with contact only.
//! Out of scope: VMs that may be replaced.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use test_support::harness;

use super::super::hosts::{Fleet, fleet};
use super::lost::until_contact;
use super::ready;
use super::replaced::replaceable;

/// A group with a double of a VMM that is never replaced.
pub(super) fn kept(programs: &Path) -> String {
    let lines = replaceable(programs);
    let lines = lines.lines().filter(|line| !line.contains("replacement:"));
    lines.collect::<Vec<_>>().join("\n")
}

fn pid(fleet: &Fleet) -> Option<u64> {
    let vm = fleet.hosts[0].harness.get("vm web-1");
    vm["status"]["vmm"]["pid"].as_u64()
}

/// Kills the VMM; its pid.
fn kill(fleet: &Fleet) -> u64 {
    let pid = pid(fleet).expect("it runs");
    harness::signal(u32::try_from(pid).expect("a pid"), Signal::KILL);
    pid
}

#[test]
fn a_vm_that_is_never_replaced_is_started_again_in_any_state_of_the_settings() {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    fleet(1, 1, |fleet| {
        fleet.apply(&kept(programs.path()));
        ready(fleet, 1);
        let path = fleet.hosts[0].harness.dir().join("sliced.yaml");
        let text = std::fs::read_to_string(&path).expect("readable");
        let variants = [
            ("without a fleet", String::new(), "not part of a fleet"),
            (
                "with settings that cannot be used",
                text.replace("key.pem", "no.pem"),
                "no.pem",
            ),
            ("with another port", text.replace(":2379", ":2399"), "2399"),
        ];
        for (name, changed, expected) in variants {
            std::fs::write(&path, changed).expect("written");
            let harness = &fleet.hosts[0].harness;
            harness.until(expected, || {
                let output = harness.try_ctl("fleet status");
                let text = [output.stdout, output.stderr].concat();
                String::from_utf8_lossy(&text)
                    .contains(expected)
                    .then_some(())
            });
            let before = kill(fleet);
            let find = || pid(fleet).filter(|found| *found != before);
            harness.until(name, find);
        }
    });
}

/// The daemon starts again on a host that was booted so many seconds ago.
fn restart_after_boot(fleet: &mut Fleet, seconds: u64) {
    let uptime = std::fs::read_to_string("/proc/uptime").expect("readable");
    let uptime: f64 = uptime
        .split(' ')
        .next()
        .and_then(|it| it.parse().ok())
        .expect("a number");
    let offset = uptime as u64 - seconds;
    let harness = &mut fleet.hosts[0].harness;
    let end = harness
        .starter
        .iter()
        .position(|word| word == "--")
        .expect("the command follows");
    harness.starter.truncate(end + 1);
    let time = format!("--boottime=-{offset}");
    let arguments = ["unshare", "--time", &time, "--"].map(str::to_owned);
    harness.starter.extend(arguments);
    harness.start();
}

#[test]
fn directly_after_a_boot_a_vm_of_a_fleet_waits_for_contact_and_no_longer_than_90_seconds() {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    fleet(1, 1, |fleet| {
        fleet.apply(&kept(programs.path()));
        ready(fleet, 1);
        for member in [0, 1] {
            fleet.lab.kill(member);
        }
        let before = kill_with_daemon(fleet);
        restart_after_boot(fleet, 5);
        let harness = &fleet.hosts[0].harness;
        harness.until("it waits", || {
            let text = harness.ctl("describe vm web-1");
            text.contains("it may have been moved while this host was off")
                .then_some(())
        });
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(8) {
            assert_eq!(pid(fleet), None);
            std::thread::sleep(Duration::from_millis(200));
        }
        for member in [0, 1] {
            fleet.lab.restart_without_majority(member);
        }
        until_contact(fleet, 0, "Connected");
        fleet.within(Duration::from_secs(50), "it is started", |fleet| {
            pid(fleet).filter(|found| *found != before)
        });
        // Without contact it is started when the time is over.
        for member in [0, 1] {
            fleet.lab.kill(member);
        }
        let before = kill_with_daemon(fleet);
        restart_after_boot(fleet, 80);
        // The daemon reports the pid that it has stored until it has looked.
        fleet.within(Duration::from_secs(8), "it is not started", |fleet| {
            pid(fleet).is_none().then_some(())
        });
        fleet.within(Duration::from_secs(60), "the time is over", |fleet| {
            pid(fleet).filter(|found| *found != before)
        });
    });
}

/// Kills the daemon and the VMM; the pid of the VMM.
fn kill_with_daemon(fleet: &mut Fleet) -> u64 {
    let vmm = pid(fleet).expect("it runs");
    fleet.hosts[0].harness.kill();
    harness::signal(u32::try_from(vmm).expect("a pid"), Signal::KILL);
    vmm
}
