//! The instance id belongs to the state, not to its path: a state directory that was moved adopts what runs, and a copy of it is refused
//! while the original is in use.
//! Out of scope: a damaged or lost database at its old place (`damage`, `recovery`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use slicectl::api::vm::Hypervisor;

use test_support::harness::{self, Harness, bridge_group, empty, group, slots, with_daemon};
use test_support::kernel::run;
use test_support::vmm;

/// uid, address, link and pid of each VM.
fn identities(harness: &Harness) -> Vec<[Value; 4]> {
    let list = harness.get("vms");
    let of = |vm: &Value| {
        let status = &vm["status"];
        let link = &status["network"]["host_link"];
        [
            vm["metadata"]["uid"].clone(),
            status["network"]["ip"].clone(),
            link.clone(),
            status["vmm"]["pid"].clone(),
        ]
    };
    list["items"].as_array().unwrap().iter().map(of).collect()
}

/// Two isolated slots from a file, a bridge slot and a VMM with a disk from an apply.
fn build(harness: &Harness) -> tempfile::TempDir {
    harness.save("sandbox.yaml", &slots(2, "drop: [192.168.1.0/24]"));
    harness.apply(&bridge_group(
        "web",
        1,
        "bridge: br0\ngateway: 10.55.0.1/24",
    ));
    let programs = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = vmm::program(Hypervisor::CloudHypervisor, programs.path()).unwrap();
    let image = harness.dir.path().join("image");
    fs::write(&image, vec![5; 1 << 20]).unwrap();
    let vmm = format!(
        "hypervisor: cloud-hypervisor\n      cloud_hypervisor_bin: {}\n      kernel_file: {}\n      image: {}",
        program.display(),
        vmm::tiny_guest().display(),
        image.display()
    );
    let app = group("app", 1, "169.254.104.0/22", "");
    harness.apply(&app.replace("hypervisor: none", &vmm));
    harness.until("the group of the file", || {
        (harness.get("hg sandbox")["status"]["ready_count"] == 2).then_some(())
    });
    programs
}

fn use_state(harness: &mut Harness, dir: impl AsRef<Path>) {
    let dir = dir.as_ref().to_str().unwrap().to_owned();
    harness.env.retain(|(key, _)| *key != "SLICE_STATE_DIR");
    harness.env.push(("SLICE_STATE_DIR", dir));
}

/// Moves the state directory away; where it is now.
fn moved(harness: &Harness) -> PathBuf {
    let to = harness.dir.path().join("big/disk");
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(harness.state(), &to).unwrap();
    to
}

