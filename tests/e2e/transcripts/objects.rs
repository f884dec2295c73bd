//! Objects in all states: listed, described, explained, waited for, stopped, deleted.
//! Out of scope: VMs on demand, manifests, streams.

use test_support::harness::{Harness, empty, with_daemon};
use test_support::kernel::run;
use test_support::transcript::Runner;

use super::{break_link, broken, guest_is_up, lab, sandbox, stuck};

/// `lab` from a file, an invalid file, `sandbox` with a VM that runs and one with a conflict, `stuck` in deletion, `broken`.
fn build(harness: &mut Harness) -> Runner {
    harness.save("lab.yaml", &lab());
    harness.save("bad.yaml", "config:\n  host_groups:\n    - {nmae: bad}\n");
    harness.start();
    harness.apply(&sandbox(harness));
    harness.apply(&stuck(harness));
    guest_is_up(harness, "sandbox-1");
    guest_is_up(harness, "stuck-1");
    harness.ctl("wait hg/lab --for ready --timeout 60s");
    break_link(harness, "sandbox-2");
    harness.ctl("delete hg stuck");
    let broken = harness.write("broken.yaml", &broken());
    harness.ctl(&format!("apply -f {broken}"));
    harness.until("the missing kernel", || {
        let vm = harness.get("vm broken-1")["status"].to_string();
        vm.contains("/nowhere/vmlinuz").then_some(())
    });
    Runner::of(harness)
}

#[test]
fn objects_in_all_states_are_listed_described_and_explained() {
    empty(|mut harness| {
        let runner = build(&mut harness);
        runner.check(&[
            ("get-hostgroups", "get hostgroups"),
            ("get-hostgroups-wide", "get hg -o wide"),
            ("get-vms", "get vms"),
            ("get-vms-wide", "get vms -o wide"),
            ("get-vms-name", "get vms -o name"),
            ("get-leases", "get leases"),
            ("get-leases-wide", "get lease -o wide"),
            ("get-vm-json", "get vm sandbox-1 -o json"),
            ("get-vm-yaml", "get vm/sandbox-1 -o yaml"),
            ("get-hostgroup-json", "get hostgroup/sandbox -o json"),
            ("get-lease-json", "get lease/sandbox-1 -o json"),
            ("get-two-json", "get lease lab-1 sandbox-1 -o json"),
            ("get-leases-yaml", "get leases -o yaml"),
            ("get-kinds-mixed", "get vm/lab-1 lease/lab-1 hg/lab"),
            ("get-one-missing", "get vm sandbox-1 sandbox-9"),
            ("describe-vm", "describe vm/sandbox-2"),
            ("describe-vm-up", "describe vm sandbox-1"),
            ("describe-vm-broken", "describe vm broken-1"),
            ("describe-vm-deleting", "describe vm stuck-1"),
            ("describe-hostgroup", "describe hg sandbox"),
            ("describe-hostgroup-file", "describe hg lab"),
            ("describe-lease", "describe lease/lab-1"),
            ("describe-missing", "describe vm/none-such"),
            ("events-vm", "events vms sandbox-1"),
            ("events-manifest", "events manifest/bad.yaml"),
            ("events-none", "events vm/never-was"),
            ("events-json", "events manifest/bad.yaml -o json"),
            ("events-yaml", "events manifest/bad.yaml -o yaml"),
            ("logs", "logs sandbox-1"),
            ("logs-last", "logs sandbox-1 --lines 1"),
            ("logs-none", "logs lab-1"),
            ("logs-missing", "logs vm/none-such"),
            ("explain-dropped", "explain sandbox-1 192.168.1.9:443"),
            (
                "explain-allowed",
                "explain vm/sandbox-1 192.168.1.7:443/tcp",
            ),
            ("explain-ping", "explain sandbox-1 8.8.8.8 -o json"),
            ("explain-reserved", "explain sandbox-1 169.254.169.254:80"),
            ("explain-missing", "explain sandbox-11 8.8.8.8"),
            (
                "wait-ready",
                "wait hg/lab vm/lab-1 lease/lab-1 --for ready --timeout 20s",
            ),
            ("wait-gone", "wait vm never-was --for deleted --timeout 20s"),
            (
                "wait-timeout-hostgroup",
                "wait hg/sandbox --for ready --timeout 300ms",
            ),
            (
                "wait-timeout-vm",
                "wait vm/sandbox-2 vm/lab-1 --for ready --timeout 300ms",
            ),
            (
                "wait-timeout-deleted",
                "wait vm/stuck-1 vm/sandbox-1 --for deleted --timeout 300ms",
            ),
            (
                "wait-timeout-absent",
                "wait vm/none-such --for ready --timeout 300ms",
            ),
            (
                "wait-paused-hostgroup",
                "wait hg/lab --for paused --timeout 300ms",
            ),
            ("delete-lease", "delete lease/sandbox-1"),
            ("delete-missing", "delete vm/none-such"),
            ("delete-force-missing", "delete vm/none-such --force"),
            (
                "delete-missing-ignored",
                "delete vm/none-such --ignore-not-found",
            ),
            ("delete-of-file", "delete hg lab"),
        ]);
    });
}

