//! Garbage: what is ours and unreferenced is removed; what is foreign stays.
//! Out of scope: what is referenced.

use std::process::Command;
use std::time::{Duration, Instant};

use slicectl::host::process::{self, Identity, ProcessState};

use super::guests::{guest_dir, kernel, pids};
use test_support::harness::{self, Harness, slots, with_daemon};
use test_support::kernel::{Canaries, run};

/// Slots that no daemon knows any more: the database is gone with its journal, and one slot's record with them.
fn forgotten(harness: &mut Harness) -> String {
    harness.apply(&slots(2, ""));
    let lost = harness.place("sandbox-1");
    harness.kill();
    std::fs::remove_dir_all(harness.state()).unwrap();
    std::fs::remove_file(harness.run.join(slicectl::store::JOURNAL)).unwrap();
    std::fs::remove_file(harness.run.join("vm").join(&lost.uid).join("record.json")).unwrap();
    lost.link
}

#[test]
fn what_a_dead_daemon_left_is_removed_at_the_start_and_the_rest_is_adopted() {
    with_daemon(|mut harness| {
        let canaries = Canaries::release();
        let link = forgotten(&mut harness);
        harness.start();
        harness.until("the forgotten slot is gone", || {
            (!run("ip -o link").contains(&link)).then_some(())
        });
        let reported = harness.until("the event", || {
            harness.messages("", "GarbageCollected").pop()
        });
        assert!(reported.contains("removed"), "{reported}");
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        // The group asks for two: the slot is built anew.
        assert_eq!(harness.vms(), ["sandbox-1", "sandbox-2"]);
        assert_eq!(
            run("ls /run/netns; ls /run/slice/vm").lines().count(),
            2 + 2 + 1
        );
        canaries.assert_alive();
    });
}

/// What of a VM may be left that never was, or whose object is gone: how it is made, and what it is called.
type Part = (fn(&Ghost), fn(&Ghost) -> String);

const LINK: Part = (
    |ghost| {
        run(&format!(
            "ip tuntap add {0} mode tap; ip link set {0} alias '{1}'",
            ghost.names.host_link, ghost.label
        ));
    },
    |ghost| format!("link {}", ghost.names.host_link),
);
const NAMESPACE: Part = (
    |ghost| {
        run(&format!(
            "ip netns add {0}; ip -n {0} link set lo alias '{1}'
             touch /run/slice/netns/{0}; mount --bind /run/netns/{0} /run/slice/netns/{0}
             umount /run/netns/{0}; rm /run/netns/{0}",
            ghost.names.netns, ghost.label
        ));
    },
    |ghost| format!("namespace {}", ghost.names.netns),
);
/// The record is of an earlier boot: it lets nobody adopt anything.
const RUN_DIRECTORY: Part = (
    |ghost| {
        let record = ghost
            .record
            .replace("\"boot_id\":\"", "\"boot_id\":\"earlier-");
        assert_ne!(record, ghost.record);
        let dir = format!("/run/slice/vm/{}", ghost.uid);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(format!("{dir}/record.json"), record).unwrap();
    },
    |_| "run directory".to_owned(),
);

struct Ghost {
    uid: &'static str,
    label: String,
    names: slicectl::owner::VmNames,
    /// The record of a VM with its name.
    record: String,
}

impl Ghost {
    /// After the pattern of this VM.
    fn of(harness: &Harness, vm: &str) -> Self {
        const UID: &str = "11111111-2222-4333-8444-555555555555";
        let place = harness.place(vm);
        let mine = |text: &str| text.replace(vm, "ghost-7").replace(&place.uid, UID);
        let alias = run(&format!("ip -o link show {}", place.link));
        let alias = alias.split("alias ").nth(1).unwrap();
        let label = mine(alias.trim().trim_end_matches('\\').trim());
        let record = harness.run.join("vm").join(&place.uid).join("record.json");
        Self {
            uid: UID,
            names: slicectl::owner::names_of(&label.parse().expect("a label")),
            label,
            record: mine(&std::fs::read_to_string(record).unwrap()),
        }
    }

