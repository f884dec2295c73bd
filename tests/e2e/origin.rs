//! A group belongs to where it came from: a file, or an apply.
//! Out of scope: how a change is carried out (`reload`).

use std::time::Duration;

use test_support::harness::{Harness, group, slots, with_daemon};

fn vm_is_ready(harness: &Harness, vm: &str) {
    harness.until(vm, || {
        (harness.get(&format!("vm {vm}"))["status"]["ready"] == true).then_some(())
    });
}

#[test]
fn what_a_file_owns_is_neither_applied_over_nor_deleted_and_the_file_is_named() {
    with_daemon(|harness| {
        harness.save("web.yaml", &slots(1, ""));
        vm_is_ready(&harness, "sandbox-1");
        let file = harness.write("mine.yaml", &slots(3, ""));
        for words in [
            format!("apply -f {file}"),
            "delete hg sandbox".into(),
            format!("delete -f {file}"),
        ] {
            let output = harness.refused(&words, 1);
            assert!(output.contains("conf/web.yaml"), "{words}: {output}");
            assert_eq!(
                output.trim().lines().count(),
                1,
                "one cause a line: {output}"
            );
        }
        assert_eq!(harness.vms(), ["sandbox-1"]);
    });
}

#[test]
fn a_group_that_leaves_its_file_is_removed_and_its_neighbour_is_not() {
    with_daemon(|harness| {
        let both = format!(
            "{}{}",
            slots(1, ""),
            group("other", 1, "169.254.104.0/22", "").replace("config:\n  host_groups:\n", "")
        );
        harness.save("web.yaml", &both);
        vm_is_ready(&harness, "sandbox-1");
        vm_is_ready(&harness, "other-1");
        let uid = harness.place("sandbox-1").uid;
        harness.save("web.yaml", &slots(1, ""));
        harness.ctl("wait hg/other vm/other-1 --for deleted --timeout 20s");
        assert_eq!(harness.place("sandbox-1").uid, uid);
        std::fs::remove_file(harness.conf().join("web.yaml")).unwrap();
        harness.ctl("wait hg/sandbox vm/sandbox-1 --for deleted --timeout 20s");
        assert_eq!(harness.get("leases")["items"].as_array().unwrap().len(), 0);
    });
}

#[test]
fn the_same_group_in_two_files_is_refused_and_what_runs_is_unchanged() {
    with_daemon(|harness| {
        harness.save("a.yaml", &slots(1, ""));
        vm_is_ready(&harness, "sandbox-1");
        let uid = harness.place("sandbox-1").uid;
        harness.save("b.yaml", &slots(2, ""));
        let reported = harness.until("the event", || {
            harness.messages("", "ManifestInvalid").pop()
        });
        assert!(
            reported.contains("a.yaml")
                && reported.contains("b.yaml")
                && reported.contains("sandbox"),
            "{reported}"
        );
        assert_eq!(
            (harness.vms(), harness.place("sandbox-1").uid),
            (vec!["sandbox-1".to_owned()], uid)
        );
    });
}

#[test]
fn overlapping_ranges_are_refused_and_what_runs_is_unchanged() {
    with_daemon(|harness| {
        harness.save("a.yaml", &slots(1, ""));
        vm_is_ready(&harness, "sandbox-1");
        harness.save("b.yaml", &group("late", 1, "169.254.100.0/23", ""));
        let reported = harness.until("the event", || {
            harness.messages("", "ManifestInvalid").pop()
        });
        assert!(
            reported.contains("169.254.100.0/2") && reported.contains("sandbox"),
            "{reported}"
        );
        let file = harness.write("late.yaml", &group("late", 1, "169.254.102.0/23", ""));
        let output = harness.refused(&format!("apply -f {file}"), 1);
        assert!(
            output.contains("sandbox") && output.contains("169.254.10"),
            "{output}"
        );
        assert_eq!(harness.vms(), ["sandbox-1"]);
    });
}

#[test]
fn apply_prints_created_configured_unchanged_and_a_dry_run_stores_nothing() {
    with_daemon(|harness| {
        let file = harness.write("m.yaml", &slots(1, ""));
        let preview = harness.ctl(&format!("diff -f {file}"));
        assert!(preview.contains("vm/sandbox-1: add\n"), "{preview}");
        let steps = harness.ctl(&format!("diff -f {file} --verbose"));
        assert!(steps.contains("lease 169.254."), "{steps}");
        assert_eq!(
            harness.ctl(&format!("apply -f {file} --dry-run")),
            preview.replace("sandbox: create\n", "sandbox: create (dry run)\n")
        );
        assert!(harness.get("hg sandbox").is_null());
        assert_eq!(
            harness.ctl(&format!("apply -f {file}")),
            "hostgroup/sandbox created\n"
        );
        vm_is_ready(&harness, "sandbox-1");
        assert_eq!(
            harness.ctl(&format!("apply -f {file}")),
            "hostgroup/sandbox unchanged\n"
        );
        assert_eq!(harness.ctl(&format!("diff -f {file}")), "");
        harness.write("m.yaml", &slots(1, "allow: [\"192.0.2.1:80\"]"));
        assert!(
            harness
                .ctl(&format!("diff -f {file}"))
                .contains("sandbox-1")
        );
        assert_eq!(
            harness.ctl(&format!("apply -f {file}")),
            "hostgroup/sandbox configured\n"
        );
    });
}

#[test]
fn a_renamed_file_goes_on_owning_its_group_and_that_is_no_drift() {
    with_daemon(|harness| {
        harness.save("old.yaml", &slots(1, ""));
        vm_is_ready(&harness, "sandbox-1");
        let uid = || harness.get("vm sandbox-1")["metadata"]["uid"].clone();
        let before = uid();
        std::fs::rename(
            harness.conf().join("old.yaml"),
            harness.conf().join("new.yaml"),
        )
        .unwrap();
        harness.until("the new owner", || {
            let output = harness.ctl("describe hg/sandbox");
            output.contains("new.yaml").then_some(())
        });
        harness.ctl("gc");
        harness.stays(Duration::from_millis(500), || harness.messages("", "Drift"));
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_eq!(uid(), before);
    });
}
