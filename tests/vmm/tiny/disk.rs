//! A VM with a disk of its own, in each VMM: made before it starts, the VMM's own, kept or not.
//! Out of scope: copying (`tests/kernel/disks`), what a guest reads from it (`tests/vmm/guest.rs`).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use slicectl::api::vm::Hypervisor;

use test_support::harness::{self, Harness, empty, with_daemon};
use test_support::kernel::run;
use test_support::tiny;
use test_support::vmm;

/// One VM of this hypervisor with a disk, ready.
fn one_vm(harness: &Harness, hypervisor: Hypervisor, rest: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = place.path().join("root.img");
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    let file = write(harness, hypervisor, &image, rest, place.path());
    harness.ctl(&format!("apply -f {file} --wait=30s"));
    is_up(harness, 1);
    place
}

fn write(
    harness: &Harness,
    hypervisor: Hypervisor,
    image: &Path,
    rest: &str,
    place: &Path,
) -> String {
    let program = match vmm::program(hypervisor, place) {
        None => String::new(),
        Some(path) => {
            let key = hypervisor.to_string().replace('-', "_");
            format!("\n      {key}_bin: {}", path.display())
        }
    };
    let image = image.display();
    let words = format!("hypervisor: {hypervisor}{program}\n      image: {image}{rest}");
    let guests = tiny::guests(&harness::slots(1, ""), "");
    harness.write("manifest.yaml", &guests.replace("hypervisor: qemu", &words))
}

fn is_up(harness: &Harness, times: usize) {
    harness.until("the guest", || {
        let guests = tiny::all(harness);
        (guests["sandbox-1"].times_ready() >= times).then_some(())
    });
}

fn has_a_disk(hypervisor: Hypervisor) {
    with_daemon(|harness| {
        let _place = one_vm(&harness, hypervisor, "\n      storage_size: 6M");
        let disk = harness.state().join("disks/sandbox-1.img");
        let found = std::fs::metadata(&disk).unwrap();
        let pid = tiny::pids(&harness)["sandbox-1"].unwrap();
        let user = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_eq!((found.len(), found.mode() & 0o777), (6 << 20, 0o600));
        assert_eq!(found.uid(), user, "the disk is its VMM's");
        assert_ne!(user, 0);
        // Killed or stopped, it comes back with the same disk.
        harness::signal(pid, rustix::process::Signal::KILL);
        is_up(&harness, 2);
        let counted = harness.ctl("vm metrics sandbox-1 -o json");
        let counted: serde_json::Value = serde_json::from_str(&counted).unwrap();
        assert!(!counted["counters"].as_object().unwrap().is_empty());
        assert!(
            harness
                .ctl("vm metrics sandbox-1")
                .contains(&hypervisor.to_string())
        );
        harness.ctl("vm stop sandbox-1 --wait=20s");
        let why = harness.refused("vm metrics sandbox-1", 1);
        assert!(why.contains("is not running"), "{why}");
        harness.ctl("vm start sandbox-1 --wait=20s");
        let again = std::fs::metadata(&disk).unwrap();
        assert_eq!(again.ino(), found.ino(), "it is the same disk");
        harness.ctl("delete hg sandbox --wait=20s");
        assert!(!disk.exists(), "it was nobody's wish to keep it");
    });
}

#[test]
fn a_vm_of_qemu_starts_with_a_disk_of_its_own() {
    has_a_disk(Hypervisor::Qemu);
}

#[test]
fn a_vm_of_firecracker_starts_with_a_disk_of_its_own() {
    has_a_disk(Hypervisor::Firecracker);
}

#[test]
fn a_vm_of_cloud_hypervisor_starts_with_a_disk_of_its_own() {
    has_a_disk(Hypervisor::CloudHypervisor);
}

#[test]
fn a_persistent_disk_waits_for_the_next_vm_of_its_name() {
    with_daemon(|harness| {
        let _first = one_vm(&harness, Hypervisor::Qemu, "\n      persistent: true");
        let disk = harness.state().join("disks/sandbox-1.img");
        let before = std::fs::metadata(&disk).unwrap().ino();
        harness.ctl("delete hg sandbox --wait=20s");
        assert_eq!(std::fs::metadata(&disk).unwrap().ino(), before);
        let _second = one_vm(&harness, Hypervisor::Qemu, "\n      persistent: true");
        assert_eq!(std::fs::metadata(&disk).unwrap().ino(), before);
        harness.ctl("delete hg sandbox --wait=20s");
    });
}

#[test]
fn without_space_for_its_disk_a_vm_reports_it_and_does_not_start_and_with_space_it_starts_by_itself()
 {
    empty(|mut harness| {
        let (place, disks) = (
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
            harness.state().join("disks"),
        );
        std::fs::create_dir(&disks).unwrap();
        let shown = disks.display().to_string();
        run(&format!("mount -t tmpfs -o size=2m,mode=755 none {shown}"));
        harness.start();
        let image = place.path().join("root.img");
        std::fs::write(&image, vec![1; 4 << 20]).unwrap();
        let file = write(&harness, Hypervisor::Qemu, &image, "", place.path());
        harness.ctl(&format!("apply -f {file}"));
        let why = harness.until("the reason", || {
            let vm = harness.get("vm sandbox-1");
            let output = vm["status"]["conditions"].as_array()?.iter();
            let mut output = output.filter(|condition| condition["type"] == "Vmm");
            let why = output.next()?["message"].as_str()?.to_owned();
            why.contains("not enough space").then_some(why)
        });
        assert!(why.contains("4 MiB") && why.contains(&shown), "{why}");
        let refused = harness.refused(&format!("apply -f {file} --wait=1s"), 1);
        assert!(refused.contains("not enough space"), "{refused}");
        assert_eq!(tiny::pids(&harness)["sandbox-1"], None);
        let names = || {
            let entries = std::fs::read_dir(&disks).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(), ["sandbox-1.json"], "nothing half copied");
        run(&format!("mount -o remount,size=16m {shown}"));
        harness.until("its process", || tiny::pids(&harness)["sandbox-1"]);
        is_up(&harness, 1);
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        harness.ctl("delete hg sandbox --wait=20s");
        assert_eq!(names(), Vec::<String>::new());
        harness.stop();
        run(&format!("umount {shown}"));
    });
}
