//! Members of the socket's group who name files: nothing of the host is read or executed for them, and nothing is changed.
//! Out of scope: which files are accepted, one by one (`tests/vmm/named.rs`).

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::inotify;
use serde_json::Value;

use test_support::harness::{Harness, empty, signal, with_daemon};
use test_support::tiny;

/// Who is in the socket's group, and nothing else.
const MEMBER: u32 = 23_456;
const GROUP: u32 = 34_567;

const PROGRAMS: [(&str, &str); 4] = [
    ("qemu", "qemu_bin"),
    ("firecracker", "firecracker_bin"),
    ("cloud-hypervisor", "cloud_hypervisor_bin"),
    ("firecracker", "jailer_bin"),
];
const IMAGES: [&str; 5] = [
    "kernel_file",
    "initrd_file",
    "image",
    "disks-ro",
    "disks-rw",
];

/// `slicectl` of a member: whether it succeeded, and all that it said.
fn member(harness: &Harness, words: &str, input: &str) -> (bool, String) {
    let mut ctl = Command::new(env!("CARGO_BIN_EXE_slicectl"));
    let mut child = ctl
        .args(words.split_whitespace())
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .current_dir("/")
        .uid(MEMBER)
        .gid(GROUP)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// One group with this field; its `hypervisor` has all else that it needs.
fn manifest(name: &str, hypervisor: &str, field: &str, path: &str) -> String {
    let path = serde_json::to_string(path).unwrap();
    let kernel = match field {
        "kernel_file" => String::new(),
        _ => format!("kernel_file: {}, ", tiny::kernel()),
    };
    let field = match field {
        "disks-ro" => format!("disks: [{{path: {path}}}]"),
        "disks-rw" => format!("disks: [{{path: {path}, read_only: false}}]"),
        field => format!("{field}: {path}"),
    };
    format!(
        "{{name: {name}, count: 1, vcpu: 1, ram_mb: 32, hypervisor: {hypervisor}, {kernel}{field}, network: {{mode: isolated}}}}"
    )
}

fn document(groups: &[String]) -> String {
    let groups: String = groups
        .iter()
        .map(|group| format!("    - {group}\n"))
        .collect();
    format!("config:\n  host_groups:\n{groups}")
}

/// Files that nobody may open, read, write, or change.
struct Watched {
    inotify: OwnedFd,
    all: Vec<(PathBuf, (u32, u32, u32, i64))>,
}

impl Watched {
    fn new(paths: &[PathBuf]) -> Self {
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let all = paths.iter().map(|path| {
            use inotify::WatchFlags as Flags;
            let flags = Flags::OPEN | Flags::ACCESS | Flags::MODIFY | Flags::ATTRIB;
            inotify::add_watch(&inotify, path, flags).unwrap();
            (path.clone(), state(path))
        });
        let all = all.collect();
        Self { inotify, all }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let event = reader.next().map(|event| format!("{event:?}"));
        assert!(event.is_err(), "{event:?}");
        for (path, before) in &self.all {
            assert_eq!(state(path), *before, "{}", path.display());
        }
    }
}

fn state(path: &Path) -> (u32, u32, u32, i64) {
    let found = fs::metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode(), found.mtime())
}

struct Traps {
    /// A script that tells as whom it was run, by a file in a directory that everybody can write.
    script: PathBuf,
    ran: PathBuf,
    secret: PathBuf,
    owned: PathBuf,
}