/// The same lines; else what is in one of them alone.
fn same(what: &str, before: &str, after: &str) {
    let only = |one: &str, other: &str| {
        let lines = one.lines().filter(|line| !other.contains(line));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let (gone, new) = (only(before, after), only(after, before));
    assert!(before == after, "{what}: gone {gone:#?}, new {new:#?}");
}

/// After `relocate`, which may change the state directory's place, everything is adopted as it is.
fn adopts_after(what: &str, relocate: impl FnOnce(&mut Harness) + Send) {
    eprintln!("{what}");
    empty(|mut harness| {
        harness.env.push(("SLICE_LOG", "debug".into()));
        harness.start();
        let _programs = build(&harness);
        let before = (harness::world_to_the_last_handle(), identities(&harness));
        harness.stop();
        relocate(&mut harness);
        harness.start();
        harness.ctl("wait hg/sandbox hg/web hg/app --for ready --timeout 30s");
        harness.stays(Duration::from_millis(500), || harness.messages("", "Drift"));
        let after = (harness::world_to_the_last_handle(), identities(&harness));
        same(what, &before.0, &after.0);
        assert_eq!(after.1, before.1, "{what}");
        assert_eq!(harness.messages("", "Drift"), [""; 0], "{what}");
        let kept = harness.ctl("gc --dry-run");
        assert!(!kept.contains("vm/"), "{what}: {kept}");
    });
}

#[test]
fn a_state_directory_under_another_name_adopts_everything() {
    adopts_after("renamed", |harness| {
        let to = moved(harness);
        use_state(harness, to);
    });
    adopts_after("a symbolic link at the old place", |harness| {
        let to = moved(harness);
        std::os::unix::fs::symlink(to, harness.state()).unwrap();
    });
    adopts_after("a chain of symbolic links", |harness| {
        let to = moved(harness);
        let link = harness.dir.path().join("link");
        std::os::unix::fs::symlink(to, &link).unwrap();
        std::os::unix::fs::symlink("link", harness.state()).unwrap();
    });
    adopts_after("copied, and the original is gone", |harness| {
        let (from, to) = (harness.state(), harness.dir.path().join("copy"));
        run(&format!(
            "cp -a {} {} && rm -rf {0}",
            from.display(),
            to.display()
        ));
        use_state(harness, to);
    });
}

#[test]
fn a_mounted_state_directory_and_other_spellings_of_its_path_adopt_everything() {
    adopts_after("mounted elsewhere too", |harness| {
        let (from, to) = (harness.state(), harness.dir.path().join("mounted"));
        run(&format!(
            "mkdir {1} && mount --bind {0} {1}",
            from.display(),
            to.display()
        ));
        use_state(harness, to);
    });
    adopts_after("another disk over the old place", |harness| {
        let (to, at) = (moved(harness), harness.state());
        run(&format!(
            "mkdir {1} && mount --bind {0} {1}",
            to.display(),
            at.display()
        ));
    });
    adopts_after("a relative path", |harness| {
        let relative = harness.state().strip_prefix("/").unwrap().to_owned();
        use_state(harness, relative);
    });
    adopts_after("a path with more in it", |harness| {
        let state = harness.state();
        use_state(harness, format!("{0}/../{1}/./", state.display(), "state"));
    });
}

#[test]
fn a_moved_state_directory_adopts_everything_whatever_else_of_it_was_lost() {
    let lose = |lost: &'static [&'static str], of_run: bool| {
        move |harness: &mut Harness| {
            let to = moved(harness);
            for name in lost {
                let path = to.join(name);
                let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            }
            if of_run {
                let _ = fs::remove_file(harness.run.join("instance"));
            }
            use_state(harness, to);
        }
    };
    adopts_after("the database", lose(&["db", "seal", "format"], false));
    adopts_after(
        "the database, and the copy",
        lose(&["db", "seal", "format"], true),
    );
    adopts_after("the id", lose(&["instance"], false));
    adopts_after(
        "the id and its copy: from before it was stored",
        lose(&["instance"], true),
    );
    adopts_after(
        "the database and the id",
        lose(&["db", "seal", "format", "instance"], false),
    );
    adopts_after(
        "the database, the id and its copy",
        lose(&["db", "seal", "format", "instance"], true),
    );
    for damaged in [
        "",
        "slicectl instance abc\n",
        "slicectl instance ABCDE\n",
        "\0\0\0\0",
        "slicectl instance abcde",
    ] {
        adopts_after("a damaged id", |harness| {
            let to = moved(harness);
            fs::write(to.join("instance"), damaged).unwrap();
            use_state(harness, to);
        });
    }
    // Another id, and another checksum: each by one bit.
    for at in ["slicectl instance ".len(), "slicectl instance abcde ".len()] {
        adopts_after("a changed bit", |harness| {
            let to = moved(harness);
            let mut stored = fs::read(to.join("instance")).unwrap();
            stored[at] ^= 2;
            fs::write(to.join("instance"), stored).unwrap();
            use_state(harness, to);
        });
    }
}

#[test]
fn a_state_directory_from_before_ids_were_stored_keeps_the_one_of_its_path() {
    adopts_after("not moved", |harness| {
        fs::remove_file(harness.state().join("instance")).unwrap();
        fs::remove_file(harness.run.join("instance")).unwrap();
        harness.start();
        harness.stop();
        let stored = fs::read_to_string(harness.state().join("instance")).unwrap();
        assert!(stored.starts_with("slicectl instance "), "{stored}");
        let to = moved(harness);
        use_state(harness, to);
    });
}

#[test]
fn links_have_the_same_names_after_a_reboot_of_a_host_whose_state_was_moved() {
    with_daemon(|mut harness| {
        harness.apply(&slots(2, ""));
        let links = |harness: &Harness| ["sandbox-1", "sandbox-2"].map(|vm| harness.place(vm).link);
        let before = links(&harness);
        harness.stop();
        let to = moved(&harness);
        use_state(&mut harness, to);
        run(&format!(
            "for n in $(ls /run/netns); do umount {0}/netns/$n; done; rm -rf {0} /run/netns/* /run/slice-instances /run/slice-ranges; for l in {1}; do ip link del $l 2>/dev/null || true; done",
            harness.run.display(),
            before.join(" ")
        ));
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 30s");
        harness.until("both links", || {
            let all = run("ip -o link");
            before
                .iter()
                .all(|link| all.contains(link.as_str()))
                .then_some(())
        });
        assert_eq!(links(&harness), before);
    });
}

