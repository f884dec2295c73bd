//! `get -o manifest` and `edit`: a group as a manifest that has the same result.
//! Out of scope: every key of a group (unit tests of `cli::group_manifest`).

use std::path::PathBuf;

use test_support::harness::{Harness, empty, slots, with_daemon};
use test_support::transcript::{Runner, Transcript};

const POLICY: &str = "allow: ['192.168.1.7:443/tcp']\n        drop: [192.168.1.0/24]";

/// Runs `edit hg/sandbox` with this editor, and temporary files in the directory of the test.
fn edit(harness: &Harness, editor: &str) -> Transcript {
    let output = Runner::of(harness)
        .command("edit hg/sandbox")
        .env("VISUAL", editor)
        .env("TMPDIR", harness.dir.path())
        .output()
        .expect("slicectl");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Transcript {
        command: editor.to_owned(),
        code: output.status.code().expect("it is not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The temporary files that exist.
fn kept(harness: &Harness) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(harness.dir.path()).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_kept = |path: &PathBuf| path.to_string_lossy().contains("slicectl-edit-");
    paths.filter(is_kept).collect()
}

#[test]
fn a_group_printed_as_a_manifest_applies_without_changes() {
    with_daemon(|harness| {
        harness.apply(&slots(2, POLICY));
        let manifest = harness.ctl("get hg -o manifest");
        let applied = Runner::of(&harness).run_with_input("apply -f -", &manifest);
        assert_eq!(
            applied.stdout, "hostgroup/sandbox unchanged\n",
            "{applied:?}"
        );
        harness.refused("get vms -o manifest", 2);
        harness.refused("get hg -o manifest -w", 2);
    });
}

#[test]
fn an_edited_group_is_applied_and_what_is_refused_is_kept() {
    with_daemon(|harness| {
        harness.apply(&slots(2, POLICY));
        let run = edit(&harness, "sed -i s/192.168.1.0/192.168.2.0/");
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (0, "hostgroup/sandbox edited\n"),
            "{run:?}"
        );
        let drop = &harness.get("hg sandbox")["spec"]["template"]["network"]["drop"];
        assert_eq!(drop[0], "192.168.2.0/24");
        for editor in ["true", "truncate -s 0"] {
            let run = edit(&harness, editor);
            assert_eq!(
                (run.code, run.stderr.as_str()),
                (0, "no changes\n"),
                "{run:?}"
            );
        }
        assert!(kept(&harness).is_empty());
        for (editor, reason) in [
            ("sed -i s/vcpu:/cpus:/", "unknown key"),
            (
                "sed -i 's/name: sandbox/name: other/'",
                "must define hostgroup/sandbox",
            ),
            ("false", "failed"),
            ("/nowhere/editor", "failed"),
        ] {
            let run = edit(&harness, editor);
            assert_eq!(run.code, 1, "{run:?}");
            assert!(run.stderr.contains(reason), "{run:?}");
            let paths = kept(&harness);
            let [path] = paths.as_slice() else {
                panic!("{editor}: {paths:?}");
            };
            assert!(run.stderr.contains(&path.display().to_string()), "{run:?}");
            std::fs::remove_file(path).expect("removed");
        }
        let busy =
            "sh -c 'SLICE=\"$0\"; slicectl-other; sed -i s/192.168.2.0/192.168.3.0/ \"$SLICE\"'";
        let other = harness.write("other.yaml", &slots(1, POLICY));
        let program = test_support::programs::built("slicectl");
        let apply = format!("{} apply -f {other}", program.display());
        let run = edit(&harness, &busy.replace("slicectl-other", &apply));
        assert!(run.stderr.contains("changed by someone else"), "{run:?}");
        assert_eq!(kept(&harness).len(), 1);
    });
}

#[test]
fn a_group_of_a_file_is_not_edited_and_the_file_is_named() {
    empty(|mut harness| {
        harness.save("sandbox.yaml", &slots(1, POLICY));
        harness.start();
        harness.ctl("wait hg/sandbox --for ready");
        let run = edit(&harness, "false");
        assert_eq!(run.code, 1, "{run:?}");
        let file = harness.conf().join("sandbox.yaml");
        assert!(run.stderr.contains(&file.display().to_string()), "{run:?}");
        assert!(
            harness
                .refused("edit vm/sandbox-1", 2)
                .contains("edit its host group")
        );
    });
}
