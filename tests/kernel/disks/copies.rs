//! Real copies: whole or not there, sparse, kept as their record says.
//! Out of scope: who may use them.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use slicectl::host;
use slicectl::host::image::{self, Copy, How, Progress};
use slicectl::reconcile::disk::{Disks, image_note};
use slicectl::reconcile::{OnHost, Probe, converge};

use crate::disks::fixture::{
    enlarge_tmpfs, gone, hands, image_with_a_hole, in_private_mounts, meet, mount_tmpfs, named,
    names, replacement_of, some_vm,
};

const MIB: u64 = 1 << 20;

#[test]
fn a_disk_is_a_copy_with_holes_as_long_as_asked_for() {
    in_private_mounts(|| async {
        let home = tempfile::tempdir().unwrap();
        // More than the image holds, less than it is long.
        let dir = home.path().join("disks");
        mount_tmpfs(&dir, "4m");
        let image = image_with_a_hole(home.path());
        let desired = some_vm(&dir, &image, 64 * MIB, false);
        let steps = meet(&desired).await.unwrap();
        assert_eq!(steps.len(), 2, "{steps:?}");
        assert!(steps[1].starts_with("copy the image "), "{steps:?}");
        let disk = desired.disk();
        let found = fs::metadata(&disk).unwrap();
        assert_eq!(found.len(), 64 * MIB);
        assert!(found.blocks() * 512 <= 3 * MIB, "{} blocks", found.blocks());
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        let copy = fs::read(&disk).unwrap();
        assert!(copy.starts_with(&fs::read(&image).unwrap()));
        assert_eq!(meet(&desired).await.unwrap(), Vec::<String>::new());
        assert_eq!(names(&dir), ["web-1.img", "web-1.json"]);
        meet(&gone(&desired)).await.unwrap();
        assert_eq!(names(&dir), [] as [&str; 0]);
    });
}

#[test]
fn without_room_nothing_half_copied_stays_and_with_room_it_heals() {
    in_private_mounts(|| async {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("disks");
        mount_tmpfs(&dir, "2m");
        let image = home.path().join("image");
        fs::write(&image, vec![1; 6 << 20]).unwrap();
        let desired = some_vm(&dir, &image, 0, true);
        let words = meet(&desired).await.unwrap_err();
        assert!(words.contains("needs 6 MiB, "), "{words}");
        assert!(
            words.contains(&desired.disk().display().to_string()),
            "{words}"
        );
        assert_eq!(names(&dir), ["web-1.json"]);
        enlarge_tmpfs(&dir, "16m");
        meet(&desired).await.unwrap();
        assert_eq!(fs::read(desired.disk()).unwrap(), fs::read(&image).unwrap());
    });
}

/// The room is there when the copy begins and is taken by another while it is made.
#[test]
fn room_that_runs_out_half_way_leaves_nothing_either() {
    in_private_mounts(|| async {
        let home = tempfile::tempdir().unwrap();
        let (dir, image) = (home.path().join("disks"), home.path().join("image"));
        mount_tmpfs(&dir, "4m");
        fs::write(&image, vec![1; 3 << 20]).unwrap();
        fs::write(dir.join("another"), vec![0; 512 << 10]).unwrap();
        let progress = Arc::new(Progress::default());
        let eater = {
            let (progress, dir) = (progress.clone(), dir.clone());
            move || {
                while progress.total.load(Ordering::Relaxed) == 0 {
                    std::hint::spin_loop();
                }
                let _ = fs::write(dir.join("another"), vec![0; 4 << 20]);
            }
        };
        let (draft, to) = (dir.join("draft"), dir.join("to"));
        let from = named(&image);
        let what = Copy {
            image: &from,
            display_path: &image,
            temp: &draft,
            target: &to,
            min_size: 0,
        };
        let done = std::thread::scope(|scope| {
            let eater = scope.spawn(eater);
            let done = image::copy(&what, &progress);
            progress.total.store(1, Ordering::Relaxed);
            eater.join().unwrap();
            done
        });
        // Whoever was faster: whole, or nothing.
        match done {
            Ok(how) => assert_eq!(
                (how, names(&dir)),
                (
                    How::Copied(3 * MIB),
                    vec!["another".to_owned(), "to".to_owned()]
                )
            ),
            Err(error) => {
                assert_eq!(
                    error.source.raw_os_error(),
                    Some(28),
                    "{error}: {}",
                    error.source
                );
                assert_eq!(names(&dir), ["another"]);
            }
        }
    });
}

