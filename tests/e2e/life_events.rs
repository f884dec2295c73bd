//! The events of the life of groups and VMs: what changed, by whom, and nothing twice.
//! Out of scope: drift (`drift`), faults of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use test_support::harness::{Harness, PATIENCE, empty, slots, with_daemon};

use super::power_verbs::manifest;

const ROOT: &str = "by root (uid 0)";

/// Reasons and messages of an object's events, in order.
fn events(harness: &Harness, object: &str) -> Vec<(String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().expect("text").to_owned();
    let events = harness.events(object);
    let pairs = events
        .iter()
        .map(|e| (text(e, "reason"), text(e, "message")));
    pairs.collect()
}

fn reasons(harness: &Harness, object: &str) -> Vec<String> {
    let events = events(harness, object).into_iter();
    events.map(|(reason, _)| reason).collect()
}

fn until(harness: &Harness, object: &str, reason: &str) -> String {
    harness.until(&format!("{object} {reason}"), || {
        harness.messages(object, reason).pop()
    })
}

#[test]
fn the_events_of_a_group_and_its_vm_name_what_changed_and_who_requested_it() {
    with_daemon(|harness| {
        let first = manifest(&harness);
        harness.apply(&first);
        until(&harness, "vm/sandbox-1", "Ready");
        let pid = harness.get("vm sandbox-1")["status"]["vmm"]["pid"].clone();
        let group = "hostgroup/sandbox";
        let pair = |reason: &str, message: &str| (reason.to_owned(), message.to_owned());
        let mut of_group = vec![pair("Created", &format!("created {ROOT}"))];
        let mut of_vm = vec![
            pair("Created", "created in hostgroup/sandbox"),
            pair("Started", &format!("cloud-hypervisor started, pid {pid}")),
            pair("Ready", "VM is ready"),
        ];
        assert_eq!(events(&harness, group), of_group);
        assert_eq!(events(&harness, "vm/sandbox-1"), of_vm);

        let second = first.replace(
            "mode: isolated",
            "mode: isolated\n        drop: [192.168.1.0/24]",
        );
        harness.apply(&second);
        until(&harness, "vm/sandbox-1", "PolicyUpdated");
        of_group.push(pair(
            "PolicyUpdated",
            &format!("{ROOT}: drop: 192.168.1.0/24 added"),
        ));
        of_vm.push(pair(
            "PolicyUpdated",
            "the firewall rules are those of generation 2",
        ));
        // The same again is no change.
        harness.apply(&second);
        harness.apply(&second.replace("count: 1", "count: 2"));
        of_group.push(pair("Scaled", &format!("{ROOT}: count: 1 -> 2")));
        assert_eq!(events(&harness, group), of_group);

        harness.ctl("vm stop sandbox-1 --wait=30s");
        of_vm.retain(|(reason, _)| reason != "Ready");
        let ready = pair("Ready", "VM is ready");
        let of_now = events(&harness, "vm/sandbox-1");
        assert!(of_now.contains(&ready));
        of_vm.push(pair("Power", &format!("stop requested {ROOT}")));
        let stopped = of_now.iter().filter(|(reason, _)| reason == "Stopped");
        assert_eq!(stopped.count(), 1, "{of_now:?}");
        let others = of_now
            .iter()
            .filter(|(reason, _)| reason != "Ready" && reason != "Stopped");
        assert_eq!(others.cloned().collect::<Vec<_>>(), of_vm);

        harness.ctl("delete hg/sandbox --wait=60s");
        assert_eq!(
            events(&harness, group)[3..],
            [
                pair("Deleting", &format!("deletion requested {ROOT}")),
                pair("Deleted", "the group and its VMs are deleted"),
            ]
        );
        for vm in ["vm/sandbox-1", "vm/sandbox-2"] {
            assert_eq!(reasons(&harness, vm).last().unwrap(), "Deleted");
        }
    });
}

