//! Changes before and while they are made: fields, VMs, exit statuses, warnings.
//! Out of scope: what the changes then do (`difference`, `scale`, `questions`, `waiting`).

use std::fs;

use test_support::cni_networks;
use test_support::harness::{slots, with_daemon};
use test_support::kernel::run;
use test_support::transcript::Runner;

use super::{broken, lab};

#[test]
fn a_change_is_shown_by_field_and_by_vm() {
    with_daemon(|harness| {
        harness.save("lab.yaml", &lab());
        harness.apply(&slots(2, "drop: [10.0.0.0/8]"));
        let next = slots(3, "drop: [192.168.1.0/24]\n        on_deny: reject");
        let next = next.replace("vcpu: 1", "vcpu: 2");
        let live = harness.write("live.yaml", &slots(2, "drop: [192.168.1.0/24]"));
        let fewer =
            slots(1, "drop: [10.0.0.0/8]").replace("vcpu: 1", "vcpu: 1\n      update: on-delete");
        let fewer = harness.write("fewer.yaml", &fewer.replace("vcpu: 1", "vcpu: 2"));
        let next = harness.write("next.yaml", &next);
        let broken = harness.write("invalid.yaml", "config: [");
        harness.ctl("wait hg/lab --for ready");
        Runner::of(&harness).check(&[
            ("diff-fields", &format!("diff -f {next}")),
            ("diff-fields-live", &format!("diff -f {live}")),
            (
                "diff-fields-live-verbose",
                &format!("diff -f {live} --verbose"),
            ),
            ("diff-fields-on-delete", &format!("diff -f {fewer}")),
            ("diff-fields-json", &format!("diff -f {live} -o json")),
            (
                "diff-exit-code-differences",
                &format!("diff -f {live} --exit-code"),
            ),
            (
                "diff-exit-code-error",
                &format!("diff -f {broken} --exit-code"),
            ),
            (
                "apply-dry-run-fields",
                &format!("apply -f {next} --dry-run"),
            ),
            (
                "apply-dry-run-name",
                &format!("apply -f {next} --dry-run -o name"),
            ),
            ("apply-json", &format!("apply -f {live} -o json")),
            (
                "diff-exit-code-none",
                &format!("diff -f {live} --exit-code"),
            ),
            ("apply-name", &format!("apply -f {live} -o name --wait")),
            ("scale", "scale hg/sandbox --count 3 --wait"),
            ("scale-json", "scale hg/sandbox --count 3 -o json"),
            ("scale-of-file", "scale hg lab --count 2"),
        ]);
    });
}

#[test]
fn what_cannot_work_on_this_host_is_a_warning_before_it_is_tried() {
    cni_networks::with_daemon(|harness, _| {
        run("ip link add br0 type veth peer name other0; ip link add used0 type bridge; ip link set used0 up
             ip addr add 169.254.108.5/24 dev used0");
        let bridge = "config: {host_groups: [{name: web, hypervisor: none, network: {bridge: br0, tap_prefix: t, gateway: 10.55.0.1/24}}]}";
        let pod = "config: {host_groups: [{name: pod, hypervisor: none, network_name: nowhere}]}";
        let range = "config: {host_groups: [{name: taken, hypervisor: none, network: {mode: isolated, range: 169.254.108.0/24}}]}";
        let large = broken()
            .replace("name: broken", "name: large")
            .replace("169.254.105", "169.254.109")
            .replace("vcpu: 1", "vcpu: 255")
            .replace("ram_mb: 128", "ram_gb: 8192")
            .replace("count: 1", "count: 2");
        let image = harness.dir.path().join("image");
        let missing = "config: {host_groups: [{name: disk, hypervisor: none, image: <IMAGE>, network: {mode: isolated}}]}";
        let missing = missing.replace("<IMAGE>", &image.display().to_string());
        let mut runner = Runner::of(&harness);
        let text = fs::read_to_string("/proc/meminfo").expect("its memory");
        let kib = text
            .lines()
            .next()
            .and_then(|line| line.split_whitespace().nth(1));
        let kib: u64 = kib.and_then(|kib| kib.parse().ok()).expect("a number");
        runner.replace(slicectl::api::storage::Bytes(kib << 10), "<MEMORY>");
        let cpus = std::thread::available_parallelism().expect("CPUs");
        runner.replace(format!("has {cpus} CPUs"), "has <N> CPUs");
        for (name, text) in [
            ("apply-warning-kernel", broken().as_str()),
            ("apply-warning-large", &large),
            ("apply-warning-bridge", bridge),
            ("apply-warning-cni", pod),
            ("apply-warning-range", range),
            ("apply-warning-image", &missing),
        ] {
            let dry_run = runner.run_with_input("apply -f - --dry-run", text);
            let applied = runner.run_with_input("apply -f -", text);
            let warnings = |text: &str| -> Vec<String> {
                let lines = text.lines().map(str::to_owned);
                lines.filter(|line| !line.contains("would wait")).collect()
            };
            assert_eq!(warnings(&dry_run.stderr), warnings(&applied.stderr));
            assert!(!applied.stderr.is_empty(), "{name}");
            runner.compare(name, &applied);
        }
    });
}
