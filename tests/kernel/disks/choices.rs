//! Which disks a VM gets, and in which words it does not.
//! Out of scope: making them.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use slicectl::api::meta::{Name, Uid};
use slicectl::api::storage::{AdditionalDisk, Storage};
use slicectl::owner::Instance;
use slicectl::reconcile::storage::{DiskContext, Disks, disks};
use slicectl::reconcile::{Reconcile, disk};
use slicectl::vmm::Access;
use slicectl::vmm::FileAccess;

fn choose(dir: &Path, storage: &Storage) -> Result<Disks, String> {
    choose_for(dir, storage, None)
}

/// Whose VMM runs already, as this process.
fn choose_for(dir: &Path, storage: &Storage, user: Option<u32>) -> Result<Disks, String> {
    let name: Name = "web-1".parse().unwrap();
    let label = Instance::of(dir).vm_label(&name, Uid::random());
    let mut places = FileAccess::default();
    places.allowed.images = vec![dir.to_owned(), "/dev".into()];
    let whose = DiskContext {
        user,
        dir,
        boot_id: "now",
        name: &name,
        label: &label,
        files: &places,
    };
    disks(storage, &whose)
}

fn from(image: &Path) -> Storage {
    Storage {
        image: Some(image.to_owned()),
        ..Storage::default()
    }
}

#[test]
fn a_disk_smaller_than_its_image_is_refused_with_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
    let storage = Storage {
        size_bytes: Some(1 << 30),
        ..from(&image)
    };
    let words = choose(dir.path(), &storage).unwrap_err();
    let expected = "storage_size: found 1 GiB, expected at least 2 GiB, the size of the image ";
    assert_eq!(words, format!("{expected}{}", image.display()));
}

#[test]
fn an_empty_image_is_a_blank_disk_when_its_size_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, "").unwrap();
    assert!(
        choose(dir.path(), &from(&image))
            .unwrap_err()
            .contains("is empty")
    );
    let storage = Storage {
        size_bytes: Some(1 << 30),
        ..from(&image)
    };
    let own = choose(dir.path(), &storage).unwrap().own.spec.unwrap();
    assert_eq!(own.at_least, 1 << 30);
}

/// A node for a device that no driver has: it is looked at and not opened.
#[test]
fn a_block_device_is_used_as_it_is_and_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("device");
    let device = rustix::fs::makedev(240, 77);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, mode, device)
        .expect("these tests need root");
    let chosen = choose(dir.path(), &from(&node)).unwrap();
    assert_eq!(chosen.own.spec, None);
    assert_eq!(
        (&chosen.all[0].path, chosen.all[0].access),
        (&node, Access::ReadOnly)
    );
    for storage in [
        Storage {
            persistent: true,
            ..from(&node)
        },
        Storage {
            size_bytes: Some(1 << 30),
            ..from(&node)
        },
    ] {
        let words = choose(dir.path(), &storage).unwrap_err();
        assert!(words.contains("used directly and read-only"), "{words}");
    }
}

#[test]
fn the_root_disk_comes_first_and_further_ones_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["image", "b", "a"].map(|name| dir.path().join(name));
    for path in &paths {
        fs::write(path, "raw").unwrap();
    }
    let further = |path: &Path, read_only| AdditionalDisk {
        path: path.to_owned(),
        read_only,
    };
    let mut storage = Storage {
        disks: vec![further(&paths[1], true), further(&paths[2], false)],
        ..from(&paths[0])
    };
    let all = choose(dir.path(), &storage).unwrap().all;
    let seen: Vec<_> = all
        .iter()
        .map(|disk| (disk.path.clone(), disk.access))
        .collect();
    let expected = [
        (dir.path().join("web-1.img"), Access::ReadWrite),
        (paths[1].clone(), Access::ReadOnly),
        (paths[2].clone(), Access::ReadWrite),
    ];
    assert_eq!(seen, expected);
    storage.image = None;
    assert_eq!(choose(dir.path(), &storage).unwrap().all.len(), 2);
    fs::remove_file(&paths[2]).unwrap();
    let words = choose(dir.path(), &storage).unwrap_err();
    assert!(
        words.contains(&format!("{} not found", paths[2].display())),
        "{words}"
    );
}

#[test]
fn what_a_guest_has_written_to_its_disk_and_what_a_vmm_has_open_is_not_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, b"\x1f\x8b by the guest").unwrap();
    let with = |path: &Path, read_only| Storage {
        disks: vec![AdditionalDisk {
            path: path.to_owned(),
            read_only,
        }],
        ..Storage::default()
    };
    let why = choose(dir.path(), &with(&path, true)).unwrap_err();
    assert!(why.contains("gzip"), "{why}");
    assert_eq!(
        choose(dir.path(), &with(&path, false)).unwrap().all.len(),
        1
    );
    let gone = dir.path().join("gone");
    assert!(choose(dir.path(), &with(&gone, true)).is_err());
    for running in [with(&path, true), with(&gone, true), from(&gone)] {
        let chosen = choose_for(dir.path(), &running, Some(4711)).unwrap();
        assert_eq!(chosen.all.len(), 1);
    }
}

#[test]
fn a_disk_that_was_removed_under_its_vmm_is_not_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, vec![1; 4096]).unwrap();
    let own = choose_for(dir.path(), &from(&image), Some(4711))
        .unwrap()
        .own;
    let observed = disk::Observed {
        disk: disk::DiskSeen::Absent,
        draft: false,
        record: None,
    };
    let conflict = disk::Disks::plan(&own, &observed).unwrap_err();
    assert!(
        conflict.remedy.contains("/proc/4711/fd"),
        "{}",
        conflict.remedy
    );
    let stopped = disk::Desired { user: None, ..own };
    assert_eq!(disk::Disks::plan(&stopped, &observed).unwrap().len(), 2);
}

#[test]
fn a_device_is_not_image_and_further_disk_of_one_vm() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("device");
    let device = rustix::fs::makedev(0, 0);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, mode, device).unwrap();
    let storage = Storage {
        disks: vec![AdditionalDisk {
            path: node.clone(),
            read_only: true,
        }],
        ..from(&node)
    };
    let why = choose(dir.path(), &storage).unwrap_err();
    assert!(why.contains("duplicate disk"), "{why}");
}
