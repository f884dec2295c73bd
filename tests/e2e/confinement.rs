//! What a VMM may do on the host: nothing but run its VM. Read off `/proc` of real ones, and tried in their place.
//! Out of scope: what a guest's packets may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::guests::{guest_dir, kernel, pids, wait_for_output};
use test_support::harness::{self, Harness, signal, with_daemon};
use test_support::kernel::run;

/// Of `sliced` without `--vmm-ids`.
const IDS: std::ops::RangeInclusive<u32> = 2_013_265_920..=2_080_374_783;

#[test]
fn a_vmm_has_a_user_of_its_own_no_capabilities_and_sees_next_to_nothing_of_the_host() {
    with_daemon(|harness| {
        let vmms = two_vmms(&harness);
        let users: BTreeSet<u32> = vmms.iter().map(|vmm| vmm.user).collect();
        assert_eq!(users.len(), 2, "no two have one");
        for (vmm, other) in [(&vmms[0], &vmms[1]), (&vmms[1], &vmms[0])] {
            assert!(IDS.contains(&vmm.user), "{}", vmm.user);
            credentials(vmm);
            limits(vmm);
            namespaces(vmm, other);
            mounts(vmm, &harness);
            descriptors(vmm);
            files(vmm);
            trials_within(vmm, other, &harness);
            trials_without(vmm, other, &harness);
        }
    });
}

#[test]
fn a_vmm_keeps_its_user_through_every_death_and_gives_it_back_with_its_vm() {
    with_daemon(|mut harness| {
        let before = two_vmms(&harness);
        let seen =
            |vmms: &[Vmm]| -> Vec<(u32, u32)> { vmms.iter().map(|v| (v.pid, v.user)).collect() };
        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        assert_eq!(seen(&vmms(&harness)), seen(&before), "a restart");

        harness.kill();
        fs::remove_dir_all(harness.state()).unwrap();
        fs::create_dir(harness.state()).unwrap();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        assert_eq!(seen(&vmms(&harness)), seen(&before), "a state that is lost");

        signal(before[0].pid, rustix::process::Signal::KILL);
        let again = harness.until("the first VM runs again", || {
            let now = vmms(&harness);
            (now.len() == 2 && now[0].pid != before[0].pid).then_some(now)
        });
        assert_eq!(again[0].user, before[0].user, "its own death");
        assert_eq!(seen(&again[1..]), seen(&before[1..]));

        fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.until("nothing is left", || {
            pids(&harness).is_empty().then_some(())
        });
        harness.until("no directory is left", || {
            let left = fs::read_dir(harness.run.join("vm")).unwrap().count();
            (left == 0).then_some(())
        });
    });
}

#[test]
fn what_a_vmm_puts_in_its_directory_is_neither_followed_nor_in_the_way() {
    with_daemon(|harness| {
        let vmm = &two_vmms(&harness)[0];
        let secret = harness.write("secret", "the host's own words\n");
        signal(vmm.pid, rustix::process::Signal::STOP);
        let console = vmm.dir.join("console.log");
        as_its_user(
            vmm,
            &format!("rm {0}; ln -s {secret} {0}", console.display()),
        );
        as_its_user(vmm, &format!("mkdir -p {}/deep/er", vmm.dir.display()));
        let reported = harness.try_ctl("logs sandbox-1");
        let reported = String::from_utf8_lossy(&reported.stdout).into_owned();
        assert!(!reported.contains("the host's own words"), "{reported}");
        signal(vmm.pid, rustix::process::Signal::KILL);
        harness.until("it runs again, with a log of its own", || {
            fs::symlink_metadata(&console).ok()?.is_file().then_some(())
        });
        assert_eq!(
            fs::read_to_string(&secret).unwrap(),
            "the host's own words\n"
        );
        assert_eq!(fs::metadata(&secret).unwrap().uid(), 0);
        fs::remove_file(harness.conf().join("sandbox.yaml")).unwrap();
        harness.until("nothing is left, whatever it has made", || {
            let left = fs::read_dir(harness.run.join("vm")).unwrap().count();
            (left == 0).then_some(())
        });
    });
}

struct Vmm {
    pid: u32,
    user: u32,
    dir: PathBuf,
    netns: PathBuf,
    tap: String,
}

fn two_vmms(harness: &Harness) -> Vec<Vmm> {
    let initrd = guest_dir().join("initrd");
    let text = harness::slots(2, "").replace(
        "hypervisor: none",
        &format!(
            "hypervisor: qemu\n      kernel_file: {}\n      initrd_file: {}",
            kernel(),
            initrd.display()
        ),
    );
    harness.save("sandbox.yaml", &text);
    harness.ctl("wait hg/sandbox --for ready --timeout 60s");
    for vm in ["sandbox-1", "sandbox-2"] {
        wait_for_output(harness, vm, &format!("GUEST {vm} ready"), 1);
    }
    vmms(harness)
}

