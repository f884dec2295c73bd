//! Before disks are deleted: the question on a terminal, and the warning everywhere.
//! Out of scope: the disks themselves (`disks`).

use std::fs;
use std::process::Command;

use test_support::harness::{Harness, with_daemon};
use test_support::programs;
use test_support::terminal::{self, END, Run};

const QUESTION: &str = "[y/N] ";

fn manifest(harness: &Harness, count: u32, lines: &str) -> String {
    let image = harness.dir.path().join("image");
    if !image.exists() {
        fs::write(&image, vec![5; 1 << 20]).expect("an image");
    }
    let image = image.display();
    format!(
        "config:\n  hypervisor: none\n  image: {image}\n  host_groups:\n    - name: web\n      count: {count}\n      {lines}\n      network: {{mode: isolated}}\n"
    )
}

fn ctl(harness: &Harness, arguments: &str) -> Command {
    let mut command = Command::new(programs::built("slicectl"));
    command
        .args(arguments.split_whitespace())
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"));
    command
}

fn on_terminal(harness: &Harness, arguments: &str, answer: &str) -> Run {
    terminal::run(ctl(harness, arguments), QUESTION, answer)
}

/// The uids of the VMs, by which a replaced VM differs.
fn uids(harness: &Harness) -> Vec<String> {
    let list = harness.get("vms");
    let items = list["items"].as_array().expect("items").iter();
    let uid = |vm: &serde_json::Value| vm["metadata"]["uid"].as_str().map(str::to_owned);
    items.filter_map(uid).collect()
}

#[test]
fn a_change_that_deletes_disks_asks_on_a_terminal_and_only_yes_is_a_yes() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness, 2, "vcpu: 1"));
        let before = uids(&harness);
        let file = harness.write("next.yaml", &manifest(&harness, 2, "vcpu: 2"));
        let fewer = harness.write("fewer.yaml", &manifest(&harness, 1, "vcpu: 1"));
        for command in [
            format!("apply -f {file}"),
            format!("apply -f {fewer}"),
            "scale hg/web --count 0".to_owned(),
        ] {
            for answer in ["no\n", "n\n", "\n", "yess\n", END] {
                let run = on_terminal(&harness, &command, answer);
                assert_eq!(run.code, 1, "{command} {answer:?}: {run:?}");
                assert!(run.screen.contains("not persistent"), "{run:?}");
                assert!(run.screen.contains("web-2"), "{run:?}");
                assert!(run.screen.contains("error: cancelled"), "{run:?}");
                assert_eq!(run.stdout, "", "{run:?}");
            }
        }
        let group = harness.get("hg web");
        assert_eq!(group["metadata"]["generation"], 1);
        assert_eq!(uids(&harness), before);
        let run = on_terminal(&harness, &format!("apply -f {file} --wait=60s"), "YES\n");
        assert_eq!(run.code, 0, "{run:?}");
        assert_eq!(run.screen.matches("warning:").count(), 1, "{run:?}");
        assert!(run.stdout.contains("hostgroup/web configured"), "{run:?}");
        let after = uids(&harness);
        assert_eq!(after.len(), 2);
        assert!(after.iter().all(|uid| !before.contains(uid)));
        let run = on_terminal(&harness, "scale hg/web --count 1", "y\n");
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (0, "hostgroup/web configured\n")
        );
    });
}

/// `edit` on a terminal, with an editor that changes the number of virtual CPUs.
fn edit(harness: &Harness, flags: &str, answer: &str) -> Run {
    let mut command = ctl(harness, &format!("edit hg/web {flags}"));
    command
        .env("EDITOR", "sed -i 's/vcpu: 1/vcpu: 2/'")
        .env_remove("VISUAL")
        .env("TMPDIR", harness.dir.path());
    terminal::run(command, QUESTION, answer)
}