#[tokio::test]
async fn a_disk_that_is_not_persistent_is_created_again_for_the_next_vm_and_after_a_reboot() {
    let home = tempfile::tempdir().unwrap();
    let (dir, image) = (home.path().join("disks"), image_with_a_hole(home.path()));
    let first = some_vm(&dir, &image, 0, false);
    meet(&first).await.unwrap();
    write_into(&first.disk());
    meet(&first).await.unwrap();
    assert!(
        was_written(&first.disk()),
        "a VMM that starts again finds what it wrote"
    );
    let rebooted = slicectl::reconcile::disk::Desired {
        boot: "the next boot".into(),
        ..first.clone()
    };
    meet(&rebooted).await.unwrap();
    assert!(!was_written(&first.disk()));
    write_into(&first.disk());
    let next = replacement_of(&rebooted);
    meet(&next).await.unwrap();
    assert!(!was_written(&first.disk()));
    // The one before is gone: its going does not take the next one's disk.
    meet(&gone(&first)).await.unwrap();
    assert_eq!(names(&dir), ["web-1.img", "web-1.json"]);
}

#[tokio::test]
async fn a_persistent_disk_outlives_its_vm_grows_and_is_never_removed() {
    let home = tempfile::tempdir().unwrap();
    let (dir, image) = (home.path().join("disks"), image_with_a_hole(home.path()));
    let first = some_vm(&dir, &image, 0, true);
    meet(&first).await.unwrap();
    write_into(&first.disk());
    meet(&gone(&first)).await.unwrap();
    assert!(was_written(&first.disk()));

    fs::write(&image, "another image, with another length").unwrap();
    let next = some_vm(&dir, &image, 16 * MIB, true);
    let steps = meet(&next).await.unwrap();
    assert!(
        steps[1].starts_with("grow the disk ") && steps[1].ends_with("to 16 MiB"),
        "{steps:?}"
    );
    assert!(was_written(&first.disk()));
    assert_eq!(fs::metadata(first.disk()).unwrap().len(), 16 * MIB);
    let observed = Disks::default().observe(&next).await.unwrap();
    let output = image_note(&next, &observed).unwrap();
    assert!(output.ends_with("its image has changed since"), "{output}");

    let careless = some_vm(&dir, &image, 0, false);
    let words = meet(&careless).await.unwrap_err();
    assert!(words.contains("set `persistent: true`"), "{words}");
    meet(&gone(&careless)).await.unwrap();
    meet(&gone(&first)).await.unwrap();
    assert!(
        was_written(&first.disk()),
        "another's going does not take it"
    );
}

#[tokio::test]
async fn a_file_that_nobody_noted_is_used_by_a_persistent_vm_and_spared_by_another() {
    let home = tempfile::tempdir().unwrap();
    let (dir, image) = (home.path().join("disks"), image_with_a_hole(home.path()));
    let desired = some_vm(&dir, &image, 0, false);
    fs::create_dir(&dir).unwrap();
    fs::write(desired.disk(), "restored from a backup").unwrap();
    let words = meet(&desired).await.unwrap_err();
    assert!(words.contains("it has no disk record"), "{words}");
    meet(&gone(&desired)).await.unwrap();
    meet(&some_vm(&dir, &image, 0, true)).await.unwrap();
    assert_eq!(fs::read(desired.disk()).unwrap(), b"restored from a backup");
}

#[tokio::test]
async fn an_image_that_is_none_is_refused_with_its_path_and_leaves_no_disk() {
    let home = tempfile::tempdir().unwrap();
    let (dir, image) = (home.path().join("disks"), home.path().join("image"));
    let desired = some_vm(&dir, &image, 0, false);
    for (content, why) in [
        (None, "not found"),
        (Some("QED\0"), "a QED image"),
        (Some("BZh9"), "compressed with bzip2"),
    ] {
        if let Some(content) = content {
            fs::write(&image, content).unwrap();
        }
        let words = meet(&desired).await.unwrap_err();
        assert!(
            words.contains(why) && words.contains(&image.display().to_string()),
            "{words}"
        );
        assert_eq!(names(&dir), ["web-1.json"]);
    }
}

