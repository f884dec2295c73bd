//! Records of a VM that cannot be decoded: the VM runs on, the condition names the file, and a deletion completes.
//! Out of scope: the database (`damage`), checkpoints (`recovery`), the record of an address (`leftovers`).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::tiny;

/// Records of a VM with a disk that its daemon created.
#[derive(Clone, Copy, Debug)]
enum Record {
    Launch,
    Stop,
    Disk,
}

const RECORDS: [Record; 3] = [Record::Launch, Record::Stop, Record::Disk];

/// What no version writes, and what a version after this one could write.
const CONTENTS: [&str; 3] = ["", "{\"process\": ", "[\"of another version\"]"];

impl Record {
    fn path(self, harness: &Harness) -> PathBuf {
        let uid = harness.place("web-1").uid;
        let vm = harness.run.join("vm").join(uid);
        match self {
            Self::Launch => vm.join("launch.json"),
            Self::Stop => vm.join("stopping"),
            Self::Disk => harness.state().join("disks/web-1.json"),
        }
    }
}

/// A guest with a persistent disk, or one that is deleted with it.
fn vm(harness: &Harness, persistent: bool) {
    let image = harness.dir.path().join("image");
    fs::write(&image, vec![5; 1 << 20]).unwrap();
    harness.apply(&manifest(&image, persistent));
    harness.ctl("wait hg/web --for ready --timeout 60s");
}

fn manifest(image: &std::path::Path, persistent: bool) -> String {
    format!(
        "config:\n  hypervisor: qemu\n  kernel_file: {}\n  image: {}\n  persistent: {persistent}\n  host_groups:\n    - name: web\n      count: 1\n      vcpu: 1\n      ram_mb: 32\n      network: {{mode: isolated}}\n",
        tiny::kernel(),
        image.display()
    )
}

/// The processes of the VM, whatever the daemon reports.
fn pids(harness: &Harness) -> Vec<u32> {
    harness::guests(&harness.run)
}

fn mentions(harness: &Harness, text: &str) -> Option<()> {
    let vm = harness.get("vm web-1");
    let conditions = vm["status"]["conditions"].as_array()?.iter();
    let is_named = |condition: &Value| {
        let message = condition["message"].as_str().unwrap_or_default();
        condition["status"] != "True" && message.contains(text)
    };
    conditions.into_iter().any(is_named).then_some(())
}

#[test]
fn a_vm_with_a_record_that_cannot_be_decoded_runs_on_and_its_condition_names_the_file() {
    for record in RECORDS {
        with_daemon(|mut harness| {
            vm(&harness, true);
            let (path, before) = (record.path(&harness), pids(&harness));
            assert_eq!(before.len(), 1);
            let valid = fs::read(&path).ok();
            for content in CONTENTS {
                fs::write(&path, content).unwrap();
                harness.restart();
                let named = path.display().to_string();
                harness.until(&format!("{record:?} {content:?} is reported"), || {
                    mentions(&harness, &named)
                });
                harness.stays(Duration::from_secs(1), || pids(&harness));
                assert_eq!(pids(&harness), before, "{record:?} {content:?}");
                assert_eq!(fs::read_to_string(&path).unwrap(), content, "{record:?}");
            }
            match valid {
                Some(valid) => fs::write(&path, valid).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            harness.ctl("wait hg/web --for ready --timeout 60s");
            assert_eq!(pids(&harness), before, "{record:?}");
        });
    }
}

/// The reason of the condition whose message contains the text.
fn reason(harness: &Harness, text: &str) -> Option<String> {
    let vm = harness.get("vm web-1");
    let conditions = vm["status"]["conditions"].as_array()?.iter();
    let found = conditions.into_iter().find(|condition| {
        let message = condition["message"].as_str().unwrap_or_default();
        message.contains(text)
    });
    found?["reason"].as_str().map(str::to_owned)
}

/// `Invalid` would mean that this host cannot run the VM, which runs.
#[test]
fn a_record_that_cannot_be_decoded_is_a_failed_observation_and_no_invalid_vm() {
    with_daemon(|mut harness| {
        vm(&harness, true);
        for record in RECORDS {
            let path = record.path(&harness);
            let valid = fs::read(&path).ok();
            fs::write(&path, "{").unwrap();
            harness.restart();
            let named = path.display().to_string();
            let reason = harness.until("a reason", || reason(&harness, &named));
            assert_eq!(reason, "ObserveFailed", "{record:?}");
            match valid {
                Some(valid) => fs::write(&path, valid).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            harness.ctl("wait hg/web --for ready --timeout 60s");
        }
    });
}

/// A replacement would find the same record and not start.
#[test]
fn a_vm_is_not_replaced_while_the_record_of_its_disk_cannot_be_decoded() {
    with_daemon(|harness| {
        vm(&harness, true);
        let (path, before) = (Record::Disk.path(&harness), pids(&harness));
        let valid = fs::read(&path).unwrap();
        fs::write(&path, "{").unwrap();
        let image = harness.dir.path().join("image");
        let changed = manifest(&image, true).replace("ram_mb: 32", "ram_mb: 48");
        let file = harness.write("changed.yaml", &changed);
        harness.ctl(&format!("apply -f {file}"));
        let named = path.display().to_string();
        harness.until("the reason", || {
            let reasons = harness.messages("hostgroup/web", "NotReplaced");
            reasons
                .iter()
                .any(|reason| reason.contains(&named))
                .then_some(())
        });
        assert_eq!(pids(&harness), before);
        fs::write(&path, valid).unwrap();
        harness.ctl("wait hg/web --for ready --timeout 90s");
        assert_ne!(pids(&harness), before);
    });
}

#[test]
fn a_vm_with_a_record_that_cannot_be_decoded_is_deleted() {
    for record in RECORDS {
        for content in CONTENTS {
            with_daemon(|harness| {
                vm(&harness, false);
                let path = record.path(&harness);
                fs::write(&path, content).unwrap();
                harness.ctl("delete hostgroup/web --wait=30s");
                assert_eq!(harness.vms(), [""; 0], "{record:?} {content:?}");
                let kept = harness.messages("vm/web-1", "DiskKept");
                let is_named = |message: &String| message.contains(path.to_str().unwrap());
                let expected = matches!(record, Record::Disk);
                assert_eq!(kept.iter().any(is_named), expected, "{kept:?}");
                assert_eq!(pids(&harness), [0; 0]);
            });
        }
    }
}

/// The record says whether the daemon has caused the exit. Without it the exit is not evaluated, and the VM is not started again.
#[test]
fn an_exit_is_not_evaluated_while_the_record_of_the_stop_cannot_be_decoded() {
    with_daemon(|harness| {
        vm(&harness, true);
        let path = Record::Stop.path(&harness);
        fs::write(&path, "{").unwrap();
        signal(pids(&harness)[0], rustix::process::Signal::KILL);
        let named = path.display().to_string();
        harness.until("it is reported", || mentions(&harness, &named));
        harness.stays(Duration::from_secs(1), || pids(&harness));
        assert_eq!(pids(&harness), [0; 0]);
        fs::remove_file(&path).unwrap();
        harness.ctl("wait hg/web --for ready --timeout 60s");
    });
}