/// In a directory of the member's, and in root's.
fn traps(harness: &Harness) -> Traps {
    let open = tempfile::tempdir().unwrap().keep();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let (script, ran) = (open.join("x.sh"), open.join("ran"));
    let text = format!(
        "#!/bin/sh\nid -u >> {}\necho QEMU emulator version 9.9.9\necho Firecracker v1.16.0\n",
        ran.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    chown(&script, Some(MEMBER), Some(GROUP)).unwrap();
    let root = tempfile::tempdir().unwrap().keep();
    let secret = root.join("secret");
    fs::write(&secret, "the secret of root\n".repeat(1000)).unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let owned = harness.dir.path().join("member");
    fs::create_dir(&owned).unwrap();
    chown(&owned, Some(MEMBER), Some(GROUP)).unwrap();
    Traps {
        script,
        ran,
        secret,
        owned,
    }
}

fn with_a_member(test: impl FnOnce(Harness) + Send) {
    empty(|mut harness| {
        harness.args.push(format!("--socket-group={GROUP}"));
        harness.start();
        test(harness);
    });
}

#[test]
fn what_a_member_names_outside_of_the_allowed_directories_is_refused_with_its_place() {
    with_a_member(|harness| {
        let traps = traps(&harness);
        let watched = Watched::new(&[
            traps.script.clone(),
            traps.secret.clone(),
            "/etc/shadow".into(),
        ]);
        let (script, secret) = (traps.script.display(), traps.secret.display());
        let programs = [
            script.to_string(),
            "/proc/self/exe".into(),
            "/proc/1/root/bin/sh".into(),
            "/dev/fd/0".into(),
            "/memfd:x".into(),
            "//host/share/qemu".into(),
            format!(
                "{}/nothing",
                traps.owned.parent().unwrap().parent().unwrap().display()
            ),
        ];
        let images = [
            secret.to_string(),
            "/etc/shadow".into(),
            "/root/.ssh/id_ed25519".into(),
            "/dev/vda".into(),
            "/dev/mem".into(),
            "/dev/kmsg".into(),
            "/proc/kcore".into(),
            "/proc/self/environ".into(),
            "/proc/1/root/etc/shadow".into(),
            "/var/lib/slice/images-2/x".into(),
            "/var/lib/slice/db".into(),
            harness
                .state()
                .join("disks/other-1.img")
                .display()
                .to_string()
                .replace(&harness.dir.path().display().to_string(), "/var/lib/slice"),
        ];
        let mut variants = Vec::new();
        for (hypervisor, field) in PROGRAMS {
            variants.extend(
                programs
                    .iter()
                    .map(|path| (hypervisor, field, "programs", path.clone())),
            );
        }
        for field in IMAGES {
            variants.extend(
                images
                    .iter()
                    .map(|path| ("qemu", field, "images", path.clone())),
            );
        }
        let count = variants.len();
        for (hypervisor, field, setting, path) in variants {
            let text = document(&[manifest("web", hypervisor, field, &path)]);
            for verb in ["diff -f -", "apply -f -"] {
                let (done, said) = member(&harness, verb, &text);
                assert!(!done, "{verb} {field}: {path}: {said}");
                let named = match field {
                    "disks-ro" | "disks-rw" => "disks[0].path",
                    field => field,
                };
                for words in [
                    "3:",
                    &format!("config.host_groups[0].{named}: found {path}, expected"),
                    &format!("`{setting}`"),
                ] {
                    assert!(said.contains(words), "{verb} {field}: {path}: {said}");
                }
            }
        }
        // Not straight, or with what starts a new line or option: refused by the words alone.
        for path in [
            "/usr/bin/../../tmp/x.sh",
            "/usr/bin/x\\ny",
            "relative",
            "/usr/bin/",
            "/a\\0b",
            "/usr/bin/x\\u001b[2J",
        ] {
            for field in ["qemu_bin", "kernel_file", "image", "disks-rw"] {
                let path = path
                    .replace("\\n", "\n")
                    .replace("\\0", "\0")
                    .replace("\\u001b", "\u{1b}");
                let text = document(&[manifest("web", "qemu", field, &path)]);
                let (done, said) = member(&harness, "apply -f -", &text);
                assert!(
                    !done && said.contains("expected"),
                    "{field}: {path:?}: {said}"
                );
            }
        }
        eprintln!("{count} variants of outside paths, by diff and by apply");
        assert_eq!(harness.vms(), Vec::<String>::new());
        assert!(!traps.ran.exists(), "somebody ran it");
        watched.assert_untouched();
    });
}

#[test]
fn what_a_member_has_put_into_an_allowed_directory_is_neither_read_nor_executed() {
    with_a_member(|harness| {
        let traps = traps(&harness);
        let own = |name: &str| traps.owned.join(name);
        symlink(&traps.secret, own("link")).unwrap();
        symlink(traps.secret.parent().unwrap(), own("dir")).unwrap();
        symlink(&traps.script, own("program-link")).unwrap();
        fs::hard_link(&traps.secret, own("hard")).unwrap_or_else(|_| {
            fs::write(own("hard"), "x").unwrap();
            fs::hard_link(own("hard"), own("hard-2")).unwrap();
        });
        fs::copy(&traps.script, own("program")).unwrap();
        chown(own("program"), Some(MEMBER), Some(GROUP)).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            own("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .unwrap();
        let watched = Watched::new(&[traps.script.clone(), traps.secret.clone()]);
        // Root's, whose jailer is what is named.
        let firecracker = harness.dir.path().join("firecracker").display().to_string();
        let script = "printf '#!/bin/sh\\necho Firecracker v1.16.0\\n' >\"$0\" && chmod 755 \"$0\"";
        // By another process: what this one holds open for writing, a child of it may hold, too, and then it cannot be run.
        let made = Command::new("sh")
            .args(["-c", script, &firecracker])
            .status();
        assert!(made.unwrap().success());
        let mut groups: Vec<String> = Vec::new();
        let mut add = |hypervisor: &str, field: &str, path: PathBuf| {
            let name = format!("g{}", groups.len());
            let group = manifest(&name, hypervisor, field, path.to_str().unwrap());
            groups.push(match field {
                "jailer_bin" => group.replace(
                    "jailer_bin",
                    &format!("firecracker_bin: {firecracker}, jailer_bin"),
                ),
                _ => group,
            });
        };
        for (hypervisor, field) in PROGRAMS {
            for name in ["program", "program-link", "dir/x.sh"] {
                add(hypervisor, field, own(name));
            }
        }
        for field in IMAGES {
            for name in ["link", "dir/secret", "hard", "fifo"] {
                add("qemu", field, own(name));
            }
        }
        let count = groups.len();
        for (at, group) in groups.iter().enumerate() {
            let (done, said) = member(
                &harness,
                "apply -f -",
                &document(std::slice::from_ref(group)),
            );
            assert!(done, "{said}");
            let vm = format!("g{at}-1");
            let why = harness.until("a reason", || {
                let found = harness.get(&format!("vm {vm}"));
                let conditions = found["status"]["conditions"].as_array()?;
                let reported = |condition: &Value| {
                    let message = condition["message"].as_str()?;
                    let reported = [
                        "expected",
                        "not executable",
                        "cannot open",
                        "does not exist",
                        "not found",
                    ];
                    reported
                        .iter()
                        .any(|words| message.contains(words))
                        .then(|| message.to_owned())
                };
                conditions.iter().find_map(reported)
            });
            assert!(!why.contains("the secret of root"), "{group}: {why}");
            assert!(
                harness.get(&format!("vm {vm}"))["status"]["vmm"]["pid"].is_null(),
                "{group}"
            );
            member(&harness, &format!("delete hostgroup/g{at}"), "");
        }
        eprintln!("{count} variants within an allowed directory");
        assert!(!traps.ran.exists(), "somebody ran it");
        watched.assert_untouched();
    });
}

/// A path that passes is swapped for a link to root's file, again and again, while VMs are made of it.
#[test]
fn a_disk_that_its_owner_swaps_while_vms_start_never_leads_outside() {
    with_a_member(|harness| {
        let traps = traps(&harness);
        let (disk, link) = (traps.owned.join("disk"), traps.owned.join("link"));
        fs::write(&disk, vec![7; 1 << 20]).unwrap();
        chown(&disk, Some(MEMBER), Some(GROUP)).unwrap();
        symlink(&traps.secret, &link).unwrap();
        let watched = Watched::new(std::slice::from_ref(&traps.secret));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    let cwd = rustix::fs::CWD;
                    rustix::fs::renameat_with(cwd, &disk, cwd, &link, flags).unwrap();
                    std::thread::sleep(Duration::from_micros(50));
                }
            });
            for at in 0..12 {
                let name = format!("s{at}");
                let field = ["disks-rw", "disks-ro", "image"][at % 3];
                let text = document(&[manifest(&name, "qemu", field, disk.to_str().unwrap())]);
                member(&harness, "apply -f -", &text);
                std::thread::sleep(Duration::from_millis(250));
                member(&harness, &format!("delete hostgroup/{name}"), "");
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        watched.assert_untouched();
        for entry in fs::read_dir(harness.state().join("disks"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text[..text.len().min(4096)]).into_owned();
            assert!(!text.contains("the secret of root"));
        }
    });
}