#[test]
fn a_manifest_is_named_as_the_source_and_reported_when_it_is_valid_again() {
    with_daemon(|harness| {
        let path = harness.conf().join("lab.yaml");
        let (path, group) = (path.display().to_string(), "hostgroup/sandbox");
        harness.save("lab.yaml", &slots(1, ""));
        assert_eq!(
            until(&harness, group, "Created"),
            format!("created from {path}")
        );
        harness.save("lab.yaml", "config: {host_groups: 7}\n");
        until(&harness, "manifest/lab.yaml", "ManifestInvalid");
        assert_eq!(
            harness.messages("manifest/lab.yaml", "ManifestFixed"),
            [""; 0]
        );
        harness.save(
            "lab.yaml",
            &slots(1, "allow: [10.0.0.1]").replace("vcpu: 1", "vcpu: 2"),
        );
        assert_eq!(
            until(&harness, group, "Configured"),
            format!("from {path}: vcpu: 1 -> 2; allow: 10.0.0.1 added")
        );
        until(&harness, "manifest/lab.yaml", "ManifestFixed");
        // A file that is removed is not valid again.
        harness.save("other.yaml", "config: {host_groups: 7}\n");
        until(&harness, "manifest/other.yaml", "ManifestInvalid");
        std::fs::remove_file(harness.conf().join("other.yaml")).unwrap();
        std::fs::remove_file(harness.conf().join("lab.yaml")).unwrap();
        assert_eq!(until(&harness, group, "Deleting"), "no file defines it");
        until(&harness, group, "Deleted");
        assert_eq!(
            harness.messages("manifest/other.yaml", "ManifestFixed"),
            [""; 0]
        );
        assert_eq!(
            harness.messages("manifest/lab.yaml", "ManifestFixed").len(),
            1
        );
    });
}

/// The socket's group.
const GROUP: u32 = 61_001;

