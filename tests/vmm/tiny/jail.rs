//! Firecracker's jailer, under the real `sliced`: which VMMs it confines, how, and what holds their disks then.
//! Out of scope: a jailed VMM's life (`tests/vmm/real.rs`), deaths of the daemon at every step (`tests/kernel/crash`).
//!
//! Both are doubles unless `SLICE_TEST_FIRECRACKER` and `SLICE_TEST_JAILER` name the real ones.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use serde_json::Value;

use test_support::harness::{self, Harness, empty, signal, with_daemon};
use test_support::tiny;
use test_support::vmm;

/// Firecracker and its jailer, as they are installed: links in a directory of `PATH`.
struct Installed {
    dir: tempfile::TempDir,
    jailer: PathBuf,
}

impl Installed {
    /// Without the jailer.
    fn before(harness: &mut Harness) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (firecracker, jailer) = vmm::jailed_program(dir.path());
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(firecracker, bin.join("firecracker")).unwrap();
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", bin.display());
        harness.env.push(("PATH", path));
        harness.start();
        Self { dir, jailer }
    }

    fn add_jailer(&self) {
        symlink(&self.jailer, self.dir.path().join("bin/jailer")).unwrap();
    }

    fn remove_jailer(&self) {
        fs::remove_file(self.dir.path().join("bin/jailer")).unwrap();
    }

    /// One VM with a disk of its own.
    fn one_vm(&self, harness: &Harness, rest: &str) {
        let image = self.dir.path().join("root.img");
        fs::write(&image, vec![0; 4 << 20]).unwrap();
        apply(
            harness,
            1,
            &format!("\n      image: {}{rest}", image.display()),
        );
    }
}

fn apply(harness: &Harness, count: u32, rest: &str) {
    let words = format!("hypervisor: firecracker{rest}");
    let guests = tiny::guests(&harness::slots(count, ""), "");
    let file = harness.write("manifest.yaml", &guests.replace("hypervisor: qemu", &words));
    harness.ctl(&format!("apply -f {file}"));
}

fn is_up(harness: &Harness, times: usize) -> u32 {
    harness.until("the guest", || {
        let guests = tiny::all(harness);
        let guest = &guests["sandbox-1"];
        (guest.times_ready() >= times)
            .then_some(guest.pid)
            .flatten()
    })
}

fn status(harness: &Harness) -> Value {
    harness.get("vm/sandbox-1")["status"].clone()
}

fn confined_by(harness: &Harness) -> String {
    let by = &status(harness)["vmm"]["confined_by"];
    by.as_str().unwrap_or_default().to_owned()
}

/// `jailer 1.17`.
fn by_the_jailer(harness: &Harness) -> bool {
    let by = confined_by(harness);
    by.strip_prefix("jailer ")
        .is_some_and(|version| version.starts_with("1."))
}

fn disk(harness: &Harness) -> PathBuf {
    harness.state().join("disks/sandbox-1.img")
}