/// Why a daemon with these directories does not start: one sentence.
fn refused(harness: &Harness, state: &Path, run: &Path) -> String {
    let mut command = harness.sliced();
    command
        .env("SLICE_STATE_DIR", state)
        .env("SLICE_RUN_DIR", run);
    let output = harness.run_to_end(command);
    let reported = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{reported}");
    assert_eq!(reported.matches("ERROR").count(), 1, "{reported}");
    reported
}

#[test]
fn a_copy_of_a_state_directory_is_refused_while_the_original_is_used() {
    with_daemon(|mut harness| {
        harness.apply(&slots(2, "drop: [192.168.1.0/24]"));
        let before = harness::world_to_the_last_handle();
        let (state, copy) = (harness.state(), harness.dir.path().join("copy"));
        run(&format!("cp -a {} {}", state.display(), copy.display()));
        for run_dir in [harness.run.clone(), PathBuf::from("/run/other")] {
            let reported = refused(&harness, &copy, &run_dir);
            let pid = harness.pid().to_string();
            for words in [
                "is a copy of",
                copy.to_str().unwrap(),
                state.to_str().unwrap(),
                &pid,
            ] {
                assert!(reported.contains(words), "{words}: {reported}");
            }
        }
        // The same directory by another name is no copy.
        let mounted = harness.dir.path().join("mounted");
        run(&format!(
            "mkdir {1} && mount --bind {0} {1}",
            state.display(),
            mounted.display()
        ));
        let reported = refused(&harness, &mounted, Path::new("/run/other"));
        assert!(
            reported.contains("another sliced is using it"),
            "{reported}"
        );
        assert_eq!(harness::world_to_the_last_handle(), before);
        // What runs first has the VMs, also if it is the copy.
        harness.stop();
        use_state(&mut harness, &copy);
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 30s");
        assert_eq!(harness::world_to_the_last_handle(), before);
        let reported = refused(&harness, &state, Path::new("/run/other"));
        assert!(reported.contains("is a copy of"), "{reported}");
        // A killed daemon holds nothing.
        harness.kill();
        harness.start();
        assert_eq!(harness::world_to_the_last_handle(), before);
    });
}

#[test]
fn a_vm_whose_disk_was_copied_to_another_file_system_runs_on_and_reports_it() {
    with_daemon(|mut harness| {
        let _programs = build(&harness);
        let before = identities(&harness);
        harness.stop();
        let to = harness.dir.path().join("other");
        let (from, at) = (harness.state(), to.display().to_string());
        run(&format!(
            "mkdir {at} && mount -t tmpfs -o mode=0700 other {at} && cp -a {0}/. {at}/ && rm -rf {0}",
            from.display()
        ));
        use_state(&mut harness, to);
        harness.start();
        harness.ctl("wait hg/sandbox hg/web hg/app --for ready --timeout 30s");
        let reported = harness.until("the condition", || {
            let reported = harness.get("vm app-1")["status"]["conditions"].to_string();
            reported.contains("still writes to").then_some(reported)
        });
        assert!(reported.contains("is a copy"), "{reported}");
        assert_eq!(identities(&harness), before);
    });
}

#[test]
fn a_new_state_directory_at_the_place_of_a_moved_one_gets_an_id_of_its_own() {
    with_daemon(|mut harness| {
        harness.apply(&slots(2, ""));
        let links = ["sandbox-1", "sandbox-2"].map(|vm| harness.place(vm).link);
        let old = harness.state();
        harness.stop();
        let to = moved(&harness);
        use_state(&mut harness, to);
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 30s");
        for running in [true, false] {
            if !running {
                harness.stop();
            }
            let mut other = Harness::new(if running { "other" } else { "third" });
            fs::create_dir(&old).unwrap();
            use_state(&mut other, &old);
            other.start();
            other.apply(&group("mine", 1, "169.254.116.0/22", ""));
            let prefix = |link: &str| link[..7].to_owned();
            assert_ne!(prefix(&other.place("mine-1").link), prefix(&links[0]));
            let all = run("ip -o link");
            assert!(
                links.iter().all(|link| all.contains(link.as_str())),
                "{all}"
            );
            other.ctl("delete hostgroup/mine --wait");
            other.stop();
            fs::remove_dir_all(&old).unwrap();
        }
    });
}

#[test]
fn another_state_directory_with_a_run_directory_that_holds_vms_is_refused() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, ""));
        let before = harness::world_to_the_last_handle();
        harness.stop();
        let mut other = Harness::new("other");
        other.start();
        other.stop();
        let reported = refused(&other, &other.state(), &harness.run);
        assert!(
            reported.contains("contains VMs of another sliced"),
            "{reported}"
        );
        assert_eq!(harness::world_to_the_last_handle(), before);
    });
}
