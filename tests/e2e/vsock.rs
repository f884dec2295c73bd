//! Guest access through vsock: the condition `Agent`, the process beside QEMU across restarts of the daemon, and VMs without the device.
//! Out of scope: connections in detail (`tests/vmm/vsock.rs`); commands in a guest.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::guests::{guest_dir, kernel};
use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::linux::{guests, pid, vmm};
use test_support::tiny::is_alive;

const VM: &str = "sandbox-1";

/// The base guest with servers on vsock ports, among them one that answers as an agent does.
fn initrd(harness: &Harness) -> String {
    let out = harness.dir.path().join("initrd").display().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/vsock/build.sh");
    let built = Command::new(script)
        .arg(guest_dir().join("initrd"))
        .arg(&out)
        .status();
    assert!(built.unwrap().success());
    out
}

fn manifest(harness: &Harness, lines: &str) -> String {
    guests(&harness::slots(1, ""), &kernel(), &initrd(harness), lines)
}

fn agent(harness: &Harness) -> Option<Value> {
    let vm = harness.get(&format!("vm {VM}"));
    let conditions = vm["status"]["conditions"].as_array()?.clone();
    conditions
        .into_iter()
        .find(|found| found["type"] == "Agent")
}

#[track_caller]
fn has_reason(harness: &Harness, reason: &str) -> Value {
    harness.until(reason, || {
        agent(harness).filter(|found| found["reason"] == reason)
    })
}

fn is_ready(harness: &Harness) -> bool {
    harness.get(&format!("vm {VM}"))["status"]["ready"] == true
}

/// The process in the record beside the run directory of the VM.
fn back_end(harness: &Harness) -> u32 {
    let uid = harness.get(&format!("vm {VM}"))["metadata"]["uid"].clone();
    let record = harness.run.join("vm").join(uid.as_str().unwrap());
    let record = std::fs::read_to_string(record.join("vsock-process")).unwrap();
    let stat = record.lines().nth(1).expect("a process");
    stat.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_agent_of_a_guest_is_found_and_kept_across_a_crash_of_the_daemon_and_its_loss_is_reported() {
    with_daemon(|mut harness| {
        harness.apply(&manifest(&harness, ""));
        harness.ctl(&format!("wait vm/{VM} --for agent --timeout 60s"));
        let found = has_reason(&harness, "Answering");
        assert_eq!(
            (&found["status"], &found["message"]),
            (&"True".into(), &"".into())
        );
        let processes = (pid(&harness, VM), back_end(&harness));
        // It is adopted together with its VMM.
        harness.kill();
        harness.start();
        has_reason(&harness, "Answering");
        assert_eq!((pid(&harness, VM), back_end(&harness)), processes);
        assert_eq!(harness.messages("", "GarbageCollected"), [""; 0]);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        // A guest that is paused is not asked.
        harness.ctl(&format!("vm pause {VM} --wait"));
        assert_eq!(has_reason(&harness, "Paused")["status"], "Unknown");
        harness.ctl(&format!("vm resume {VM} --wait"));
        has_reason(&harness, "Answering");
        // Without it the guest runs on.
        signal(processes.1, Signal::KILL);
        let lost = has_reason(&harness, "NotAnswering");
        assert_eq!(lost["status"], "False");
        let message = lost["message"].as_str().unwrap();
        assert!(message.contains("when the VM is restarted"), "{message}");
        assert!(is_ready(&harness) && is_alive(processes.0));
        harness.ctl(&format!("vm restart {VM} --wait"));
        has_reason(&harness, "Answering");
        assert_ne!(back_end(&harness), processes.1);
        // It ends with its VMM, and nothing is left.
        let second = back_end(&harness);
        harness.ctl("delete hg sandbox --wait=60s");
        assert!(!is_alive(second));
        assert_eq!(
            std::fs::read_dir(harness.run.join("vm")).unwrap().count(),
            0
        );
    });
}

#[test]
fn a_vm_without_the_device_or_without_an_agent_says_so_and_is_ready() {
    with_daemon(|harness| {
        for (lines, words) in [
            ("vsock: false", "vsock is false"),
            ("agent: none", "agent is none"),
        ] {
            harness.apply(&manifest(&harness, lines));
            harness.ctl(&format!("wait vm/{VM} --for ready --timeout 60s"));
            let found = has_reason(&harness, "Disabled");
            assert_eq!(found["status"], "False");
            assert!(
                found["message"].as_str().unwrap().contains(words),
                "{found}"
            );
            let refused = harness.refused(&format!("wait vm/{VM} --for agent"), 1);
            assert!(refused.contains(words), "{refused}");
        }
        let pid = pid(&harness, VM);
        let argv = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(String::from_utf8_lossy(&argv).contains("vhost-user-vsock"));
        harness.apply(&manifest(&harness, "vsock: false"));
        harness.until("another VM without the device", || {
            let pid = vmm(&harness, VM)["pid"].as_u64()?;
            let argv = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let argv = String::from_utf8_lossy(&argv);
            (argv.contains("-append") && !argv.contains("vhost-user-vsock")).then_some(())
        });
    });
}

/// A program that becomes QEMU as the version before vsock started it.
const EARLIER: &str = r#"#!/bin/bash
args=() skip=
for word in "$@"; do
    case $skip$word in
        -object) skip=skip; continue ;;
        skip*) skip=; continue ;;
        microvm,memory-backend=mem) word=microvm ;;
        socket,id=vsock,*) word=socket,id=agent,path=agent.sock,server=on,wait=off ;;
        vhost-user-vsock-device,*)
            args+=(virtio-serial-device -device)
            word=virtserialport,chardev=agent,name=org.slicectl.agent.0 ;;
    esac
    args+=("$word")
done
exec -a "$0" /usr/bin/qemu-system-x86_64 "${args[@]}"
"#;

#[test]
fn a_vm_that_an_earlier_version_has_started_keeps_running_as_it_was_started() {
    with_daemon(|mut harness| {
        let program = harness.dir.path().join("qemu-earlier");
        std::fs::write(&program, EARLIER).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let line = format!("qemu_bin: {}", program.display());
        harness.apply(&manifest(&harness, &line));
        harness.ctl(&format!("wait vm/{VM} --for ready --timeout 60s"));
        let first = pid(&harness, VM);
        let argv = std::fs::read(format!("/proc/{first}/cmdline")).unwrap();
        let argv = String::from_utf8_lossy(&argv);
        assert!(
            argv.contains("org.slicectl.agent.0") && !argv.contains("vhost-user-vsock"),
            "{argv}"
        );
        let found = has_reason(&harness, "NotAnswering");
        let message = found["message"].as_str().unwrap();
        assert!(message.contains("earlier version"), "{message}");
        harness.kill();
        harness.start();
        harness.stays(Duration::from_secs(2), || pid(&harness, VM));
        assert_eq!(pid(&harness, VM), first);
        assert!(is_ready(&harness));
        assert_eq!(vmm(&harness, VM)["restarts"], 0);
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
    });
}