    fn owner(&self) -> String {
        format!("vm/ghost-7@{}", self.uid)
    }
}

#[test]
fn gc_with_dry_run_lists_what_exists_and_gc_removes_and_lists_it() {
    with_daemon(|harness| {
        let canaries = Canaries::release();
        harness.apply(&slots(1, ""));
        let ghost = Ghost::of(&harness, "sandbox-1");
        for parts in [
            &[LINK][..],
            &[NAMESPACE],
            &[RUN_DIRECTORY],
            &[LINK, RUN_DIRECTORY],
            &[LINK, NAMESPACE, RUN_DIRECTORY],
        ] {
            let world = harness::world_to_the_last_handle();
            parts.iter().for_each(|(make, _)| make(&ghost));
            let made = harness::world_to_the_last_handle();
            let things: Vec<String> = parts.iter().map(|(_, name)| name(&ghost)).collect();
            let expected =
                serde_json::json!([{ "thing": things.join(", "), "owner": ghost.owner() }]);
            let reported = |command: &str| -> serde_json::Value {
                serde_json::from_str(&harness.ctl(&format!("{command} -o json"))).unwrap()
            };
            assert_eq!(reported("gc --dry-run"), expected);
            assert_eq!(
                harness::world_to_the_last_handle(),
                made,
                "a dry run changed it"
            );
            assert_eq!(reported("gc"), expected);
            assert_eq!(harness::world_to_the_last_handle(), world, "{things:?}");
            assert_eq!(reported("gc --dry-run"), serde_json::json!([]));
        }
        harness.ctl("wait hg/sandbox --for ready --timeout 5s");
        canaries.assert_alive();
    });
}

/// It may be of a VM that runs, and the others are removed nevertheless.
#[test]
fn an_orphan_whose_disk_record_cannot_be_decoded_is_kept_and_keeps_no_other() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, ""));
        let ghost = Ghost::of(&harness, "sandbox-1");
        (LINK.0)(&ghost);
        std::fs::create_dir_all(harness.state().join("disks")).unwrap();
        let record = harness.state().join("disks/ghost-7.json");
        std::fs::write(&record, "{").unwrap();
        let other = ghost
            .label
            .replace("ghost-7", "other-7")
            .replace("11111111", "22222222");
        run(&format!(
            "ip tuntap add other0 mode tap; ip link set other0 alias '{other}'"
        ));
        let named = record.display().to_string();
        let output = harness.ctl("gc");
        assert!(
            output.contains("other-7") && output.contains(&named),
            "{output}"
        );
        run(&format!("ip link show {}", ghost.names.host_link));
        harness.restart();
        harness.ctl("wait hg/sandbox --for ready --timeout 10s");
        std::fs::remove_file(&record).unwrap();
        harness.ctl("gc");
        run(&format!("! ip link show {} 2>&1", ghost.names.host_link));
    });
}

#[test]
fn the_empty_file_that_a_namespace_was_mounted_on_goes_with_its_vm() {
    with_daemon(|mut harness| {
        harness.save("sandbox.yaml", &slots(1, ""));
        harness.until("the slot", || {
            (harness.get("vm sandbox-1")["status"]["ready"] == true).then_some(())
        });
        let netns = harness.place("sandbox-1").netns;
        harness.kill();
        // As a crash between unmounting and removing leaves it.
        run(&format!("umount {netns}"));
        std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.start();
        harness.until("all gone", || {
            run(&format!(
                "ls {0}/netns {0}/vm | grep - || true",
                harness.run.display()
            ))
            .is_empty()
            .then_some(())
        });
    });
}

