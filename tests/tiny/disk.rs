//! A VM with a disk of its own, in each VMM: made before it starts, the VMM's own, kept or not.
//! Not here: copying (`tests/disks`), what a guest reads from it (`tests/vmm/guest.rs`).

use std::os::unix::fs::MetadataExt;

use slicectl::api::vm::Hypervisor;

use crate::support::house::{self, House, inhabited};
use crate::support::tiny;
use crate::support::vmm;

/// One VM of this hypervisor with a disk, ready.
fn one_vm(house: &House, hypervisor: Hypervisor, rest: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("root.img");
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    let program = match vmm::program(hypervisor, place.path()) {
        None => String::new(),
        Some(path) => {
            let key = hypervisor.to_string().replace('-', "_");
            format!("\n      {key}_bin: {}", path.display())
        }
    };
    let image = image.display();
    let words = format!("hypervisor: {hypervisor}{program}\n      image: {image}{rest}");
    let guests = tiny::guests(&house::slots(1, ""), "");
    let file = house.write("manifest.yaml", &guests.replace("hypervisor: qemu", &words));
    house.ctl(&format!("apply -f {file} --wait=30s"));
    is_up(house, 1);
    place
}

fn is_up(house: &House, times: usize) {
    house.until("the guest", || {
        let guests = tiny::all(house);
        (guests["sandbox-1"].times_ready() >= times).then_some(())
    });
}

fn has_a_disk(hypervisor: Hypervisor) {
    inhabited(|house| {
        let _place = one_vm(&house, hypervisor, "\n      storage_size: 6M");
        let disk = house.state().join("disks/sandbox-1.img");
        let found = std::fs::metadata(&disk).unwrap();
        let pid = tiny::pids(&house)["sandbox-1"].unwrap();
        let user = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert_eq!((found.len(), found.mode() & 0o777), (6 << 20, 0o600));
        assert_eq!(found.uid(), user, "the disk is its VMM's");
        assert_ne!(user, 0);
        // Killed or stopped, it comes back with the same disk.
        house::signal(pid, rustix::process::Signal::KILL);
        is_up(&house, 2);
        house.ctl("vm stop sandbox-1 --wait=20s");
        house.ctl("vm start sandbox-1 --wait=20s");
        let again = std::fs::metadata(&disk).unwrap();
        assert_eq!(again.ino(), found.ino(), "it is the same disk");
        house.ctl("delete hg sandbox --wait=20s");
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
    inhabited(|house| {
        let _first = one_vm(&house, Hypervisor::Qemu, "\n      persistent: true");
        let disk = house.state().join("disks/sandbox-1.img");
        let before = std::fs::metadata(&disk).unwrap().ino();
        house.ctl("delete hg sandbox --wait=20s");
        assert_eq!(std::fs::metadata(&disk).unwrap().ino(), before);
        let _second = one_vm(&house, Hypervisor::Qemu, "\n      persistent: true");
        assert_eq!(std::fs::metadata(&disk).unwrap().ino(), before);
        house.ctl("delete hg sandbox --wait=20s");
    });
}
