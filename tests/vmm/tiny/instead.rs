//! A manifest that names what is not there, or is no good, while VMs run: they go on until there is something to replace them by.
//! Out of scope: what is wrong with a VM that was never there (`tests/e2e/guests.rs`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use test_support::harness::{self, Harness, with_daemon};
use test_support::tiny;

/// `count` VMs with these lines in their group; applied, and not waited for.
fn apply(harness: &Harness, count: u32, lines: &str) -> String {
    let guests = tiny::guests(&harness::slots(count, ""), "");
    let words = format!("hypervisor: qemu\n      {lines}");
    let file = harness.write("manifest.yaml", &guests.replace("hypervisor: qemu", &words));
    harness.ctl(&format!("apply -f {file}"));
    file
}

fn ready(harness: &Harness) {
    harness.ctl("wait hg/sandbox --for ready --timeout 30s");
}

fn pids(harness: &Harness) -> Vec<Option<u32>> {
    tiny::pids(harness).into_values().collect()
}

/// What the group says of itself.
fn output(harness: &Harness) -> String {
    let group = harness.get("hg sandbox");
    let condition = &group["status"]["conditions"][0];
    let text = |key: &str| condition[key].as_str().expect(key).to_owned();
    format!("{}: {}", text("reason"), text("message"))
}

/// QEMU under another name.
fn qemu(place: &Path) -> PathBuf {
    let path = place.join("another-qemu");
    std::os::unix::fs::symlink("/usr/bin/qemu-system-x86_64", &path).unwrap();
    path
}

#[test]
fn a_running_vm_goes_on_until_what_is_to_replace_it_can_run_and_the_reason_is_reported() {
    with_daemon(|harness| {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let missing = place.path().join("another-qemu");
        apply(&harness, 2, "cmdline: one");
        ready(&harness);
        let before = pids(&harness);
        assert!(before.iter().all(Option::is_some));

        let file = apply(&harness, 2, &format!("qemu_bin: {}", missing.display()));
        let reported = harness.until("the event", || {
            harness.messages("hg/sandbox", "NotReplaced").pop()
        });
        for words in [
            "sandbox-1 and 1 more are not replaced",
            missing.to_str().unwrap(),
        ] {
            assert!(reported.contains(words), "{reported}");
        }
        assert_eq!(output(&harness), format!("Invalid: {reported}"));
        let why = harness.refused(&format!("apply -f {file} --wait=1s"), 1);
        assert!(why.contains("another-qemu"), "{why}");
        for object in ["hg/sandbox", "vm/sandbox-1", "vm/sandbox-2"] {
            let page = harness.ctl(&format!("describe {object}"));
            assert!(page.contains("another-qemu"), "{page}");
        }
        let difference = harness.ctl(&format!("diff -v -f {file}"));
        assert!(difference.contains("keep it unchanged"), "{difference}");
        let difference = harness.ctl(&format!("diff -f {file}"));
        let expected = "hostgroup/sandbox: update blocked\nvm/sandbox-1: not replaced\nvm/sandbox-2: not replaced\n\n\
            Plan: 0 to add, 0 to replace, 0 to delete, 0 to update live, 2 not replaced\n";
        assert!(difference.contains(expected), "{difference}");
        harness.stays(Duration::from_secs(1), || pids(&harness));
        assert_eq!(pids(&harness), before);
        assert_eq!(harness.messages("hg/sandbox", "NotReplaced").len(), 1);

        // It is there now.
        assert_eq!(qemu(place.path()), missing);
        harness.ctl(&format!("apply -f {file}"));
        harness.until("other processes", || {
            let now = pids(&harness);
            let replaced = now.iter().zip(&before);
            replaced
                .into_iter()
                .all(|(now, before)| now.is_some() && now != before)
                .then_some(())
        });
        ready(&harness);
        let page = harness.ctl("describe vm/sandbox-1");
        assert!(!page.contains("not replaced"), "{page}");
    });
}

#[test]
fn no_file_that_a_vm_boots_from_is_found_missing_after_it_was_taken_down_for_it() {
    with_daemon(|mut harness| {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = place.path().join("root.img");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        let image = format!("image: {}", image.display());
        apply(&harness, 1, &image);
        ready(&harness);
        let before = pids(&harness);
        let packed = place.path().join("packed.qcow2");
        std::fs::write(
            &packed,
            b"QFI\xfb\0\0\0\x03 and so on, for more than a sector",
        )
        .unwrap();
        let secret = place.path().join("secret");
        std::fs::write(&secret, "none of its business").unwrap();
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let bad = [
            ("image: /nowhere/root.img".to_owned(), "/nowhere/root.img"),
            (format!("image: {}", packed.display()), "qcow2"),
            (
                format!("{image}\n      disks: [{{path: /nowhere/data.img}}]"),
                "/nowhere/data.img",
            ),
            (
                format!("{image}\n      disks: [{{path: {}}}]", secret.display()),
                "chmod o+r",
            ),
            (
                format!("{image}\n      initrd_file: /nowhere/initrd"),
                "/nowhere/initrd",
            ),
            (
                format!("{image}\n      qemu_bin: /bin/sh"),
                "contains no version",
            ),
        ];
        for (lines, why) in &bad {
            apply(&harness, 1, lines);
            harness.until(why, || output(&harness).contains(why).then_some(()));
            assert_eq!(pids(&harness), before, "{lines}");
        }
        // A daemon that comes anew finds the same.
        harness.kill();
        harness.start();
        let why = bad[5].1;
        harness.until(why, || output(&harness).contains(why).then_some(()));
        assert_eq!(pids(&harness), before);
        // And what was there before is no change.
        apply(&harness, 1, &image);
        ready(&harness);
        assert_eq!(pids(&harness), before);
    });
}