#[test]
fn an_edit_that_deletes_disks_asks_and_keeps_the_text_after_a_no() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness, 1, "vcpu: 1"));
        let before = uids(&harness);
        let run = edit(&harness, "", "no\n");
        assert_eq!(run.code, 1, "{run:?}");
        for expected in [
            "not persistent: web-1",
            "error: cancelled",
            "text is kept in",
        ] {
            assert!(run.screen.contains(expected), "{expected}: {run:?}");
        }
        assert_eq!(uids(&harness), before);
        let run = edit(&harness, "", "y\n");
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (0, "hostgroup/web edited\n")
        );
        assert_eq!(run.screen.matches("not persistent").count(), 1, "{run:?}");
        harness.ctl("wait hg/web --for ready");
        assert_ne!(uids(&harness), before);
        harness.apply(&manifest(&harness, 1, "vcpu: 1"));
        let run = edit(&harness, "--yes", "no\n");
        assert_eq!(run.code, 0, "{run:?}");
        assert!(!run.screen.contains(QUESTION), "{run:?}");
    });
}

#[test]
fn on_a_terminal_scale_shows_all_warnings_once() {
    with_daemon(|harness| {
        let text = "config:\n  hypervisor: qemu\n  kernel_file: /nowhere/vmlinuz\n  host_groups:\n    - name: web\n      count: 0\n      network: {mode: isolated}\n";
        let file = harness.write("web.yaml", text);
        harness.ctl(&format!("apply -f {file}"));
        let run = on_terminal(&harness, "scale hg/web --count 1", "no\n");
        assert_eq!(run.code, 0, "{run:?}");
        assert_eq!(run.screen.matches("no VM can start").count(), 1, "{run:?}");
    });
}

#[test]
fn what_deletes_no_disk_or_cannot_be_answered_is_not_asked() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness, 1, "vcpu: 1"));
        let live = manifest(&harness, 2, "vcpu: 1\n      update: on-delete");
        let replacing = manifest(&harness, 2, "vcpu: 2");
        let kept = manifest(&harness, 2, "persistent: true");
        let kept_replaced = manifest(&harness, 2, "persistent: true\n      vcpu: 1");
        for (name, text, flags, warned) in [
            ("live and more VMs", &live, "", 0),
            ("with --yes", &replacing, "--yes", 1),
            ("a disk that becomes persistent", &kept, "-y", 1),
            ("persistent disks", &kept_replaced, "", 0),
        ] {
            let file = harness.write("next.yaml", text);
            let command = format!("apply -f {file} --wait=60s {flags}");
            let run = on_terminal(&harness, &command, "no\n");
            assert_eq!(run.code, 0, "{name}: {run:?}");
            assert!(!run.screen.contains(QUESTION), "{name}: {run:?}");
            let warnings = run.screen.matches("not persistent").count();
            assert_eq!(warnings, warned, "{name}: {run:?}");
        }
    });
}

#[test]
fn in_a_pipe_a_change_that_deletes_disks_warns_and_is_made() {
    with_daemon(|harness| {
        harness.apply(&manifest(&harness, 2, "vcpu: 1"));
        let file = harness.write("next.yaml", &manifest(&harness, 2, "vcpu: 2"));
        for command in [
            format!("diff -f {file}"),
            format!("apply -f {file} --dry-run"),
            format!("apply -f {file} --wait=60s"),
            "scale hg web --count 1 --wait".to_owned(),
            "delete vm/web-1".to_owned(),
            "vm add web --name extra --wait".to_owned(),
            "vm delete extra --wait".to_owned(),
            "delete hg/web --wait".to_owned(),
        ] {
            let output = ctl(&harness, &command).output().expect("its output");
            let warning = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command}: {warning}");
            let is_warned = warning.contains("not persistent");
            assert_eq!(is_warned, !command.contains("add"), "{command}: {warning}");
            // What deletes the disk of the second VM at the latest is done.
            harness.until("settled", || {
                let group = harness.get("hg web");
                (group.is_null() || group["status"]["ready"] == true).then_some(())
            });
        }
        assert_eq!(harness.vms(), [""; 0]);
    });
}
