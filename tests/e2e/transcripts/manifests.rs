//! Manifests: applied, compared, deleted, from files, directories and standard input.
//! Out of scope: what a manifest may contain (`tests/pure/manifests.rs`).

use std::fs;

use test_support::harness::{Harness, slots, with_daemon};
use test_support::transcript::Runner;

use super::{broken, lab, stuck};

const TWO_GROUPS: &str = "\
config:
  host_groups:
    - {name: fresh, count: 2, hypervisor: none, network: {mode: isolated}}
    - {name: sandbox, count: 3, hypervisor: none, network: {mode: isolated}}
";

fn one(name: &str) -> String {
    format!(
        "config: {{host_groups: [{{name: {name}, hypervisor: none, network: {{mode: isolated}}}}]}}"
    )
}

#[test]
fn manifests_are_applied_compared_and_deleted() {
    with_daemon(|harness| {
        harness.apply(&TWO_GROUPS.replace(
            "    - {name: fresh, count: 2, hypervisor: none, network: {mode: isolated}}\n",
            "",
        ));
        let file = harness.write("two.yaml", TWO_GROUPS);
        let more = TWO_GROUPS
            .replace("count: 3", "count: 2")
            .replace("count: 2", "count: 1");
        let fewer = harness.write("fewer.yaml", &more);
        let folder = harness.dir.path().join("folder");
        fs::create_dir_all(folder.join("below")).expect("a directory");
        for (name, group) in [
            ("b.yml", "fromb"),
            ("a.yaml", "froma"),
            ("below/c.yaml", "below"),
        ] {
            fs::write(folder.join(name), one(group)).expect("written");
        }
        fs::write(folder.join("README.txt"), "no YAML: [").expect("written");
        let runner = Runner::of(&harness);
        let folder = folder.display();
        for (name, command) in [
            ("diff", format!("diff -f {file}")),
            ("diff-verbose", format!("diff -f {file} --verbose")),
            ("diff-json", format!("diff -f {file} -o json")),
            ("apply-dry-run", format!("apply -f {file} --dry-run")),
            ("apply-wait", format!("apply -f {file} --wait=60s")),
            ("apply-again", format!("apply -f {file}")),
            ("diff-nothing", format!("diff -f {file}")),
            ("diff-fewer", format!("diff -f {fewer}")),
            ("apply-fewer", format!("apply -f {fewer} --wait=60s")),
            ("apply-folder", format!("apply -f {folder} -f {file}")),
            ("delete-file-wait", format!("delete -f {folder} --wait")),
            ("delete-wait", "delete hg fresh --wait=60s".to_owned()),
            ("apply-absent-file", "apply -f /no/such/file".to_owned()),
        ] {
            runner.check(&[(name, &command)]);
        }
    });
}

#[test]
fn standard_input_is_a_manifest_too() {
    with_daemon(|harness| {
        harness.save("lab.yaml", &lab());
        harness.until("the group of the file", || {
            (!harness.get("hg lab").is_null()).then_some(())
        });
        let runner = Runner::of(&harness);
        let apply =
            |text: &str, more: &str| runner.run_with_input(&format!("apply -f - {more}"), text);
        let check = |name: &str, text: &str, more: &str| runner.compare(name, &apply(text, more));
        check("apply-stdin", &one("piped"), "--wait");
        let warned = slots(1, "allow: [10.0.0.0/8]\n        drop: [10.1.0.0/16]");
        check("apply-warning", &warned, "");
        check("apply-owned-by-file", &one("lab"), "");
        check("apply-broken", "config: [", "");
        check("apply-wait-terminal", &broken(), "--wait=60s");
        apply_stuck(&harness);
        runner.check(&[
            ("delete-stuck", "delete hg stuck --wait=300ms"),
            ("delete-force", "delete hg stuck --force --wait=20s"),
        ]);
        let big = format!("# {}", "x".repeat(1 << 20));
        check("apply-too-big", &big, "");
        assert_eq!(apply(&one("unread"), "").code, 0);
    });
}

fn apply_stuck(harness: &Harness) {
    harness.apply(&stuck(harness));
    super::guest_is_up(harness, "stuck-1");
}