fn vmms(harness: &Harness) -> Vec<Vmm> {
    let list = harness.get("vms");
    let items = list["items"].as_array().unwrap().iter();
    let vmm = |vm: &serde_json::Value| {
        let (vmm, network) = (&vm["status"]["vmm"], &vm["status"]["network"]);
        Some(Vmm {
            pid: u32::try_from(vmm["pid"].as_u64()?).ok()?,
            user: u32::try_from(vmm["user"].as_u64()?).ok()?,
            dir: Path::new(vmm["log"].as_str()?).parent()?.to_owned(),
            netns: network["netns"].as_str()?.into(),
            tap: network["tap"].as_str()?.to_owned(),
        })
    };
    items.filter_map(vmm).collect()
}

fn proc(vmm: &Vmm, name: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{name}", vmm.pid)).unwrap()
}

fn credentials(vmm: &Vmm) {
    let tasks = fs::read_dir(format!("/proc/{}/task", vmm.pid)).unwrap();
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let fields: BTreeMap<&str, Vec<&str>> = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.split_whitespace().collect()))
            .collect();
        // A worker of the kernel's is listed among the threads of a VMM that uses KVM, and has no user.
        if fields.get("Kthread").is_some_and(|value| value == &["1"]) {
            continue;
        }
        let four = vec![vmm.user.to_string(); 4];
        assert_eq!(fields["Uid"], four);
        assert_eq!(fields["Gid"], four);
        assert_eq!(fields["Groups"], Vec::<&str>::new());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(fields[set], ["0000000000000000"], "{set}");
        }
        assert_eq!(fields["NoNewPrivs"], ["1"]);
        assert_eq!(fields["Seccomp"], ["2"], "QEMU's own sandbox");
        assert_eq!(fields["Umask"], ["0077"]);
    }
    let stat = proc(vmm, "stat");
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3);
    assert_eq!(session, Some(vmm.pid.to_string().as_str()));
}

fn limits(vmm: &Vmm) {
    let text = proc(vmm, "limits");
    for (name, limit) in [
        ("Max open files", "4096"),
        ("Max processes", "1024"),
        ("Max locked memory", "8388608"),
        ("Max core file size", "0"),
        ("Max file size", "2097152"),
    ] {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<&str> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, [limit, limit], "{name}, soft and hard");
    }
}

fn namespace(process: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap()
}

fn namespaces(vmm: &Vmm, other: &Vmm) {
    let (pid, its) = (vmm.pid.to_string(), other.pid.to_string());
    for kind in ["net", "mnt"] {
        assert_ne!(
            namespace(&pid, kind),
            namespace("thread-self", kind),
            "{kind}"
        );
        assert_ne!(namespace(&pid, kind), namespace(&its, kind), "{kind}");
    }
    let desired = fs::metadata(&vmm.netns).unwrap().ino();
    let found = fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
    assert_eq!(found, desired, "the VM's own namespace");
}

/// Nothing of the host's is mounted but programs and what the VM boots, all of it read-only; one directory can be written.
fn mounts(vmm: &Vmm, harness: &Harness) {
    let text = proc(vmm, "mountinfo");
    let mut writable = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (at, options) = (fields[4], fields[5]);
        let kind = line.split(" - ").nth(1).unwrap().split(' ').next().unwrap();
        assert_ne!(kind, "nsfs", "no namespace is kept alive: {line}");
        assert!(
            options.split(',').any(|option| option == "nosuid"),
            "{line}"
        );
        assert!(
            !at.starts_with(harness.dir.path().to_str().unwrap()),
            "{line}"
        );
        if !options.split(',').any(|option| option == "ro") && kind != "proc" {
            writable.push(at);
        }
    }
    assert_eq!(writable, [vmm.dir.to_str().unwrap()], "{text}");
}

fn descriptors(vmm: &Vmm) {
    let console = vmm.dir.join("console.log");
    let keys = vmm.dir.with_file_name("console.in");
    let mut taps = 0;
    for entry in fs::read_dir(format!("/proc/{}/fd", vmm.pid)).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let text = target.to_str().unwrap().to_owned();
        taps += usize::from(text == "/dev/net/tun");
        let harmless = ["socket:", "anon_inode:", "pipe:", "/memfd:"];
        let device = ["/dev/null", "/dev/net/tun", "/dev/kvm", "/dev/urandom"];
        assert!(
            harmless.iter().any(|start| text.starts_with(start))
                || device.contains(&text.as_str())
                || [&console, &keys].contains(&&target),
            "{text}"
        );
    }
    assert_eq!(taps, 1);
}