#[test]
fn a_vm_whose_files_are_not_allowed_any_more_runs_on_reports_it_and_is_not_started_again() {
    with_daemon(|mut harness| {
        let disk = harness.dir.path().join("disk");
        fs::write(&disk, vec![7; 1 << 20]).unwrap();
        let text = document(&[manifest("web", "qemu", "disks-rw", disk.to_str().unwrap())]);
        harness.apply(&text);
        let pid = || harness.get("vm web-1")["status"]["vmm"]["pid"].as_u64();
        let before = pid();
        assert!(before.is_some());
        harness.stop();
        harness.args.push("--images=/nowhere".to_owned());
        harness.start();
        let message = |words: &str| {
            let found = harness.get("vm web-1");
            let conditions = found["status"]["conditions"].as_array()?;
            let all = conditions.iter().filter_map(|c| c["message"].as_str());
            all.into_iter()
                .find(|m| m.contains(words))
                .map(str::to_owned)
        };
        let why = harness.until("a word of it", || message("is not started again"));
        assert!(why.contains("/nowhere"), "{why}");
        assert_eq!(
            harness.get("vm web-1")["status"]["vmm"]["pid"].as_u64(),
            before
        );
        let path = harness.write("again.yaml", &text.replace("ram_mb: 32", "ram_mb: 64"));
        let said = harness.refused(&format!("apply -f {path}"), 1);
        assert!(
            said.contains("again.yaml:3:") && said.contains("`images`"),
            "{said}"
        );
        assert_eq!(
            harness.get("vm web-1")["status"]["vmm"]["pid"].as_u64(),
            before
        );
        signal(before.unwrap() as u32, rustix::process::Signal::KILL);
        harness.until("it is down, with the reason", || {
            let down = harness.get("vm web-1")["status"]["vmm"]["pid"].is_null();
            message("found").filter(|_| down)
        });
    });
}