/// The response to a request of another user, who is only in the socket's group.
fn request(harness: &Harness, uid: u32, line: &str) -> String {
    let socket = harness.run.join("sliced.sock");
    let text = format!(
        "{line} HTTP/1.1\r\nHost: sliced\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let ask = move || {
        // SAFETY: plain system calls that change the ids of this thread alone.
        unsafe {
            assert_eq!(
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
                0
            );
            assert_eq!(libc::syscall(libc::SYS_setresgid, GROUP, GROUP, GROUP), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
        }
        let mut stream = UnixStream::connect(socket).expect("a connection");
        stream.write_all(text.as_bytes()).expect("written");
        let mut response = String::new();
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.read_to_string(&mut response).expect("a response");
        response
    };
    std::thread::spawn(ask).join().expect("a response")
}

#[test]
fn a_user_without_a_name_is_named_by_its_uid() {
    empty(|mut harness| {
        harness.args = vec!["--socket-group".into(), GROUP.to_string()];
        harness.start();
        harness.apply(&manifest(&harness));
        let response = request(&harness, 61_000, "POST /v1/vms/sandbox-1/pause");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert_eq!(
            harness.messages("vm/sandbox-1", "Power"),
            ["pause requested by uid 61000"]
        );
        let response = request(&harness, 61_000, "DELETE /v1/objects/hostgroup/sandbox");
        assert!(response.starts_with("HTTP/1.1 204"), "{response}");
        assert_eq!(
            harness.messages("hostgroup/sandbox", "Deleting"),
            ["deletion requested by uid 61000"]
        );
    });
}

#[test]
fn a_restart_of_the_daemon_and_the_adoption_of_a_vm_report_no_second_start() {
    with_daemon(|mut harness| {
        harness.save("sandbox.yaml", &manifest(&harness));
        until(&harness, "vm/sandbox-1", "Ready");
        let before = harness.get("vm sandbox-1")["status"]["vmm"]["pid"].clone();
        let restarts: [fn(&mut Harness); 3] = [
            |harness| {
                harness.kill();
                harness.start();
            },
            Harness::restart,
            // The VM is adopted from its record.
            |harness| {
                harness.kill();
                for entry in std::fs::read_dir(harness.state()).unwrap() {
                    let path = entry.unwrap().path();
                    let removed = std::fs::remove_dir_all(&path);
                    removed.or_else(|_| std::fs::remove_file(&path)).unwrap();
                }
                harness.start();
            },
        ];
        for (n, restart) in restarts.into_iter().enumerate() {
            restart(&mut harness);
            harness.ctl("wait hg/sandbox --for ready --timeout 60s");
            harness.settles(std::time::Duration::from_millis(500), || harness.events(""));
            let pid = harness.get("vm sandbox-1")["status"]["vmm"]["pid"].clone();
            assert_eq!(pid, before, "{n}");
            let found = reasons(&harness, "");
            for reason in [
                "Created",
                "Started",
                "Stopped",
                "PolicyUpdated",
                "Scaled",
                "ManifestFixed",
            ] {
                assert!(!found.iter().any(|found| found == reason), "{n}: {found:?}");
            }
            if n < 2 {
                assert_eq!(found, [""; 0], "{n}");
            }
        }
    });
}

#[test]
fn a_missing_folder_is_a_fault_only_if_it_defined_a_group() {
    empty(|mut harness| {
        std::fs::remove_dir(harness.conf()).unwrap();
        harness.start();
        until(&harness, "manifest/conf", "FolderMissing");
        let warnings = |harness: &Harness| {
            let events = harness.events("").into_iter();
            events.filter(|event| event["type"] == "Warning").count()
        };
        assert_eq!(warnings(&harness), 0);
        assert!(!harness.log().contains("WARN"), "{}", harness.log());
        std::fs::create_dir(harness.conf()).unwrap();
        until(&harness, "manifest/conf", "FolderReadable");
        harness.save("sandbox.yaml", &slots(1, ""));
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        assert_eq!(warnings(&harness), 0);
        std::fs::rename(harness.conf(), harness.dir.path().join("away")).unwrap();
        let why = until(&harness, "manifest/conf", "FolderUnreadable");
        assert!(why.contains("No such file or directory"), "{why}");
        let objects = harness.events("").into_iter();
        let mut objects = objects.map(|event| event["object"].as_str().unwrap().to_owned());
        assert!(objects.all(|object| !object.contains("//")));
    });
}

#[test]
fn a_vm_that_cannot_run_is_named_by_its_group_and_reported_once() {
    empty(|mut harness| {
        harness.args = vec!["--resync".into(), "1s".into()];
        harness.start();
        let missing = "hypervisor: qemu\n      kernel_file: /nowhere/vmlinuz";
        let broken = slots(2, "").replace("hypervisor: none", missing);
        let path = harness.write("broken.yaml", &broken);
        harness.ctl(&format!("apply -f {path}"));
        let why = until(&harness, "vm/sandbox-1", "Invalid");
        assert_eq!(why, "/nowhere/vmlinuz is not a file on this host");
        let ready = harness.until("the reason of the group", || {
            let group = harness.get("hg sandbox");
            let conditions = group["status"]["conditions"].as_array()?.clone();
            let ready = conditions
                .into_iter()
                .find(|found| found["type"] == "Ready");
            ready.filter(|ready| ready["reason"] == "Invalid")
        });
        assert_eq!(
            ready["message"],
            format!("0 of 2 VMs are Ready; sandbox-1: Vmm: {why}")
        );
        std::thread::sleep(std::time::Duration::from_millis(2500));
        let events = harness.events("vm/sandbox-1").into_iter();
        let counts = events.filter(|event| event["reason"] == "Invalid");
        assert_eq!(
            counts
                .map(|event| event["count"].clone())
                .collect::<Vec<_>>(),
            [1]
        );
        let described = harness.ctl("describe vm/sandbox-1");
        for line in ["API socket:", "Log:"] {
            assert!(!described.contains(line), "{described}");
        }
        assert_eq!(
            harness.get("vm sandbox-1")["status"]["vmm"]["log"],
            Value::Null
        );
    });
}
