//! Disks as a user meets them: made before the VM is Ready, kept or not, and why there is none.
//! Out of scope: copies and locks by themselves (`tests/kernel/disks.rs`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use test_support::harness::{Harness, with_daemon};

fn manifest(count: u32, image: &str, rest: &str) -> String {
    format!(
        "config:\n  hypervisor: none\n  image: {image}\n  host_groups:\n    - name: web\n      count: {count}\n      {rest}\n      network: {{mode: isolated}}\n"
    )
}

fn image(harness: &Harness) -> String {
    let path = harness.dir.path().join("image");
    fs::write(&path, vec![5; 1 << 20]).unwrap();
    path.display().to_string()
}

fn disk(harness: &Harness, vm: &str) -> PathBuf {
    harness
        .state()
        .canonicalize()
        .unwrap()
        .join(format!("disks/{vm}.img"))
}

fn disks(harness: &Harness) -> usize {
    fs::read_dir(harness.state().join("disks")).map_or(0, Iterator::count)
}

#[test]
fn every_vm_has_a_disk_of_its_own_and_it_goes_with_its_vm() {
    with_daemon(|harness| {
        let image = image(&harness);
        harness.apply(&manifest(2, &image, "storage_size: 4M"));
        for vm in ["web-1", "web-2"] {
            let made = fs::read(disk(&harness, vm)).unwrap();
            assert_eq!(made.len(), 4 << 20);
            assert!(made.starts_with(&fs::read(&image).unwrap()));
        }
        let output = harness.ctl("describe vm/web-2");
        let path = disk(&harness, "web-2").display().to_string();
        assert!(
            output.contains(&format!("{path} (deleted with the VM)")),
            "{output}"
        );
        assert!(output.contains("4 MiB"), "{output}");
        assert_eq!(harness.get("vm web-2")["status"]["disk"], path);
        harness.apply(&manifest(1, &image, "storage_size: 4M"));
        harness.until("the second's going", || {
            (!disk(&harness, "web-2").exists()).then_some(())
        });
        harness.ctl("delete hostgroup/web --wait");
        assert_eq!(disks(&harness), 0);
    });
}

#[test]
fn a_persistent_disk_outlives_replacement_deletion_and_a_killed_daemon() {
    with_daemon(|mut harness| {
        let image = image(&harness);
        let text = manifest(1, &image, "persistent: true");
        harness.apply(&text);
        let path = disk(&harness, "web-1");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"by the guest", 0).unwrap();
        drop(file);
        let kept = || fs::read(&path).unwrap().starts_with(b"by the guest");
        harness.kill();
        harness.start();
        let uid = harness.get("vm web-1")["metadata"]["uid"].clone();
        harness.apply(&text.replace("persistent", "vcpu: 3\n      persistent"));
        assert_ne!(harness.get("vm web-1")["metadata"]["uid"], uid, "replaced");
        assert!(kept());
        harness.ctl("delete hostgroup/web --wait");
        assert!(kept());
        let output = harness.messages("vm/web-1", "DiskKept");
        assert!(
            output
                .iter()
                .any(|output| output.ends_with(&path.display().to_string())),
            "{output:?}"
        );
        harness.apply(&text);
        assert!(kept(), "taken over by the next of that name");
        harness.ctl("delete hostgroup/web --force --wait");
        assert!(kept(), "a forced deletion keeps it, too");
    });
}

#[test]
fn what_is_no_image_is_a_condition_that_names_it_before_anything_is_made() {
    with_daemon(|harness| {
        let (nothing, small) = (harness.dir.path().join("nothing"), image(&harness));
        let [qcow, folder, null] = ["qcow", "folder", "null"].map(|n| harness.dir.path().join(n));
        fs::create_dir(&folder).unwrap();
        let character = rustix::fs::FileType::CharacterDevice;
        let (mode, null_device) = (0o666.into(), rustix::fs::makedev(1, 3));
        rustix::fs::mknodat(rustix::fs::CWD, &null, character, mode, null_device).unwrap();
        fs::write(&qcow, b"QFI\xfb\0\0\0\x03").unwrap();
        let shown = |path: &std::path::Path| path.display().to_string();
        for (image, rest, why) in [
            (
                shown(&nothing),
                "vcpu: 1",
                format!("{} not found", shown(&nothing)),
            ),
            (
                shown(&folder),
                "vcpu: 1",
                format!("{}: found a directory", shown(&folder)),
            ),
            (shown(&qcow), "vcpu: 1", "is a qcow2 image".to_owned()),
            (
                small.clone(),
                &format!("disks: [{{path: {}}}]", shown(&null)),
                format!("{}: found a character device", shown(&null)),
            ),
        ] {
            let file = harness.write("m.yaml", &manifest(1, &image, rest));
            harness.ctl(&format!("apply -f {file}"));
            harness.until(&why, || {
                let vm = harness.get("vm web-1");
                let conditions = vm["status"]["conditions"].as_array()?.clone();
                let vmm = conditions.iter().find(|found| found["type"] == "Vmm")?;
                let output = vmm["message"].as_str()?;
                (vmm["status"] == "False" && output.contains(&why)).then_some(())
            });
            assert!(!disk(&harness, "web-1").exists());
            harness.ctl("delete hostgroup/web --wait");
        }
        assert_eq!(disks(&harness), 0);
    });
}

/// As a daemon leaves it that lost its state, and its run directory, before it could remove a VM.
#[test]
fn a_disk_that_no_vm_references_is_collected_and_a_kept_one_is_not() {
    with_daemon(|mut harness| {
        let image = image(&harness);
        harness.apply(&manifest(1, &image, "storage_size: 4M"));
        harness.kill();
        let folder = harness.state().join("disks");
        let note = fs::read_to_string(folder.join("web-1.json")).unwrap();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let of_an_earlier_boot = note.replace(boot.trim(), "an earlier boot");
        assert_ne!(of_an_earlier_boot, note);
        // Of this boot, a disk goes only if its VM's deletion is proved.
        for (vm, kept, note) in [
            ("old-1", "false", &of_an_earlier_boot),
            ("old-2", "true", &of_an_earlier_boot),
            ("new-1", "false", &note),
        ] {
            let uid = slicectl::api::meta::Uid::random();
            let label = note.split("/vm/").next().unwrap();
            let rest = note.split_once("\",").unwrap().1;
            let note = format!("{label}/vm/{vm}@{uid}\",{rest}");
            let kept = format!("\"persistent\":{kept}");
            let note = note.replace("\"persistent\":false", &kept);
            fs::write(folder.join(format!("{vm}.json")), note).unwrap();
            fs::write(folder.join(format!("{vm}.img")), "a disk").unwrap();
        }
        fs::write(folder.join("notes.json"), "{}").unwrap();
        harness.start();
        harness.until("the collection", || {
            (!folder.join("old-1.json").exists()).then_some(())
        });
        let mut left: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let gc = harness.ctl("gc --dry-run");
        assert!(gc.contains("new-1") && gc.contains("no tombstone"), "{gc}");
        let expected = [
            "new-1.img",
            "new-1.json",
            "notes.json",
            "old-2.img",
            "old-2.json",
            "web-1.img",
            "web-1.json",
        ];
        assert_eq!(left, expected);
    });
}
