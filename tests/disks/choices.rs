//! Which disks a VM gets, and in which words it does not.
//! Not here: making them.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use slicectl::api::meta::{Name, Uid};
use slicectl::api::storage::{FurtherDisk, Storage};
use slicectl::owner::Instance;
use slicectl::reconcile::storage::{Disks, Whose, disks};
use slicectl::reconcile::vmm::Access;

fn choose(dir: &Path, storage: &Storage) -> Result<Disks, String> {
    let name: Name = "web-1".parse().unwrap();
    let label = Instance::of(dir).vm_label(&name, Uid::random());
    let whose = Whose {
        user: None,
        dir,
        boot: "now",
        name: &name,
        label: &label,
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
fn an_empty_image_is_a_blank_disk_when_its_size_is_said() {
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
    let own = choose(dir.path(), &storage).unwrap().own.want.unwrap();
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
    assert_eq!(chosen.own.want, None);
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
        assert!(words.contains("used as it is, read-only"), "{words}");
    }
}

#[test]
fn the_root_disk_comes_first_and_further_ones_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["image", "b", "a"].map(|name| dir.path().join(name));
    for path in &paths {
        fs::write(path, "raw").unwrap();
    }
    let further = |path: &Path, read_only| FurtherDisk {
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
        words.contains(&format!("{} is not there", paths[2].display())),
        "{words}"
    );
}
