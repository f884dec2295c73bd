//! File systems that do not answer, under the directories of images and of manifests: what needs them waits, nothing else does, and
//! every deletion terminates.
//! Out of scope: programs that hang (`hanging`).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use test_support::fuse::{FILE, Fuse, Hang};
use test_support::harness::{self, Harness, Place, group, slots};
use test_support::kernel::run;

/// The specification's.
const BOUND: Duration = Duration::from_secs(2);

/// A group of one VM with that image.
fn with_image(name: &str, third: usize, image: &std::path::Path) -> String {
    let more = format!("hypervisor: none\n      image: {}", image.display());
    group(name, 1, &format!("169.254.{third}.0/22"), "").replace("hypervisor: none", &more)
}

fn condition(harness: &Harness, vm: &str, kind: &str) -> Value {
    let found = harness.get(&format!("vm {vm}"));
    let all = found["status"]["conditions"].as_array();
    let found = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
    found.cloned().unwrap_or_default()
}

fn rules(place: &Place) -> String {
    run(&format!("ip netns exec {} iptables -S", place.name))
}

/// Drift is repaired in time. A VM is asked once, or it would count as contested.
fn lives(harness: &Harness, vm: &str, what: &str) {
    let place = harness.place(vm);
    let right = rules(&place);
    run(&format!("ip netns exec {} iptables -F", place.name));
    harness.within(BOUND, &format!("{what}: {vm} is repaired"), || {
        (rules(&place) == right).then_some(())
    });
}

/// Files of copies that were begun or made.
fn disks(harness: &Harness) -> Vec<String> {
    let entries = fs::read_dir(harness.state().join("disks"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn an_image_that_does_not_answer_holds_up_its_vm_alone_and_the_vm_can_be_deleted() {
    harness::empty(|mut harness| {
        harness.args = ["--concurrency", "2"].map(str::to_owned).to_vec();
        harness.start();
        harness.apply(&slots(5, "drop: [\"192.168.1.0/24\"]"));
        let table = [
            Hang::Init,
            Hang::Lookup,
            Hang::Open,
            Hang::ReadFrom(0),
            Hang::ReadFrom(24 << 20),
        ];
        let mut mounts = Vec::new();
        for (at, hang) in table.into_iter().enumerate() {
            let dir = harness.dir.path().join(format!("fuse-{at}"));
            mounts.push(Fuse::mount(&dir, vec![7; 32 << 20], hang));
            let text = with_image(&format!("stuck{at}"), 120 + 4 * at, &dir.join(FILE));
            let file = harness.write("m.yaml", &text);
            harness.ctl(&format!("apply -f {file}"));
        }
        for (at, hang) in table.into_iter().enumerate() {
            let vm = format!("stuck{at}-1");
            let found = harness.until(&format!("{hang:?} is reported"), || {
                let found = condition(&harness, &vm, "Vmm");
                let message = found["message"].as_str().unwrap_or_default();
                (found["status"] == "Unknown" && message.contains("since 20")).then_some(found)
            });
            assert_eq!(
                harness.get(&format!("vm {vm}"))["status"]["ready"],
                false,
                "{found}"
            );
            lives(
                &harness,
                &format!("sandbox-{}", at + 1),
                &format!("{hang:?}"),
            );
        }
        let other = harness.write("other.yaml", &group("other", 1, "169.254.200.0/22", ""));
        let begin = Instant::now();
        harness.ctl(&format!("apply -f {other} --wait=30s"));
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
        for at in 0..table.len() {
            harness.ctl(&format!("delete hostgroup/stuck{at}"));
        }
        let begin = Instant::now();
        for at in 0..table.len() {
            harness.ctl(&format!(
                "wait hostgroup/stuck{at} --for deleted --timeout 60s"
            ));
        }
        eprintln!("deleted in {:?}", begin.elapsed());
        // Whoever answers late has nothing to do any more.
        drop(mounts);
        harness.until("nothing of the copies is left", || {
            disks(&harness).is_empty().then_some(())
        });
        // The places of the copies are free again.
        let image = harness.dir.path().join("image");
        fs::write(&image, vec![7; 1 << 20]).expect("written");
        let file = harness.write("m.yaml", &with_image("again", 120, &image));
        harness.ctl(&format!("apply -f {file} --wait=30s"));
        let (status, took) = harness.stop();
        assert!(
            status.success() && took < Duration::from_millis(2500),
            "{status} {took:?}"
        );
    });
}

#[test]
fn manifests_that_do_not_answer_hold_up_neither_the_start_nor_a_repair_nor_another_change() {
    harness::empty(|mut harness| {
        harness.save("fleet.yaml", &slots(6, "drop: [\"192.168.1.0/24\"]"));
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        // A file in the folder, or the folder itself.
        let table = [
            (Hang::Init, false),
            (Hang::Open, false),
            (Hang::ReadFrom(0), false),
            (Hang::Init, true),
            (Hang::List, true),
        ];
        for (at, (hang, whole)) in table.into_iter().enumerate() {
            let what = format!("{hang:?}, whole folder: {whole}");
            let dir: PathBuf = match whole {
                true => harness.conf(),
                false => harness.dir.path().join(format!("fuse-{at}")),
            };
            let text = group("late", 1, "169.254.180.0/22", "");
            let mount = Fuse::mount(&dir, text.into_bytes(), hang);
            let link = harness.conf().join("late.yaml");
            if !whole {
                std::os::unix::fs::symlink(dir.join(FILE), &link).expect("a link");
            }
            // Every other time it hangs from the start.
            if at % 2 == 1 {
                harness.kill();
                assert!(harness.start() < Duration::from_secs(10), "{what}");
            }
            lives(&harness, &format!("sandbox-{}", at + 1), &what);
            let file = harness.write(
                "m.yaml",
                &group(
                    &format!("more{at}"),
                    1,
                    &format!("169.254.{}.0/22", 120 + 4 * at),
                    "",
                ),
            );
            let begin = Instant::now();
            harness.ctl(&format!("apply -f {file} --wait=30s"));
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "{what}: {:?}",
                begin.elapsed()
            );
            assert_eq!(
                harness.get("hg sandbox")["status"]["desired"],
                6,
                "{what}: nothing is deleted"
            );
            drop(mount);
            let _ = fs::remove_file(&link);
        }
        let (status, took) = harness.stop();
        assert!(
            status.success() && took < Duration::from_millis(2500),
            "{status} {took:?}"
        );
    });
}