/// What the version before this one has left: a disk that belongs to a VMM's user, and a note of that in memory.
#[test]
fn a_disk_that_an_earlier_version_has_given_away_is_its_owners_again() {
    type End = fn(&mut Harness);
    let ways: [(&str, End); 3] = [
        ("a reboot", reboot),
        ("a delete", |harness| {
            drop(harness.ctl("delete hostgroup/web --wait"))
        }),
        ("a start", start_again),
    ];
    for (kind, ends) in ways {
        with_daemon(|mut harness| {
            let disk = harness.dir.path().join("disk");
            fs::write(&disk, vec![7; 1 << 20]).unwrap();
            chown(&disk, Some(4321), Some(1234)).unwrap();
            fs::set_permissions(&disk, Permissions::from_mode(0o640)).unwrap();
            let before = state(&disk);
            let text = document(&[manifest("web", "qemu", "disks-rw", disk.to_str().unwrap())]);
            harness.apply(&text);
            assert_eq!(state(&disk), before, "this version does not");
            // As the earlier one would have left it.
            let uid = harness.place("web-1").uid;
            let note = harness.run.join("vm").join(&uid).join("launch.json");
            let mut text: Value = serde_json::from_slice(&fs::read(&note).unwrap()).unwrap();
            let user = text["user"].as_u64().unwrap() as u32;
            text["given"] =
                serde_json::json!([{"path": disk, "user": 4321, "group": 1234, "mode": 0o640}]);
            fs::write(&note, text.to_string()).unwrap();
            chown(&disk, Some(user), Some(user)).unwrap();
            fs::set_permissions(&disk, Permissions::from_mode(0o600)).unwrap();
            harness.restart();
            let record = harness.state().join("disks/.owners").join(&uid);
            assert!(record.exists(), "{kind}: it is on the state disk");
            let now = state(&disk);
            assert_eq!((now.0, now.1), (user, user), "{kind}: its VMM runs on");
            ends(&mut harness);
            harness.until(kind, || (state(&disk) == before).then_some(()));
            harness.until("no record is left", || (!record.exists()).then_some(()));
        });
    }
}

fn start_again(harness: &mut Harness) {
    let pid = harness.get("vm web-1")["status"]["vmm"]["pid"].as_u64();
    signal(pid.unwrap() as u32, rustix::process::Signal::KILL);
    harness.until("another runs", || {
        let now = harness.get("vm web-1")["status"]["vmm"]["pid"].as_u64();
        (now.is_some() && now != pid).then_some(())
    });
}

/// As far as a test can: every process ends, what lies in memory is lost.
fn reboot(harness: &mut Harness) {
    harness.stop();
    kill_all(harness);
    unmount_all(harness);
    harness.start();
}

fn kill_all(harness: &Harness) {
    let found = slicectl::host::process::find(slicectl::reconcile::vmm::RUN_DIR_VAR).unwrap();
    for found in found {
        if Path::new(&found.value).starts_with(&harness.run) {
            signal(found.identity.pid, rustix::process::Signal::KILL);
        }
    }
}

/// What lies in memory goes with the boot.
fn unmount_all(harness: &Harness) {
    let vms = fs::read_dir(harness.run.join("vm")).unwrap().flatten();
    for vm in vms {
        let dir = vm.path().join("vmm");
        for _ in 0..100 {
            let done = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
            if done.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for entry in fs::read_dir(&harness.run).unwrap().flatten() {
        let _ = fs::remove_dir_all(entry.path());
        let _ = fs::remove_file(entry.path());
    }
}