/// Whether somebody keeps the lock by which a VMM holds its disk.
fn is_held(disk: &Path) -> bool {
    let file = File::open(disk).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

#[test]
fn a_jailer_that_comes_or_goes_restarts_no_vm_and_the_next_start_goes_by_what_is_there() {
    empty(|mut harness| {
        let installed = Installed::before(&mut harness);
        installed.one_vm(&harness, "");
        let first = is_up(&harness, 1);
        assert_eq!(confined_by(&harness), "sliced");
        installed.add_jailer();
        harness.kill();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        assert_eq!(is_up(&harness, 1), first, "it runs on as it was started");
        assert_eq!(confined_by(&harness), "sliced");

        signal(first, Signal::KILL);
        let second = is_up(&harness, 2);
        assert!(by_the_jailer(&harness), "{}", confined_by(&harness));
        let words = harness.ctl("describe vm/sandbox-1");
        assert!(
            words.contains("Confined by") && words.contains("jailer 1."),
            "{words}"
        );
        installed.remove_jailer();
        harness.kill();
        assert!(
            is_held(&disk(&harness)),
            "nobody but the VMM is left to hold it"
        );
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        assert_eq!(is_up(&harness, 2), second, "it runs on as it was started");
        assert!(by_the_jailer(&harness));

        // What is known of it is lost, but for what it is.
        harness.kill();
        fs::remove_dir_all(harness.state().join("store")).ok();
        harness.start();
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        assert_eq!(is_up(&harness, 2), second);

        harness.kill();
        signal(second, Signal::KILL);
        harness.until("its disk to be free", || {
            (!is_held(&disk(&harness))).then_some(())
        });
        harness.start();
        is_up(&harness, 3);
        assert_eq!(confined_by(&harness), "sliced");
        harness.ctl("delete hg sandbox --wait=60s");
        assert!(!disk(&harness).exists());
    });
}

#[test]
fn a_jailer_that_cannot_be_used_is_reported_where_it_was_named_and_passed_over_where_it_is_only_there()
 {
    empty(|mut harness| {
        let mut installed = Installed::before(&mut harness);
        let usable = installed.jailer.clone();
        installed.jailer = installed.dir.path().join("jailer-1.9");
        fs::write(&installed.jailer, "#!/bin/sh\necho Jailer v1.9.0\n").unwrap();
        fs::set_permissions(&installed.jailer, fs::Permissions::from_mode(0o755)).unwrap();
        installed.add_jailer();
        installed.one_vm(&harness, "");
        is_up(&harness, 1);
        let by = confined_by(&harness);
        assert!(
            by.starts_with("sliced, not the jailer: ") && by.contains("1.9"),
            "{by}"
        );

        harness.ctl("delete hg sandbox --wait=60s");
        let named = |path: &Path| format!("\n      jailer_bin: {}", path.display());
        installed.one_vm(&harness, &named(&installed.jailer));
        let reported = harness.until("a condition", || {
            let status = status(&harness);
            let conditions = status["conditions"].as_array()?.clone();
            let mut messages = conditions.iter().filter_map(|c| c["message"].as_str());
            messages
                .find(|m| m.contains("both must be of the same release"))
                .map(str::to_owned)
        });
        assert!(reported.contains("jailer-1.9"), "{reported}");
        installed.one_vm(&harness, &named(&usable));
        harness.until("the jailer", || by_the_jailer(&harness).then_some(()));
        harness.ctl("delete hg sandbox --wait=60s");
    });
}

#[test]
fn what_a_jailer_has_jailed_is_confined_as_every_vmm_is_and_sees_less() {
    with_daemon(|harness| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (firecracker, jailer) = vmm::jailed_program(dir.path());
        let (f, j) = (firecracker.display(), jailer.display());
        apply(
            &harness,
            2,
            &format!("\n      firecracker_bin: {f}\n      jailer_bin: {j}"),
        );
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        let vms = harness.get("vms");
        let vms = vms["items"].as_array().unwrap().clone();
        let pids: Vec<u64> = vms
            .iter()
            .map(|vm| vm["status"]["vmm"]["pid"].as_u64().unwrap())
            .collect();
        for (vm, other) in [(&vms[0], pids[1]), (&vms[1], pids[0])] {
            let jailed = Jailed::of(vm);
            jailed.credentials();
            jailed.limits();
            jailed.namespaces(other);
            jailed.sees_nothing_else(&firecracker);
            jailed.descriptors();
        }
        harness.ctl("delete hg sandbox --wait=60s");
    });
}

struct Jailed {
    pid: u64,
    user: u64,
    dir: PathBuf,
    netns: PathBuf,
}

