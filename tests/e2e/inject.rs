//! `agent: inject`: guests with images that do not contain the agent, under QEMU; and Debian with the agent as a unit of its image.
//! Out of scope: the command lines (`tests/vmm/recipes.rs`); requests in detail (`guest_access`, `guest_agent`).

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use test_support::harness::{self, Harness, empty};
use test_support::linux::{guests, pid, wait_for_output};

use super::guest_agent::{ctl, exec, succeeds, text};
use super::guests::{guest_dir, kernel};

const VM: &str = "sandbox-1";
/// The time that a Debian has to boot without KVM on a busy machine.
const BOOT: Duration = Duration::from_secs(240);

/// Runs a test with a daemon that has the static agent of the guests.
fn with_agent(test: impl FnOnce(Harness) + Send) {
    empty(|mut harness| {
        harness.env.push(("SLICE_GUEST_AGENT", agent()));
        harness.start();
        test(harness);
    });
}

fn agent() -> String {
    let path = guest_dir().join("slice-agent");
    assert!(
        path.exists(),
        "there is no static agent: make it with `examples/guest/agent.sh {}`",
        path.display()
    );
    path.display().to_string()
}

/// The content and the time of a file, to see that it is not changed.
fn stamp(path: &Path) -> (u64, i64, i64, SystemTime) {
    let found = fs::metadata(path).expect("there");
    let modified = found.modified().expect("a time");
    (found.len(), found.ctime(), found.ctime_nsec(), modified)
}

/// A manifest of one VM with an initrd, or none, and these lines.
fn manifest(kernel: &str, initrd: Option<&str>, memory: u32, lines: &str) -> String {
    let text = guests(&harness::slots(1, ""), kernel, "INITRD", lines);
    let text = text.replace("ram_mb: 128", &format!("ram_mb: {memory}"));
    match initrd {
        Some(path) => text.replace("INITRD", path),
        None => text.replace("      initrd_file: INITRD\n", ""),
    }
}

#[track_caller]
fn answers(harness: &Harness) {
    let waited = harness.try_ctl(&format!(
        "wait vm/{VM} --for agent --timeout {}s",
        BOOT.as_secs()
    ));
    let log = text(&harness.try_ctl(&format!("logs {VM}")).stdout);
    assert!(waited.status.success(), "{waited:?}\n{log}");
}

