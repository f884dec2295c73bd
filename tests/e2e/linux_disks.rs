//! What Linux guests read from their disks and write to them: which of it is there again after a restart, a crash, a deletion.
//! Out of scope: disks without guests (`disks`); copies and locks by themselves (`tests/kernel/disks.rs`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::process::Signal;

use super::guests::{initrd, kernel};
use test_support::harness::{Harness, group, signal, with_daemon};
use test_support::linux::{boots, guests, output_of, pid, vmm};
use test_support::tiny::is_alive;

/// Bytes.
const IMAGE: usize = 1 << 20;

/// A raw file that begins with these words.
fn image(harness: &Harness, name: &str, words: &str) -> PathBuf {
    let path = harness.dir.path().join(name);
    let mut bytes = format!("{words}\n").into_bytes();
    bytes.resize(IMAGE, 0);
    fs::write(&path, bytes).expect("written");
    path
}

/// A group of one VM with these lines, in a /22 of its own.
fn one(harness: &Harness, name: &str, range: &str, lines: &str) -> String {
    let slots = group(name, 1, range, "");
    guests(&slots, &kernel(), &initrd(harness, ""), lines)
}

/// The first line of a disk, past the guest's cache.
fn first_line(harness: &Harness, vm: &str, disk: &str) -> String {
    output_of(harness, vm, &format!("head -n 1 {disk}"))
}

/// The guest writes a first line, and it is on the disk.
fn write(harness: &Harness, vm: &str, disk: &str, words: &str) -> String {
    let write = format!("echo {words} | dd of={disk} conv=fsync 2>/dev/null; echo $?");
    output_of(harness, vm, &write)
}

#[test]
fn what_a_linux_wrote_is_there_after_a_restart_and_a_crash_and_after_a_deletion_if_it_is_persistent()
 {
    with_daemon(|harness| {
        let image = image(&harness, "root.img", "as made");
        let lines = format!("image: {}\nstorage_size: 3M\npersistent: ", image.display());
        let apply = || {
            for (name, range, kept) in [
                ("keep", "169.254.100.0/22", "true"),
                ("lose", "169.254.104.0/22", "false"),
            ] {
                harness.apply(&one(&harness, name, range, &format!("{lines}{kept}")));
            }
            for vm in ["keep-1", "lose-1"] {
                boots(&harness, vm, 1);
            }
        };
        apply();
        for vm in ["keep-1", "lose-1"] {
            assert_eq!(first_line(&harness, vm, "/dev/vda"), "as made");
            let size = output_of(&harness, vm, "blockdev --getsize64 /dev/vda");
            assert_eq!(size, (3 << 20).to_string(), "grown");
            assert_eq!(
                write(&harness, vm, "/dev/vda", &format!("{vm}-was-here")),
                "0"
            );
        }
        let crashed = pid(&harness, "lose-1");
        signal(crashed, Signal::KILL);
        harness.ctl("vm restart keep-1 --wait=60s");
        for vm in ["keep-1", "lose-1"] {
            boots(&harness, vm, 2);
            assert_eq!(
                first_line(&harness, vm, "/dev/vda"),
                format!("{vm}-was-here")
            );
        }
        assert_ne!(pid(&harness, "lose-1"), crashed);

        harness.ctl("delete hg keep lose --wait=60s");
        apply();
        assert_eq!(
            first_line(&harness, "keep-1", "/dev/vda"),
            "keep-1-was-here"
        );
        assert_eq!(first_line(&harness, "lose-1", "/dev/vda"), "as made");
        assert!(fs::read(&image).unwrap().starts_with(b"as made\n"));
        harness.ctl("delete hg keep lose --wait=60s");
    });
}

#[test]
fn a_disk_is_read_by_many_written_by_one_and_its_owners_again_in_the_end() {
    with_daemon(|harness| {
        let (library, diary) = (
            image(&harness, "library.img", "to read"),
            image(&harness, "diary.img", "to write"),
        );
        let reads = format!("{{path: {}}}", library.display());
        let writes = format!("{{path: {}, read_only: false}}", diary.display());
        let lines = format!("disks: [{reads}, {writes}]");
        harness.apply(&one(&harness, "writer", "169.254.100.0/22", &lines));
        boots(&harness, "writer-1", 1);
        let lines = format!("disks: [{reads}]");
        harness.apply(&one(&harness, "reader", "169.254.104.0/22", &lines));
        boots(&harness, "reader-1", 1);
        for vm in ["writer-1", "reader-1"] {
            assert_eq!(first_line(&harness, vm, "/dev/vda"), "to read");
            assert_eq!(output_of(&harness, vm, "blockdev --getro /dev/vda"), "1");
            assert_ne!(write(&harness, vm, "/dev/vda", "scribble"), "0");
        }
        assert_eq!(
            output_of(&harness, "writer-1", "blockdev --getro /dev/vdb"),
            "0"
        );
        assert_eq!(write(&harness, "writer-1", "/dev/vdb", "dear-diary"), "0");

        let writer = pid(&harness, "writer-1");
        let lines = format!("disks: [{writes}]");
        let file = harness.write(
            "second",
            &one(&harness, "second", "169.254.108.0/22", &lines),
        );
        harness.ctl(&format!("apply -f {file}"));
        let output = harness.until("a condition that names the first", || {
            let vm = harness.get("vm second-1");
            let conditions = vm["status"]["conditions"].as_array()?.clone();
            let found = conditions
                .into_iter()
                .find(|found| found["type"] == "Vmm")?;
            let output = found["message"].as_str()?.to_owned();
            output.contains(&writer.to_string()).then_some(output)
        });
        assert!(output.contains(&diary.display().to_string()), "{output}");
        assert!(vmm(&harness, "second-1")["pid"].is_null());
        assert!(is_alive(writer));
        // Its turn comes.
        harness.ctl("delete hg writer --wait=60s");
        harness.apply(&fs::read_to_string(&file).unwrap());
        boots(&harness, "second-1", 1);
        assert_eq!(first_line(&harness, "second-1", "/dev/vda"), "dear-diary");
        harness.ctl("delete hg second reader --wait=60s");
        assert!(fs::read(&diary).unwrap().starts_with(b"dear-diary\n"));
        assert!(fs::read(&library).unwrap().starts_with(b"to read\n"));
        for disk in [&diary, &library] {
            assert_eq!(fs::metadata(disk).unwrap().uid(), 0, "its owner's again");
        }
    });
}