/// Whatever has lost a VM's object: as long as there is a record of this boot, only a tombstone lets anything of it be removed.
#[test]
fn what_has_a_record_of_this_boot_is_adopted_and_not_removed_unless_its_deletion_is_proved() {
    for (what, tombstone, journal, is_kept) in [
        ("no object", false, false, true),
        ("no object, and a journal", false, true, true),
        ("no object, and a tombstone", true, false, false),
    ] {
        with_daemon(|mut harness| {
            let canaries = Canaries::release();
            harness.save("sandbox.yaml", &slots(2, "drop: [10.0.0.0/8]"));
            harness.ctl("wait hg/sandbox --for ready --timeout 20s");
            // An older state, of when there was nothing.
            let place = harness.place("sandbox-1");
            let before = harness::world_to_the_last_handle();
            harness.kill();
            std::fs::remove_dir_all(harness.state()).unwrap();
            std::fs::create_dir(harness.state()).unwrap();
            let _ = std::fs::remove_file(harness.run.join("state.seal"));
            if !journal {
                std::fs::remove_file(harness.run.join(slicectl::store::JOURNAL)).unwrap();
            }
            if tombstone {
                bury(&harness, &place.uid);
            }
            harness.start();
            harness.ctl("wait hg/sandbox --for ready --timeout 20s");
            assert_eq!(harness.vms(), ["sandbox-1", "sandbox-2"], "{what}");
            let uid = harness.place("sandbox-1").uid;
            assert_eq!(uid == place.uid, is_kept, "{what}");
            if is_kept {
                assert_eq!(harness::world_to_the_last_handle(), before, "{what}");
                assert!(!harness.messages("host", "Adopted").is_empty(), "{what}");
                assert!(!harness.messages("host", "StateLost").is_empty(), "{what}");
            }
            harness.until("no tombstone is left", || {
                (!harness.run.join(slicectl::store::TOMBSTONES).exists()).then_some(())
            });
            canaries.assert_alive();
        });
    }
}

/// As the store writes it.
fn bury(harness: &Harness, uid: &str) {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = format!("{} {uid}", boot.trim());
    let hash = blake3::hash(text.as_bytes()).to_hex();
    let path = harness.state().join(slicectl::store::TOMBSTONES);
    std::fs::write(path, format!("{text} {hash}\n")).unwrap();
}

#[test]
fn a_record_that_cannot_be_read_keeps_what_it_contains_and_gc_reports_it() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, ""));
        let place = harness.place("sandbox-1");
        harness.kill();
        std::fs::remove_dir_all(harness.state()).unwrap();
        std::fs::remove_file(harness.run.join(slicectl::store::JOURNAL)).unwrap();
        let record = harness.run.join("vm").join(&place.uid).join("record.json");
        std::fs::write(&record, "{\"boot_id\": 7}").unwrap();
        harness.start();
        let gc = harness.ctl("gc");
        assert!(
            gc.contains("is not removed") && gc.contains("its record cannot be read"),
            "{gc}"
        );
        harness.stays(std::time::Duration::from_millis(500), || {
            run("ip -o link").contains(&place.link)
        });
        assert!(run("ip -o link").contains(&place.link));
        assert!(!harness.messages("", "OrphanKept").is_empty());
    });
}

/// A crash between the tombstone and the database: nobody was told that the VM is deleted, and it is not.
#[test]
fn a_tombstone_of_a_vm_that_the_database_has_is_withdrawn_at_the_start() {
    with_daemon(|mut harness| {
        harness.apply(&slots(1, ""));
        let place = harness.place("sandbox-1");
        harness.kill();
        bury(&harness, &place.uid);
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        assert_eq!(harness.place("sandbox-1").uid, place.uid);
        assert!(!harness.state().join(slicectl::store::TOMBSTONES).exists());
        // It proves nothing any more, whatever happens to the database.
        harness.kill();
        std::fs::remove_dir_all(harness.state()).unwrap();
        std::fs::remove_file(harness.run.join(slicectl::store::JOURNAL)).unwrap();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 20s");
        assert_eq!(harness.place("sandbox-1").uid, place.uid);
    });
}

fn guests(count: u32) -> String {
    let initrd = guest_dir().join("initrd");
    let qemu = format!(
        "hypervisor: qemu\n      graceful_shutdown: 0s\n      kernel_file: {}\n      initrd_file: {}",
        kernel(),
        initrd.display()
    );
    slots(count, "").replace("hypervisor: none", &qemu)
}