/// Every step is a place to be killed at; what is found afterwards is finished as if nothing had happened.
#[tokio::test]
async fn a_crash_before_any_step_changes_nothing_in_the_end() {
    let home = tempfile::tempdir().unwrap();
    let (dir, image) = (home.path().join("disks"), image_with_a_hole(home.path()));
    for persistent in [false, true] {
        for stop_at in 0..6 {
            let first = some_vm(&dir, &image, 16 * MIB, persistent);
            crash(&first, stop_at).await;
            fs::create_dir_all(&dir).unwrap();
            if fs::exists(dir.join("web-1.json")).unwrap() {
                fs::write(dir.join(".web-1.img.new"), "half a disk").unwrap();
            }
            meet(&first).await.unwrap();
            assert_eq!(names(&dir), ["web-1.img", "web-1.json"]);
            assert_eq!(fs::metadata(first.disk()).unwrap().len(), 16 * MIB);
            let next = replacement_of(&first);
            crash(&next, stop_at).await;
            meet(&next).await.unwrap();
            crash(&gone(&next), stop_at).await;
            meet(&gone(&next)).await.unwrap();
            let kept: &[&str] = match persistent {
                true => &["web-1.img", "web-1.json"],
                false => &[],
            };
            assert_eq!(names(&dir), kept);
            for name in kept {
                fs::remove_file(dir.join(name)).unwrap();
            }
        }
    }
}

async fn crash(desired: &slicectl::reconcile::disk::Desired, stop_at: usize) {
    let steps = AtomicUsize::new(0);
    let probe: Probe = Arc::new(
        move |_| match steps.fetch_add(1, Ordering::Relaxed) == stop_at {
            true => Err(host::Error::other("go on", "here", "killed")),
            false => Ok(()),
        },
    );
    let _ = converge(&hands(desired), desired, &probe).await;
}

#[tokio::test]
async fn a_copy_that_is_not_desired_any_more_ends_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(home.path());
    let (draft, to) = (home.path().join("draft"), home.path().join("to"));
    let progress = Progress::default();
    progress.stop.store(true, Ordering::Relaxed);
    let from = named(&image);
    let what = Copy {
        image: &from,
        display_path: &image,
        temp: &draft,
        target: &to,
        min_size: 0,
    };
    match image::copy(&what, &progress) {
        Ok(how) => assert_eq!(
            how,
            How::Shared,
            "a copy that takes no time cannot be stopped"
        ),
        Err(error) => {
            assert!(
                error.source.to_string().contains("no longer required"),
                "{}",
                error.source
            );
            assert_eq!(names(home.path()), ["image"]);
        }
    }
}

/// The file system of the temporary directory decides whether this shows anything; it says so.
#[test]
fn a_copy_shares_its_blocks_where_the_file_system_can() {
    let home = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(home.path());
    let (draft, to) = (home.path().join("draft"), home.path().join("to"));
    let from = named(&image);
    let what = Copy {
        image: &from,
        display_path: &image,
        temp: &draft,
        target: &to,
        min_size: 9 * MIB,
    };
    let how = image::copy(&what, &Progress::default()).unwrap();
    match how {
        How::Shared => {}
        How::Copied(bytes) => {
            eprintln!(
                "NOT TESTED: {} cannot share blocks; use TMPDIR on xfs or btrfs",
                home.path().display()
            );
            assert_eq!(bytes, 2 * MIB);
        }
    }
    let copy = fs::read(&to).unwrap();
    assert_eq!(copy.len() as u64, 9 * MIB);
    assert!(copy.starts_with(&fs::read(&image).unwrap()));
    assert!(fs::metadata(&to).unwrap().blocks() * 512 <= 3 * MIB);
}

fn write_into(disk: &Path) {
    let file = fs::OpenOptions::new().write(true).open(disk).unwrap();
    file.write_all_at(b"written by the guest", 4096).unwrap();
}

fn was_written(disk: &Path) -> bool {
    fs::read(disk).unwrap()[4096..].starts_with(b"written by the guest")
}