/// The standard output of a command in the guest that succeeds.
#[track_caller]
fn runs(harness: &Harness, words: &[&str]) -> String {
    let output = exec(harness, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    text(&output.stdout)
}

#[test]
fn an_initrd_that_is_the_whole_guest_runs_with_the_agent_of_the_host() {
    with_agent(|harness| {
        let initrd = guest_dir().join("initrd");
        let before = stamp(&initrd);
        let path = initrd.display().to_string();
        harness.apply(&manifest(&kernel(), Some(&path), 128, "agent: inject"));
        answers(&harness);
        wait_for_output(&harness, VM, &format!("GUEST {VM} ready"), 1);
        assert_eq!(runs(&harness, &["hostname"]), format!("{VM}\n"));
        let init = runs(&harness, &["cat", "/proc/1/cmdline"]);
        assert_eq!(init.replace('\0', " ").trim(), "/bin/busybox sh /init");
        assert_eq!(stamp(&initrd), before, "the image is not changed");
        let described = harness.ctl(&format!("describe vm/{VM}"));
        assert!(described.contains("inject"), "{described}");
        // The agent is started again.
        let agent = runs(&harness, &["pidof", "slice-agent"]);
        let words = [
            "vm",
            "exec",
            VM,
            "--uid",
            "0",
            "--",
            "kill",
            "-ABRT",
            agent.trim(),
        ];
        let _ = ctl(&harness, &words).output().expect("slicectl");
        harness.until("another agent", || {
            let found = exec(&harness, &["pidof", "slice-agent"]);
            let found = text(&found.stdout);
            (!found.is_empty() && found != agent).then_some(())
        });
        // The file that the VMM reads is not visible in the run directory, and nothing is left of it in the end.
        let vm = pid(&harness, VM);
        let initrds = harness.state().join("initrds");
        assert_eq!(fs::read_dir(&initrds).expect("a cache").count(), 1);
        // Another agent does not restart the VM.
        let mut harness = harness;
        harness.restart();
        answers(&harness);
        assert_eq!(pid(&harness, VM), vm);
        let path = initrd.display().to_string();
        harness.apply(&manifest(&kernel(), Some(&path), 128, ""));
        wait_for_output(&harness, VM, &format!("GUEST {VM} ready"), 1);
        harness.until("it is replaced", || (pid(&harness, VM) != vm).then_some(()));
    });
}

#[test]
fn a_host_without_the_agent_names_the_reason_and_starts_no_vmm() {
    empty(|mut harness| {
        // The debug build of the agent may be too large to be looked at.
        let dynamic = fs::canonicalize("/bin/ls").expect("a program");
        let dynamic = dynamic.display().to_string();
        let initrd = guest_dir().join("initrd").display().to_string();
        for (agent, expected) in [
            (
                "/nowhere/slice-agent",
                "slice-agent is not installed on this host: it is none of /nowhere/slice-agent",
            ),
            (
                dynamic.as_str(),
                "is dynamically linked, expected a static program: make guest-agent",
            ),
        ] {
            harness.env = vec![("SLICE_GUEST_AGENT", agent.to_owned())];
            harness.start();
            let file = harness.write(
                "m.yaml",
                &manifest(&kernel(), Some(&initrd), 128, "agent: inject"),
            );
            harness.ctl(&format!("apply -f {file}"));
            harness.until("the reason", || {
                let described = harness.ctl(&format!("describe vm/{VM}"));
                described.contains(expected).then_some(())
            });
            assert!(super::guests::pids(&harness).is_empty());
            harness.ctl("delete hg sandbox --wait=20s");
            harness.stop();
        }
    });
}

/// An archive of a directory, as the kernel reads it.
fn archive(dir: &Path, out: &Path) {
    let script = "cd \"$0\" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 >\"$1\"";
    let made = Command::new("sh")
        .args(["-c", script])
        .args([dir, out])
        .status();
    assert!(made.expect("sh").success());
}

/// The module files of these names, in an order in which they can be loaded.
fn modules(to: &Path, names: &[&str]) {
    fs::create_dir_all(to).expect("created");
    for (at, name) in names.iter().enumerate() {
        let find = Command::new("find")
            .arg(guest_dir().join("kernel/lib/modules"))
            .args(["-name", &format!("{name}.ko")])
            .output();
        let found = text(&find.expect("find").stdout);
        let path = found
            .lines()
            .next()
            .unwrap_or_else(|| panic!("no module {name}"));
        fs::copy(path, to.join(format!("{at:02}-{name}.ko"))).expect("copied");
    }
}

/// The file system is a part of Debian's cloud kernel.
const DISK: [&str; 4] = ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"];
const VSOCK: [&str; 3] = [
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// A root disk with busybox and a shell as init, which loads the modules of vsock after a while.
fn root_disk(harness: &Harness) -> PathBuf {
    let root = harness.dir.path().join("root");
    for name in ["bin", "sbin", "dev", "proc", "sys", "etc", "lib"] {
        fs::create_dir_all(root.join(name)).expect("created");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copied");
    for name in [
        "sh", "cat", "mount", "insmod", "sleep", "ls", "echo", "touch",
    ] {
        symlink("busybox", root.join("bin").join(name)).expect("linked");
    }
    let init = "#!/bin/sh\necho REAL INIT $0 $*\nsleep 1\nfor module in /lib/modules/*; do insmod $module; done\n\
        while :; do sleep 60; done\n";
    let mut file = fs::File::create(root.join("sbin/init")).expect("created");
    file.write_all(init.as_bytes()).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    file.set_permissions(mode).expect("set");
    drop(file);
    modules(&root.join("lib/modules"), &VSOCK);
    let disk = harness.dir.path().join("root.img");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", "system", "-d"])
        .args([&root, &disk])
        .arg("24M")
        .stdout(Stdio::null())
        .status();
    assert!(made.expect("mke2fs").success());
    disk
}

#[test]
fn without_an_init_in_the_initrd_the_root_file_system_is_booted_and_a_missing_one_is_named() {
    with_agent(|harness| {
        let disk = root_disk(&harness);
        let drivers = harness.dir.path().join("drivers");
        modules(&drivers.join("modules"), &DISK);
        let initrd = harness.dir.path().join("drivers.cpio");
        archive(&drivers, &initrd);
        let (initrd, before) = (initrd.display().to_string(), stamp(&disk));
        for (cmdline, rights) in [
            ("panic=-1", "rw"),
            ("root=LABEL=system ro -- argument", "ro"),
        ] {
            let lines = format!(
                "agent: inject\nimage: {}\ncmdline: {cmdline}",
                disk.display()
            );
            harness.apply(&manifest(&kernel(), Some(&initrd), 128, &lines));
            answers(&harness);
            let mounts = runs(&harness, &["cat", "/proc/mounts"]);
            let root = mounts.lines().find(|line| line.contains(" / ext4 "));
            let root = root.unwrap_or_else(|| panic!("{mounts}"));
            assert!(root.contains(&format!(" {rights},")), "{root}");
            assert_eq!(
                runs(&harness, &["ls", "/lib/modules"]).lines().count(),
                VSOCK.len()
            );
            assert!(!runs(&harness, &["ls", "-a", "/"]).contains(".slice"));
        }
        wait_for_output(&harness, VM, "REAL INIT /sbin/init argument", 1);
        assert_eq!(stamp(&disk), before, "the image is not changed");
        let lines = format!(
            "agent: inject\nrestart: never\nimage: {}\ncmdline: root=/dev/vdx",
            disk.display()
        );
        let file = harness.write("m.yaml", &manifest(&kernel(), Some(&initrd), 128, &lines));
        harness.ctl(&format!("apply -f {file}"));
        let message = "slice-agent: root device /dev/vdx not found within 10 s: found vda";
        wait_for_output(&harness, VM, message, 1);
    });
}

/// The files that `examples/debian/build.sh` builds.
fn debian(name: &str) -> PathBuf {
    let path = guest_dir().join("debian").join(name);
    assert!(
        path.exists(),
        "there is no {0}: make it with `examples/debian/build.sh {1}/debian {1}/slice-agent`",
        path.display(),
        guest_dir().display()
    );
    path
}

/// One Debian with this disk.
fn boot_debian(harness: &Harness, disk: &str, agent: &str) {
    let lines = format!(
        "image: {}\nagent: {agent}\ngraceful_shutdown: 60s",
        debian(disk).display()
    );
    let (kernel, initrd) = (debian("vmlinuz"), debian("initrd"));
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    harness.apply(&manifest(&kernel, Some(&initrd), 384, &lines));
    answers(harness);
    let release = runs(harness, &["cat", "/etc/os-release"]);
    assert!(release.contains("VERSION_CODENAME=bookworm"), "{release}");
    let words = ["vm", "exec", VM, "--", "bash", "-c", "whoami; pwd"];
    assert_eq!(succeeds(harness, &words), "ubuntu\n/home/ubuntu\n");
}

/// What systemd says when the boot has ended. An agent that was injected answers before systemd does.
fn system_state(harness: &Harness) -> String {
    let begin = Instant::now();
    loop {
        let output = exec(harness, &["systemctl", "is-system-running", "--wait"]);
        let state = text(&output.stdout).trim().to_owned();
        match state.as_str() {
            "running" => return state,
            "" if begin.elapsed() < BOOT => std::thread::sleep(Duration::from_secs(1)),
            _ => {
                let failed = exec(harness, &["systemctl", "--failed"]);
                return format!("{state} {output:?}: {}", text(&failed.stdout));
            }
        }
    }
}

#[test]
fn a_debian_without_the_agent_has_it_after_its_initrd_was_left() {
    with_agent(|harness| {
        let disk = debian("disk.img");
        let before = stamp(&disk);
        boot_debian(&harness, "disk.img", "inject");
        assert_eq!(system_state(&harness), "running");
        assert!(
            !exec(&harness, &["test", "-e", "/usr/local/bin/slice-agent"])
                .status
                .success()
        );
        assert_eq!(runs(&harness, &["cat", "/proc/1/comm"]), "systemd\n");
        // In the root directory of systemd, and not in a session of the initrd.
        let root = runs(
            &harness,
            &["stat", "-L", "-c", "%d:%i", "/", "/proc/1/root"],
        );
        let roots: Vec<&str> = root.lines().collect();
        assert_eq!(roots[0], roots[1]);
        assert_eq!(stamp(&disk), before, "the image is not changed");
        // It ends with the guest, and does not delay that.
        let begin = Instant::now();
        harness.ctl(&format!("vm stop {VM} --wait=90s"));
        let log = text(&harness.try_ctl(&format!("logs {VM}")).stdout);
        assert!(log.contains("Power down"), "{log}");
        eprintln!("stopped in {:?}", begin.elapsed());
    });
}

#[test]
fn a_debian_with_the_agent_as_a_unit_serves_and_restarts_it() {
    with_agent(|harness| {
        boot_debian(&harness, "disk-agent.img", "baked");
        assert_eq!(system_state(&harness), "running");
        let vm = harness.get(&format!("vm {VM}"));
        let ip = vm["status"]["network"]["ip"].as_str().expect("an address");
        // The system runs before networkd has configured the link.
        harness.until("the address of the kernel command line", || {
            let words = ["ip", "-4", "-o", "address", "show", "dev", "eth0"];
            let addresses = runs(&harness, &words);
            addresses.contains(&format!("inet {ip}/30 ")).then_some(())
        });
        let unit = runs(&harness, &["systemctl", "is-active", "slice-agent"]);
        assert_eq!(unit, "active\n");
        let words = ["vm", "bg", "start", VM, "--uid", "0", "--", "sleep", "600"];
        succeeds(&harness, &words);
        let _ = exec(
            &harness,
            &[
                "systemctl",
                "kill",
                "--kill-who=main",
                "-s",
                "KILL",
                "slice-agent",
            ],
        );
        harness.until("the agent again", || {
            let found = exec(&harness, &["pidof", "sleep"]);
            found.status.success().then_some(())
        });
    });
}
