//! What `--wait` and `wait` wait for: not for what only a change by the user can help, and for everything else.
//! Out of scope: the texts (`transcripts`).

use std::time::{Duration, Instant};

use test_support::harness::{Harness, group, slots, with_daemon};

/// Much shorter than the timeouts of these tests.
const SOON: Duration = Duration::from_secs(20);

/// A group whose kernel does not exist.
fn without_kernel(harness: &Harness, count: u32) -> String {
    let kernel = harness.dir.path().join("kernel");
    let lines = format!("hypervisor: qemu\n      kernel_file: {}", kernel.display());
    group("lost", count, "169.254.105.0/24", "").replace("hypervisor: none", &lines)
}

fn fails_soon(harness: &Harness, arguments: &str) -> String {
    let begin = Instant::now();
    let output = harness.refused(arguments, 1);
    assert!(begin.elapsed() < SOON, "{arguments}: {output}");
    assert!(output.contains("without a change"), "{arguments}: {output}");
    assert!(output.contains("is not a file on this host"), "{output}");
    output
}

#[test]
fn what_only_the_user_can_change_is_not_waited_for() {
    with_daemon(|harness| {
        let file = harness.write("lost.yaml", &without_kernel(&harness, 2));
        let output = fails_soon(&harness, &format!("apply -f {file} --wait=10m"));
        assert!(
            output.contains("hostgroup/lost cannot become ready"),
            "{output}"
        );
        for arguments in [
            format!("apply -f {file} --wait=10m"),
            "vm add lost --name extra --wait=10m".to_owned(),
            "scale hg/lost --count 3 --wait=10m".to_owned(),
        ] {
            fails_soon(&harness, &arguments);
        }
        // Somebody else may make the change.
        let output = harness.refused("wait hg/lost --for ready --timeout 3s", 1);
        assert!(output.contains("timed out after 3s"), "{output}");
    });
}

#[test]
fn a_corrected_manifest_or_host_is_waited_for() {
    with_daemon(|harness| {
        let lost = harness.write("lost.yaml", &without_kernel(&harness, 1));
        fails_soon(&harness, &format!("apply -f {lost} --wait=10m"));
        // The manifest: at the first look the VM still has its earlier condition.
        let slot = harness.write("slot.yaml", &group("lost", 1, "169.254.105.0/24", ""));
        let output = harness.ctl(&format!("apply -f {slot} --wait=60s"));
        assert!(output.contains("hostgroup/lost ready (1/1 in "), "{output}");
        // A replacement that is not possible is as terminal.
        let output = fails_soon(&harness, &format!("apply -f {lost} --wait=10m"));
        assert!(output.contains("not replaced"), "{output}");
        // The host: the same manifest again is tried again.
        std::fs::write(harness.dir.path().join("kernel"), "no kernel").expect("written");
        let output = harness.refused(&format!("apply -f {lost} --wait=4s"), 1);
        assert!(!output.contains("is not a file on this host"), "{output}");
    });
}

#[test]
fn a_conflict_that_another_program_may_end_is_waited_for() {
    with_daemon(|harness| {
        harness.apply(&slots(1, ""));
        let link = harness.place("sandbox-1").link;
        test_support::kernel::run(&format!(
            "ip link del {link}; ip link add {link} type bridge"
        ));
        harness.until("the conflict", || {
            let vm = harness.get("vm sandbox-1").to_string();
            vm.contains("\"Conflict\"").then_some(())
        });
        let output = harness.refused("wait vm/sandbox-1 --for ready --timeout 2s", 1);
        assert!(output.contains("timed out after 2s"), "{output}");
    });
}