fn files(vmm: &Vmm) {
    let dir = fs::metadata(&vmm.dir).unwrap();
    assert_eq!((dir.uid(), dir.gid()), (vmm.user, vmm.user));
    assert_eq!(dir.permissions().mode() & 0o7777, 0o700);
    let above = vmm.dir.parent().unwrap();
    assert_eq!(fs::metadata(above).unwrap().uid(), 0);
    for record in ["record.json", "process"] {
        let found = fs::symlink_metadata(above.join(record)).unwrap();
        assert_eq!(found.uid(), 0, "{record}");
        assert_eq!(found.permissions().mode() & 0o777, 0o600, "{record}");
    }
    let owner = format!("/sys/class/net/{}/owner", vmm.tap);
    let owner = run(&format!(
        "nsenter --target {} --mount --net cat {owner}",
        vmm.pid
    ));
    assert_eq!(
        owner.trim(),
        vmm.user.to_string(),
        "the TAP's, by a fresh /sys"
    );
}

/// As the user and in the namespaces of the VMM, which is what somebody would have who broke out of a guest.
fn trials_within(vmm: &Vmm, other: &Vmm, harness: &Harness) {
    let inside = |words: &str| {
        let target = vmm.pid.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--mount", "--net"]);
        unprivileged(&mut command, vmm.user, words)
    };
    let (own, its) = (vmm.dir.display(), other.dir.display());
    assert!(inside(&format!("touch {own}/made && rm {own}/made")));
    let socket = harness.run.join("sliced.sock");
    for gone in [
        its.to_string(),
        socket.display().to_string(),
        harness.state().display().to_string(),
        "/etc/passwd".into(),
        "/root".into(),
        format!("/proc/{}", other.pid),
        "/proc/1".into(),
    ] {
        assert!(inside(&format!("test ! -e {gone}")), "{gone} is seen");
    }
    for place in ["/x", "/usr/x", "/dev/x", "/etc/x", "/sys/x", "/proc/x"] {
        assert!(!inside(&format!("touch {place}")), "{place} can be written");
    }
    assert!(
        !inside("ip link set tap0 down"),
        "the network is not its own"
    );
    assert!(inside(
        "test $(ls /sys/class/net | grep -c -x -e lo -e tap0 -e up0) = 3"
    ));
    let devices = "find /dev -type c -o -type b | sort | tr '\\n' ' '";
    let desired = "/dev/net/tun /dev/null /dev/random /dev/urandom /dev/zero ";
    let kvm = proc(vmm, "cmdline").contains("accel\0kvm");
    let found = format!(
        "test \"$({devices} | sed 's|/dev/kvm ||')\" = '{}'",
        desired
    );
    // The shell takes newlines off an answer, not blanks.
    assert!(inside(&found));
    assert_eq!(
        inside("test -e /dev/kvm"),
        kvm && Path::new("/dev/kvm").exists()
    );
}

/// As the user of the VMM, were it to come out of its file system.
fn trials_without(vmm: &Vmm, other: &Vmm, harness: &Harness) {
    let outside = |words: &str| unprivileged(&mut Command::new("env"), vmm.user, words);
    assert!(outside("true"));
    for closed in [
        format!("ls {}", vmm.dir.display()),
        format!("ls {}", other.dir.display()),
        format!("cat {}/console.log", other.dir.display()),
        format!("cat {}/process", vmm.dir.parent().unwrap().display()),
        format!("touch {}/x", vmm.dir.parent().unwrap().display()),
        format!("test -w {}", harness.run.join("sliced.sock").display()),
        format!("kill -0 {}", other.pid),
    ] {
        assert!(!outside(&closed), "{closed}");
    }
}

/// In its own file system: from outside the way to its directory is closed to it.
fn as_its_user(vmm: &Vmm, words: &str) {
    let mut command = Command::new("nsenter");
    command.args(["--target", &vmm.pid.to_string(), "--mount"]);
    assert!(unprivileged(&mut command, vmm.user, words), "{words}");
}

fn unprivileged(command: &mut Command, user: u32, words: &str) -> bool {
    let user = user.to_string();
    command
        .args([
            "setpriv",
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
        ])
        .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
        .args(["sh", "-c", words])
        .output()
        .unwrap()
        .status
        .success()
}