#[test]
fn a_vm_is_paused_stopped_started_and_measured() {
    with_daemon(|harness| {
        harness.apply(&lab());
        harness.apply(&sandbox(&harness));
        guest_is_up(&harness, "sandbox-1");
        Runner::of(&harness).check(&[
            ("vm-metrics-none", "vm metrics lab-1"),
            ("vm-metrics-missing", "vm metrics none-such"),
            ("vm-pause-none", "vm pause lab-1"),
            ("vm-pause-missing", "vm pause none-such sandbox-1"),
            ("vm-pause", "vm pause sandbox-1 --wait --timeout 20s"),
            // The guest is paused: its counters do not change.
            ("vm-metrics", "vm metrics sandbox-1"),
            ("vm-metrics-json", "vm metrics vm/sandbox-1 -o json"),
            ("get-vm-paused", "get vm/sandbox-1"),
            ("vm-pause-again", "vm pause vm/sandbox-1"),
            ("vm-stop", "vm stop sandbox-1 --wait=20s"),
            ("get-vm-stopped", "get vm/sandbox-1"),
            ("describe-vm-stopped", "describe vm/sandbox-1"),
            ("vm-start", "vm start sandbox-1 --wait=20s"),
            ("vm-restart", "vm restart sandbox-1 --wait=20s"),
        ]);
    });
}

#[test]
fn orphans_are_listed_and_removed() {
    with_daemon(|harness| {
        harness.apply(&lab());
        let place = harness.place("lab-1");
        let alias = run(&format!("cat /sys/class/net/{}/ifalias", place.link));
        let orphan = alias
            .trim()
            .replace("lab-1@", "gone-1@")
            .replace(&place.uid, "11111111-2222-4333-8444-555555555555");
        let names = slicectl::owner::names_of(&orphan.parse().expect("a label"));
        run(&format!(
            "ip link add {0} type bridge; ip link set {0} alias '{orphan}'",
            names.host_link
        ));
        Runner::of(&harness).check(&[
            ("gc-dry-run", "gc --dry-run"),
            ("gc-dry-run-json", "gc --dry-run -o json"),
            ("gc", "gc"),
            ("gc-nothing", "gc"),
        ]);
    });
}

#[test]
fn the_events_of_a_first_group_are_in_their_order() {
    with_daemon(|harness| {
        harness.apply(&lab());
        harness.until("its last event", || {
            harness.messages("vm/lab-1", "Ready").pop()
        });
        Runner::of(&harness).check(&[("events", "events")]);
    });
}

#[test]
fn the_version_names_the_daemon_and_its_directories() {
    with_daemon(|harness| {
        let mut runner = Runner::of(&harness);
        runner.replace(env!("CARGO_PKG_VERSION"), "<VERSION>");
        runner.check(&[("version", "version"), ("version-json", "version -o json")]);
    });
}

/// What it finds depends on the machine: compared is the table with the other formats.
#[test]
fn doctor_lists_each_check_suggests_fixes_and_fails_with_any_that_fails() {
    with_daemon(|harness| {
        let runner = Runner::of(&harness);
        let json = runner.run("doctor -o json");
        let checks: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
        let checks = checks["items"]
            .as_array()
            .or(checks.as_array())
            .expect("checks")
            .clone();
        assert!(checks.len() > 10, "{json:?}");
        let failed = checks
            .iter()
            .filter(|check| check["verdict"] == "fail")
            .count();
        let table = runner.run("doctor");
        let lines: Vec<&str> = table.stdout.lines().collect();
        assert!(lines[0].starts_with("RESULT   CHECK"), "{table:?}");
        let name = lines[0].find("CHECK").expect("a column");
        for (check, line) in checks.iter().zip(&lines[1..]) {
            let (status, check) = (check["verdict"].as_str(), check["name"].as_str());
            let status = status.map(|status| if status == "skipped" { "-" } else { status });
            assert!(line.starts_with(status.expect("a status")), "{line}");
            assert!(line[name..].starts_with(check.expect("a name")), "{line}");
        }
        for check in checks.iter().filter(|check| check["remedy"] != "") {
            let name = check["name"].as_str().expect("a name");
            assert!(
                table.stdout.contains(&format!("\n  {name}: ")),
                "{name}: {table:?}"
            );
        }
        let summary = format!("{} checks: ", checks.len());
        let last = lines.last().expect("a line");
        assert!(last.starts_with(&summary), "{table:?}");
        assert_eq!(table.code, i32::from(failed > 0), "{table:?}");
        assert_eq!(table.stderr.contains("failed"), failed > 0, "{table:?}");
        let yaml = runner.run("doctor -o yaml");
        let yaml: serde_yaml::Value = serde_yaml::from_str(&yaml.stdout).expect("YAML");
        let yaml = yaml.get("items").unwrap_or(&yaml);
        assert_eq!(yaml.as_sequence().map(Vec::len), Some(checks.len()));
    });
}