impl Jailed {
    fn of(vm: &Value) -> Self {
        let (vmm, network) = (&vm["status"]["vmm"], &vm["status"]["network"]);
        Self {
            pid: vmm["pid"].as_u64().unwrap(),
            user: vmm["user"].as_u64().unwrap(),
            dir: Path::new(vmm["log"].as_str().unwrap())
                .parent()
                .unwrap()
                .to_owned(),
            netns: network["netns"].as_str().unwrap().into(),
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap()
    }

    fn credentials(&self) {
        for task in fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("no {name}"))
                    .trim()
                    .to_owned()
            };
            // A worker of the kernel's is listed among the threads of a VMM that uses KVM, and has no user.
            if status.contains("Kthread:\t1") {
                continue;
            }
            let four = vec![self.user.to_string(); 4].join("\t");
            assert_eq!((field("Uid:"), field("Gid:")), (four.clone(), four));
            assert_eq!(field("Groups:"), "");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            // What the jailer itself needed: it does not empty this set, and without new privileges it is of no use.
            assert_eq!(field("CapBnd:"), "00000000082000c3");
            assert_eq!(field("NoNewPrivs:"), "1");
            assert_eq!(field("Umask:"), "0077");
            let blocked = u64::from_str_radix(&field("SigBlk:"), 16).unwrap();
            assert_ne!(
                blocked & 1 << (libc::SIGXFSZ - 1),
                0,
                "a full log is no reason to end"
            );
            if std::env::var_os("SLICE_TEST_JAILER").is_some() {
                assert_eq!(field("Seccomp:"), "2");
            }
        }
        let stat = self.read("stat");
        let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3);
        assert_eq!(session, Some(self.pid.to_string().as_str()));
        let environ = fs::read(format!("/proc/{}/environ", self.pid)).unwrap();
        assert!(
            environ.iter().all(|byte| *byte == 0),
            "a jailer leaves nothing there"
        );
    }

    fn limits(&self) {
        let text = self.read("limits");
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
        assert_eq!(self.read("oom_score_adj").trim(), "0");
    }

    fn namespaces(&self, other: u64) {
        let link = |process: &str, kind: &str| {
            fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap()
        };
        let (own, its) = (self.pid.to_string(), other.to_string());
        for kind in ["net", "mnt"] {
            assert_ne!(link(&own, kind), link("thread-self", kind), "{kind}");
            assert_ne!(link(&own, kind), link(&its, kind), "{kind}");
        }
        assert_eq!(
            link(&own, "pid"),
            link("thread-self", "pid"),
            "its pid is the one on record"
        );
        let desired = fs::metadata(&self.netns).unwrap().ino();
        let found = fs::metadata(format!("/proc/{own}/ns/net")).unwrap().ino();
        assert_eq!(found, desired, "the VM's own namespace");
    }

    /// Its root, its copy of the program, its run directory, what it boots; and what a double needs to run at all.
    fn sees_nothing_else(&self, firecracker: &Path) {
        let text = self.read("mountinfo");
        let mut found = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (at, options) = (fields[4], fields[5]);
            let has = |option: &str| options.split(',').any(|one| one == option);
            assert!(has("nosuid"), "{line}");
            if ["/usr", "/lib", "/lib64", "/double"].contains(&at) {
                let double = std::env::var_os("SLICE_TEST_JAILER").is_none();
                assert!(double && has("ro"), "{line}");
                continue;
            }
            found.push((at.to_owned(), has("ro"), has("noexec")));
        }
        let name = firecracker.file_name().unwrap().to_str().unwrap();
        let desired = [
            ("/".to_owned(), false, true),
            ("/vmm".to_owned(), false, true),
            (tiny::kernel().to_owned(), true, true),
            (format!("/{name}"), false, false),
        ];
        assert_eq!(found, desired, "{text}");
        let root = PathBuf::from(format!("/proc/{}/root", self.pid));
        for gone in [
            "proc/self",
            "sys/class",
            "etc",
            "root",
            "old_root",
            "dev/userfaultfd",
        ] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        let mut devices = Vec::new();
        for dir in ["dev", "dev/net"] {
            for entry in fs::read_dir(root.join(dir)).unwrap() {
                let found = entry.unwrap();
                let about = found.metadata().unwrap();
                assert_eq!(u64::from(about.uid()), self.user, "{found:?}");
                if !about.is_dir() {
                    assert_eq!(about.permissions().mode() & 0o777, 0o600, "{found:?}");
                    devices.push(found.file_name().into_string().unwrap());
                }
            }
        }
        devices.sort();
        assert_eq!(devices, ["kvm", "tun", "urandom"]);
        let dir = fs::metadata(&self.dir).unwrap();
        assert_eq!(
            (u64::from(dir.uid()), dir.mode() & 0o7777),
            (self.user, 0o700)
        );
    }

    fn descriptors(&self) {
        let fd = |number: u32| fs::read_link(format!("/proc/{}/fd/{number}", self.pid)).unwrap();
        assert_eq!(fd(0), self.dir.with_file_name("console.in"));
        assert!(fd(1).ends_with("console.log"), "{:?}", fd(1));
        assert!(
            fd(2).to_string_lossy().starts_with("socket:"),
            "{:?}",
            fd(2)
        );
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap() {
            let target = fs::read_link(entry.unwrap().path()).unwrap();
            let text = target.to_str().unwrap();
            let harmless = [
                "socket:",
                "anon_inode:",
                "pipe:",
                "/memfd:",
                "/dev/",
                "/vmm/",
            ];
            assert!(
                harmless.iter().any(|start| text.starts_with(start))
                    || text.ends_with("console.log")
                    || text.ends_with("console.in"),
                "{text}"
            );
        }
    }
}