fn lives(identity: &Identity) -> bool {
    matches!(process::open(identity).unwrap(), ProcessState::Alive(_))
}

/// A thread of ours that stops a process just before its end, however it ends (ptrace(2), PTRACE_O_TRACEEXIT), until it is told to let go.
struct Held {
    let_go: std::sync::mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Held {
    fn hold(pid: u32) -> Self {
        let (let_go, reported) = std::sync::mpsc::channel();
        let (ready, held) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let pid = i32::try_from(pid).unwrap();
            // SAFETY: plain system calls; no memory is passed.
            let seized =
                unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, libc::PTRACE_O_TRACEEXIT) };
            ready.send(seized).unwrap();
            // A tracer that ends lets go of all.
            let _ = reported.recv();
        });
        assert_eq!(held.recv().unwrap(), 0, "it is traced");
        Self {
            let_go,
            thread: Some(thread),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.let_go.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state is lost, and with it the run directory: of the VM only its process is left, and nothing on the disk tells of it.
fn orphan(harness: &mut Harness) -> Identity {
    harness.save("sandbox.yaml", &guests(1));
    harness.ctl("wait hg/sandbox --for ready --timeout 60s");
    let identity = Identity::of(pids(harness)[0]).unwrap().unwrap();
    harness.kill();
    std::fs::remove_dir_all(harness.state()).unwrap();
    std::fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
    run("umount -l /run/slice/vm/*/vmm; rm -rf /run/slice/vm /run/slice/state.journal");
    identity
}

#[test]
fn gc_lists_what_it_cannot_remove_and_fails_and_what_it_lists_as_removed_is_gone() {
    with_daemon(|mut harness| {
        let canaries = Canaries::release();
        let orphan = orphan(&mut harness);
        let mut shell = Command::new("sleep")
            .arg("600")
            .envs([(
                "SLICE_LABEL",
                process::env_var(orphan.pid, "SLICE_LABEL")
                    .unwrap()
                    .unwrap(),
            )])
            .spawn()
            .unwrap();
        let held = Held::hold(orphan.pid);
        harness.start();
        let reported = harness.ctl("gc --dry-run");
        let process = format!("process {}", orphan.pid);
        let line = reported.lines().find(|line| line.contains("vm/sandbox-1@"));
        let line = line.unwrap_or_else(|| panic!("{reported}"));
        assert!(
            line.contains("link sl") && line.contains("namespace slice-"),
            "{reported}"
        );
        assert!(line.contains(&process), "{reported}");
        let begin = Instant::now();
        let output = harness.try_ctl("gc");
        let (out, message) = (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        assert_eq!(output.status.code(), Some(1), "{out}{message}");
        assert!(!out.contains("REMOVED"), "{out}");
        assert!(
            message.contains("vm/sandbox-1@") && message.contains("still exists (link sl"),
            "{message}"
        );
        assert!(
            message.contains(&process) && message.contains("SIGKILL"),
            "{message}"
        );
        assert!(begin.elapsed() < Duration::from_secs(55));
        assert!(lives(&orphan));
        drop(held);
        harness.until("it is gone", || (!lives(&orphan)).then_some(()));
        harness.ctl("gc");
        assert!(!harness.ctl("gc --dry-run").contains("sandbox-1"));
        assert!(
            shell.try_wait().unwrap().is_none(),
            "root's own process with our words"
        );
        shell.kill().unwrap();
        shell.wait().unwrap();
        canaries.assert_alive();
    });
}

#[test]
fn an_orphan_without_state_and_run_directory_is_stopped_at_the_start_and_by_gc() {
    with_daemon(|mut harness| {
        let at_start = orphan(&mut harness);
        harness.start();
        harness.until("it is stopped", || (!lives(&at_start)).then_some(()));
        let reported = harness.until("the event", || {
            harness.messages("", "GarbageCollected").pop()
        });
        assert!(reported.contains("removed"), "{reported}");
        assert!(!harness.ctl("gc").contains("REMOVED"), "nothing is left");
        assert!(!run("ip -o link").contains("slice/"));
    });
}
