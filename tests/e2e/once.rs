//! `sliced --once` that does not converge names each object, its condition, and the reason on standard error.
//! Out of scope: what converges.

use std::fs;

use test_support::harness::{Harness, empty, slots};
use test_support::kernel::run;

use super::power_verbs::manifest;

/// The exit status, and the lines after the log.
fn once(harness: &Harness) -> (Option<i32>, Vec<String>) {
    let mut command = harness.sliced();
    command.args(["--once", "--log", "off"]);
    let output = harness.run_to_end(command);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    (
        output.status.code(),
        error.lines().map(str::to_owned).collect(),
    )
}

/// `broken` cannot run on this host, `sandbox` is a slot without VMM.
fn broken() -> String {
    let missing = "hypervisor: qemu\n      kernel_file: /nowhere/vmlinuz";
    slots(1, "")
        .replace("hypervisor: none", missing)
        .replace("sandbox", "broken")
}

type Damage = fn(&Harness);

#[test]
fn what_does_not_converge_is_named_with_its_reason() {
    let cases: [(&str, Damage, &[&str]); 5] = [
        ("nothing", |_| {}, &[]),
        (
            "missing kernel",
            |harness| {
                harness.save(
                    "broken.yaml",
                    &broken().replace("169.254.100", "169.254.108"),
                )
            },
            &["vm/broken-1: Vmm is False (Invalid): /nowhere/vmlinuz is not a file on this host"],
        ),
        (
            "invalid manifest",
            |harness| {
                harness.save("broken.yaml", "config: {host_groups: 7}\n");
            },
            &["manifest/broken.yaml: "],
        ),
        (
            "conflict",
            |_| {
                run(
                    "set -e; link=$(ip -o link | sed -nE 's/^[0-9]+: (sl[a-z0-9]{13})@.*/\\1/p')
                     ip link del $link; ip link add $link type bridge",
                );
            },
            &["vm/sandbox-1: Net is False (Conflict): "],
        ),
        (
            "unobservable",
            |harness| {
                let vms = fs::read_dir(harness.run.join("vm")).expect("VMs");
                for vm in vms {
                    fs::write(vm.unwrap().path().join("launch.json"), "{").expect("written");
                }
            },
            &["vm/sandbox-1: Vmm is Unknown (ObserveFailed): "],
        ),
    ];
    for (name, damage, expected) in cases {
        empty(|harness| {
            harness.save("sandbox.yaml", &manifest(&harness));
            assert_eq!(once(&harness), (Some(0), Vec::new()), "{name}: before");
            damage(&harness);
            let (status, lines) = once(&harness);
            assert_eq!(
                status,
                Some(i32::from(!expected.is_empty())),
                "{name}: {lines:?}"
            );
            for text in expected {
                let found = lines.iter().filter(|line| line.starts_with(text));
                assert_eq!(found.count(), 1, "{name}: {text} in {lines:#?}");
            }
            let is_expected = |line: &&String| expected.iter().any(|text| line.starts_with(text));
            let others: Vec<&String> = lines.iter().filter(|line| !is_expected(line)).collect();
            assert_eq!(others, [""; 0], "{name}");
        });
    }
}
