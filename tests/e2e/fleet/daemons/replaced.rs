//! VMs that are replaced when contact to their node is lost: at no instant two copies run.
//! Out of scope: the plan (`src/fleet/node/simulation`).

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use slicectl::api::vm::Hypervisor;
use test_support::{harness, vmm};

use super::super::hosts::{Fleet, Host, fleet_with};
use super::{group, ready};

/// Longer than the lease, `replace_after` and a start.
const REPLACED: Duration = Duration::from_secs(200);

/// A group with a double of a VMM that may be replaced.
pub(super) fn replaceable(dir: &std::path::Path) -> String {
    let program = vmm::program(Hypervisor::CloudHypervisor, dir).expect("a program");
    let lines = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}\n      agent: none\n      graceful_shutdown: 1s\n      replacement: {{replace_after: 62s, stop_after: 30s}}",
        program.display(),
        vmm::tiny_guest().display()
    );
    group("web", 1, "").replace("hypervisor: none", &lines)
}

/// The pid of the VMM of `web-1` on a host, if it runs.
pub(super) fn running(fleet: &Fleet, host: usize) -> Option<u64> {
    let run = &fleet.hosts[host].harness.run;
    let vms = std::fs::read_dir(run.join("vm")).ok()?;
    let records =
        vms.filter_map(|dir| std::fs::read_to_string(dir.ok()?.path().join("process")).ok());
    // The last line is one of /proc/PID/stat.
    let mut pids = records.filter_map(|text| {
        let line = text.lines().last()?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    pids.find(|pid| runs(*pid))
}

/// A zombie runs nothing; a daemon that is suspended does not reap it.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// The hosts on which it runs.
pub(super) fn holders(fleet: &Fleet) -> Vec<usize> {
    (0..fleet.hosts.len())
        .filter(|host| running(fleet, *host).is_some())
        .collect()
}

/// Loses a node by `lose`, waits until the VM runs on another one, and returns the first node.
fn replace(fleet: &mut Fleet, programs: &std::path::Path, lose: impl Fn(&Fleet, usize)) -> usize {
    fleet.ctl("node cordon node-a");
    fleet.apply(&replaceable(programs));
    ready(fleet, 1);
    let [first] = holders(fleet)[..] else {
        panic!("one host runs the VM: {:?}", holders(fleet));
    };
    let begin = Instant::now();
    lose(fleet, first);
    let mut stopped = None;
    loop {
        let holders = holders(fleet);
        assert!(holders.len() <= 1, "two copies run: {holders:?}");
        match holders[..] {
            [] => {
                stopped.get_or_insert(begin.elapsed());
            }
            [host] if host != first => break,
            _ => assert!(stopped.is_none(), "it was started again without contact"),
        }
        assert!(
            begin.elapsed() < REPLACED,
            "it was not replaced:\n{}",
            fleet.hosts[0].harness.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let (stopped, replaced) = (stopped.expect("it was stopped before"), begin.elapsed());
    // The last renewal was at most 10 s before.
    assert!(
        stopped > Duration::from_secs(18) && stopped < Duration::from_secs(45),
        "{stopped:?}"
    );
    assert!(replaced > Duration::from_secs(62), "{replaced:?}");
    first
}

/// The epoch of the VM, when it is Ready.
pub(super) fn epoch(fleet: &Fleet) -> u64 {
    let vms: Vec<Value> = ready(fleet, 1);
    vms[0]["epoch"].as_u64().expect("an epoch")
}

#[test]
fn a_partitioned_node_stops_its_vm_before_another_node_starts_it_and_deletes_its_copy_when_it_returns()
 {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let dir = programs.path().to_owned();
    fleet_with(
        3,
        1,
        |host| host.start_guard(),
        |fleet| {
            let first = replace(fleet, &dir, |fleet, host| fleet.hosts[host].cut_off());
            assert_eq!(epoch(fleet), 2);
            fleet.hosts[first].heal();
            fleet.within(
                Duration::from_secs(90),
                "the first copy is deleted",
                |fleet| {
                    assert!(holders(fleet).len() <= 1);
                    // A daemon that was suspended may not answer at once.
                    let list = fleet.hosts[first].harness.get("vms");
                    list["items"].as_array()?.is_empty().then_some(())
                },
            );
            assert_eq!(epoch(fleet), 2);
            assert!(!holders(fleet).contains(&first));
        },
    );
}

#[test]
fn the_guard_stops_the_vm_of_a_daemon_that_is_suspended() {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let dir = programs.path().to_owned();
    fleet_with(
        3,
        1,
        |host| host.start_guard(),
        |fleet| {
            let first = replace(fleet, &dir, |fleet, host| {
                harness::signal(fleet.hosts[host].harness.pid(), Signal::STOP);
            });
            harness::signal(fleet.hosts[first].harness.pid(), Signal::CONT);
            fleet.within(
                Duration::from_secs(90),
                "the first copy is deleted",
                |fleet| {
                    assert!(holders(fleet).len() <= 1);
                    // A daemon that was suspended may not answer at once.
                    let list = fleet.hosts[first].harness.get("vms");
                    list["items"].as_array()?.is_empty().then_some(())
                },
            );
            assert_eq!(epoch(fleet), 2);
        },
    );
}

#[test]
fn a_node_without_a_guard_gets_no_vm_that_may_be_replaced_and_promises_the_end_of_none() {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let dir = programs.path().to_owned();
    fleet_with(
        1,
        1,
        |_| {},
        |fleet| {
            fleet.apply(&replaceable(&dir));
            fleet.until("the VM is pending", |fleet| {
                let vms = fleet.get("vms --fleet")?;
                let text = serde_json::to_string(&vms).expect("JSON");
                text.contains("1 no guard runs").then_some(())
            });
            assert!(holders(fleet).is_empty());
            fleet.hosts[0].start_guard();
            ready(fleet, 1);
            let promises = |fleet: &Fleet| {
                let text = fleet.lab.ctl("get --prefix /slice/v1/status/");
                text.contains("stops_within")
            };
            fleet.until("the guard has the VM", |fleet| {
                promises(fleet).then_some(())
            });
            fleet.hosts[0].stop_guard();
            fleet.until("the node withdraws its promise", |fleet| {
                (!promises(fleet)).then_some(())
            });
            assert_eq!(holders(fleet), [0], "the VM runs on");
        },
    );
}

#[test]
fn without_contact_a_vm_that_failed_is_started_again_only_if_it_is_never_replaced() {
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let replaced = replaceable(programs.path()).replace(
        "replace_after: 62s, stop_after: 30s",
        "replace_after: 10m, stop_after: 5m",
    );
    let kept = replaced
        .lines()
        .filter(|line| !line.contains("replacement:"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("name: web", "name: kept");
    fleet_with(1, 1, Host::start_guard, |fleet| {
        fleet.apply(&replaced);
        fleet.apply(&kept);
        ready(fleet, 2);
        for member in [0, 1] {
            fleet.lab.kill(member);
        }
        fleet.within(Duration::from_secs(90), "contact is lost", |fleet| {
            let output = fleet.hosts[0].harness.try_ctl("fleet status");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.contains("Unreachable").then_some(())
        });
        let harness = &fleet.hosts[0].harness;
        let pid = |vm: &str| {
            let vm = harness.get(&format!("vm {vm}"));
            vm["status"]["vmm"]["pid"].as_u64()
        };
        let before = ["web-1", "kept-1"].map(|vm| pid(vm).expect("it runs"));
        for pid in before {
            harness::signal(u32::try_from(pid).expect("a pid"), Signal::KILL);
        }
        harness.until("the VM that is never replaced runs again", || {
            pid("kept-1").filter(|found| *found != before[1])
        });
        let condition = harness.until("the other one waits", || {
            let text = harness.ctl("describe vm web-1");
            text.contains("it may be replaced by another node")
                .then_some(text)
        });
        std::thread::sleep(Duration::from_secs(3));
        assert!(!runs(before[0]) && pid("web-1").is_none(), "{condition}");
        // A user does not start it either.
        harness.try_ctl("vm start web-1");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(pid("web-1"), None);
        for member in [0, 1] {
            fleet.lab.restart_without_majority(member);
        }
        harness.until("it runs when contact is restored", || pid("web-1"));
        ready(fleet, 2);
    });
}
