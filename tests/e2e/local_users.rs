//! What other users of the host may do to the daemon: nothing. Their locks, what they put in its way, and how the daemon was started.
//! Out of scope: what a VMM may do (`confinement`); the owner of a process (`tests/vmm/identity.rs`).

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use test_support::harness::{Harness, empty, slots, with_daemon};
use test_support::kernel::run;

/// `nobody`.
const STRANGER: u32 = 65534;
const RANGES: &str = "/run/slice-ranges";

/// How a stranger locks.
#[derive(Clone, Copy, Debug)]
enum Lock {
    Shared,
    Exclusive,
    /// Of the process (`fcntl`).
    Range,
    /// Of the open file.
    OpenRange,
}

const LOCKS: [Lock; 4] = [Lock::Shared, Lock::Exclusive, Lock::Range, Lock::OpenRange];

/// A process of a stranger that holds locks; killed when dropped.
struct Locker(Child);

impl Locker {
    /// On files that it had open before they were closed to it.
    fn start(files: &[File], lock: Lock) -> Self {
        let fds: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new("/bin/busybox");
        command
            .args(["sleep", "600"])
            .current_dir("/")
            .stdin(Stdio::null());
        // SAFETY: only system calls, on memory made before the fork.
        unsafe {
            command.pre_exec(move || {
                let id = libc::c_long::from(STRANGER);
                for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
                    if libc::syscall(call, id, id, id) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for fd in &fds {
                    libc::fcntl(*fd, libc::F_SETFD, 0);
                    take(*fd, lock)?;
                }
                Ok(())
            });
        }
        Self(command.spawn().expect("a stranger with locks"))
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

fn take(fd: i32, lock: Lock) -> std::io::Result<()> {
    // SAFETY: plain old data, for which all zeroes is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_RDLCK as libc::c_short;
    // SAFETY: an open descriptor, and a struct of this function.
    let done = unsafe {
        match lock {
            Lock::Shared => libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB),
            Lock::Exclusive => libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB),
            Lock::Range => libc::fcntl(fd, libc::F_SETLK, &raw const range),
            Lock::OpenRange => libc::fcntl(fd, libc::F_OFD_SETLK, &raw const range),
        }
    };
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        // Directories know no ranges.
        Some(libc::EBADF | libc::EINVAL) if done != 0 => Ok(()),
        _ if done != 0 => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything below these directories that can be opened for reading: files and directories, no pipes, sockets or namespaces.
fn all_below(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = dirs.to_vec();
    while let Some(path) = left.pop() {
        let Ok(kind) = fs::symlink_metadata(&path) else {
            continue;
        };
        if kind.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        if kind.is_dir() || kind.is_file() {
            found.push(path);
        }
    }
    found
}

fn own_dirs(harness: &Harness) -> Vec<PathBuf> {
    vec![harness.state(), harness.run.clone(), RANGES.into()]
}

fn disks(harness: &Harness, count: u32) -> String {
    let image = harness.dir.path().join("image");
    if !image.exists() {
        fs::write(&image, vec![7; 1 << 20]).unwrap();
    }
    let image = format!("hypervisor: none\n      image: {}", image.display());
    slots(count, "").replace("hypervisor: none", &image)
}

/// What was opened while it was open to all, as an earlier version left it, stays open; and so do locks on it.
#[test]
fn locks_of_a_stranger_on_whatever_is_ours_keep_nothing_from_starting_or_being_made() {
    with_daemon(|mut harness| {
        fs::set_permissions(harness.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        harness.save("sandbox.yaml", &disks(&harness, 2));
        harness.ctl("wait hg/sandbox --for ready --timeout 60s");
        let (mut targets, mut kinds) = (0, 0);
        for lock in LOCKS {
            harness.kill();
            let image = harness.dir.path().join("image");
            let paths = [all_below(&own_dirs(&harness)), vec![image]].concat();
            for part in ["db/db", "disks"] {
                assert!(paths.contains(&harness.state().join(part)), "{part}");
            }
            assert!(
                paths
                    .iter()
                    .any(|path| path.starts_with(RANGES) && path.is_file())
            );
            let files: Vec<File> = paths.iter().map(|path| File::open(path).unwrap()).collect();
            let mut stranger = Locker::start(&files, lock);
            drop(files);
            harness.start();
            harness.ctl("wait hg/sandbox --for ready --timeout 20s");
            // What is there is changed, and what is new is made.
            harness.save("sandbox.yaml", &disks(&harness, 3 + kinds));
            harness.until("another VM", || {
                let sandbox = |vm: &&String| vm.starts_with("sandbox");
                let vms = harness.vms().iter().filter(sandbox).count();
                (vms == 3 + kinds as usize).then_some(())
            });
            harness.ctl("wait hg/sandbox --for ready --timeout 20s");
            let name = format!("g{kinds}");
            let range = format!("169.254.{}.0/22", 112 + 4 * kinds);
            let other = test_support::harness::group(&name, 1, &range, "");
            harness.save(&format!("{name}.yaml"), &other);
            harness.until("the group", || {
                harness
                    .vms()
                    .iter()
                    .any(|vm| vm.starts_with(&name))
                    .then_some(())
            });
            harness.ctl(&format!("wait hg/{name} --for ready --timeout 20s"));
            assert!(stranger.is_alive());
            targets += paths.len();
            kinds += 1;
        }
        assert!(targets > 60, "only {targets}");
    });
}

/// What others can open nothing of, they cannot lock either: tried by one who may read whatever is open to all.
#[test]
fn nothing_of_ours_is_open_to_others_however_the_daemon_is_started_and_the_socket_is() {
    /// How an earlier version, or somebody else, left the directories.
    const BEFORE: [Option<u32>; 3] = [None, Some(0o755), Some(0o777)];
    const GROUP: u32 = 4242;
    let mut tried = 0;
    for umask in [0o000, 0o022, 0o077] {
        for before in BEFORE {
            empty(|mut harness| {
                harness.args = vec!["--socket-group".into(), GROUP.to_string()];
                fs::set_permissions(harness.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
                if let Some(mode) = before {
                    let vm = harness.run.join("vm/11111111-2222-4333-8444-555555555555");
                    let made = [
                        harness.state().join("db"),
                        harness.state().join("disks"),
                        harness.run.join("netns"),
                        vm.clone(),
                        RANGES.into(),
                    ];
                    for dir in &made {
                        fs::create_dir_all(dir).unwrap();
                    }
                    fs::remove_dir(harness.state().join("db")).unwrap();
                    for dir in [
                        harness.state(),
                        harness.run.clone(),
                        harness.run.join("vm"),
                        vm,
                    ] {
                        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
                    }
                    for dir in made.iter().filter(|dir| dir.exists()) {
                        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
                    }
                }
                let mut daemon = start(&harness, umask);
                harness.apply(&disks(&harness, 1));
                for path in all_below(&own_dirs(&harness)) {
                    let reach = is_reached(&path);
                    assert!(
                        path == harness.run || !reach,
                        "{} with umask {umask:o} and {before:?} before",
                        path.display()
                    );
                }
                for dir in [
                    harness.state(),
                    harness.run.join("vm"),
                    harness.run.join("netns"),
                    RANGES.into(),
                ] {
                    let mode = fs::metadata(&dir).unwrap().mode() & 0o7777;
                    assert_eq!(mode, 0o700, "{}", dir.display());
                }
                let mode = fs::metadata(&harness.run).unwrap().mode() & 0o7777;
                assert_eq!(mode & 0o022, 0, "{mode:o}");
                assert!(
                    connects(&harness.run.join("sliced.sock"), GROUP),
                    "umask {umask:o}, {before:?}"
                );
                assert!(!connects(&harness.run.join("sliced.sock"), STRANGER));
                daemon.kill().unwrap();
                daemon.wait().unwrap();
            });
            tried += 1;
        }
    }
    assert_eq!(tried, 9);
}

/// `slicectl version` of another user.
fn version_of(harness: &Harness, group: u32, groups: &str) -> Output {
    Command::new("setpriv")
        .args(["--reuid=65534", groups])
        .arg(format!("--regid={group}"))
        .args(["/run/slicectl", "version"])
        .env("SLICE_SOCKET", harness.run.join("sliced.sock"))
        .output()
        .expect("setpriv(1)")
}

#[test]
fn slicectl_of_a_stranger_is_turned_away_and_that_of_a_member_of_the_sockets_group_is_served() {
    const GROUP: u32 = 4242;
    empty(|mut harness| {
        harness.args = vec!["--socket-group".into(), GROUP.to_string()];
        harness.start();
        // By another process: what this one holds open for writing, any child of it may hold, too, and then it cannot be run.
        let slicectl = env!("CARGO_BIN_EXE_slicectl");
        run(&format!("install -m 755 {slicectl} /run/slicectl"));
        let socket = harness.run.join("sliced.sock");
        // Even when the mode of the file has been loosened, the credentials of the peer count.
        for (mode, refusal) in [
            (
                0o660,
                "accessible to root and members of group 4242; use sudo",
            ),
            (0o666, "user 65534 may not connect to sliced"),
        ] {
            fs::set_permissions(&socket, fs::Permissions::from_mode(mode)).unwrap();
            let refused = version_of(&harness, STRANGER, "--clear-groups");
            assert_eq!(refused.status.code(), Some(1), "{mode:o}");
            let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(stderr.contains(refusal), "{mode:o}: {stderr}");
            for member in [
                version_of(&harness, GROUP, "--clear-groups"),
                version_of(&harness, STRANGER, &format!("--groups={GROUP}")),
            ] {
                assert_eq!(member.status.code(), Some(0), "{mode:o}: {member:?}");
            }
        }
    });
}

fn start(harness: &Harness, umask: libc::mode_t) -> Child {
    let mut command = harness.sliced();
    // SAFETY: a plain system call.
    unsafe {
        command.pre_exec(move || {
            libc::umask(umask);
            Ok(())
        });
    }
    let daemon = command.spawn().unwrap();
    harness.until("sliced answers", || {
        harness.try_ctl("version").status.success().then_some(())
    });
    daemon
}

/// Whether a stranger opens it.
fn is_reached(path: &Path) -> bool {
    as_user(
        STRANGER,
        STRANGER,
        |path| {
            // SAFETY: the path is a C string.
            unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK) >= 0 }
        },
        path,
    )
}

/// Whether a member of a group connects to the socket.
fn connects(path: &Path, group: u32) -> bool {
    as_user(
        1000,
        group,
        |path| {
            // SAFETY: plain system calls; the address is of this function.
            unsafe {
                let mut address: libc::sockaddr_un = std::mem::zeroed();
                address.sun_family = libc::AF_UNIX as libc::sa_family_t;
                for (to, from) in address.sun_path.iter_mut().zip(path.to_bytes()) {
                    *to = *from as libc::c_char;
                }
                let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
                let length = std::mem::size_of_val(&address) as libc::socklen_t;
                libc::connect(fd, (&raw const address).cast(), length) == 0
            }
        },
        path,
    )
}

/// Tries something in a process of that user and group.
fn as_user(user: u32, group: u32, attempt: fn(&std::ffi::CStr) -> bool, path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut command = Command::new("true");
    // SAFETY: only system calls, on memory made before the fork.
    unsafe {
        command.pre_exec(move || {
            let (user, group) = (libc::c_long::from(user), libc::c_long::from(group));
            libc::syscall(
                libc::SYS_setgroups,
                0_usize,
                std::ptr::null::<libc::gid_t>(),
            );
            libc::syscall(libc::SYS_setresgid, group, group, group);
            if libc::syscall(libc::SYS_setresuid, user, user, user) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            match attempt(&path) {
                true => Ok(()),
                false => Err(std::io::Error::from_raw_os_error(libc::EACCES)),
            }
        });
    }
    match command.status() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
            false
        }
    }
}

/// Whatever is in the place of a file of the claims: it is neither followed, nor waited for, nor in the way.
#[test]
fn what_a_stranger_has_put_in_the_place_of_a_lock_is_removed_and_not_followed() {
    type Put = fn(&Path, &Path);
    const PUTS: [(&str, Put); 6] = [
        ("a symbolic link", |at, victim| symlink(victim, at).unwrap()),
        ("a dangling link", |at, victim| {
            symlink(victim.with_file_name("none"), at).unwrap()
        }),
        ("a second name", |at, victim| {
            fs::hard_link(victim, at).unwrap()
        }),
        ("a pipe", |at, _| {
            run(&format!("mkfifo {}", at.display()));
        }),
        ("a directory", |at, _| {
            fs::create_dir_all(at.join("deep")).unwrap()
        }),
        ("another's file", |at, _| {
            fs::write(at, "").unwrap();
            std::os::unix::fs::chown(at, Some(STRANGER), Some(STRANGER)).unwrap();
        }),
    ];
    // Of a claims directory: of this daemon, of all, and of another daemon.
    with_daemon(|harness| {
        let instance = slicectl::owner::Instance::of(&harness.state().canonicalize().unwrap());
        let places = || {
            [
                format!("{instance}.json"),
                format!("{instance}.lock"),
                "lock".to_owned(),
                "abcde.json".to_owned(),
                "abcde.lock".to_owned(),
            ]
        };
        // On the file system of the ranges, so that it can have a second name there.
        let victim = Path::new("/run/victim");
        fs::write(victim, "the host's own words").unwrap();
        for (at, (what, put)) in PUTS.into_iter().enumerate() {
            let (name, third) = (format!("g{at}"), 112 + 4 * at);
            fs::create_dir_all(RANGES).unwrap();
            for name in places() {
                let at = Path::new(RANGES).join(name);
                run(&format!("rm -rf {}", at.display()));
                put(&at, victim);
            }
            let range = format!("169.254.{third}.0/22");
            harness.save(
                &format!("{name}.yaml"),
                &test_support::harness::group(&name, 1, &range, ""),
            );
            harness.until(what, || {
                harness
                    .vms()
                    .iter()
                    .any(|vm| vm.starts_with(&name))
                    .then_some(())
            });
            harness.ctl(&format!("wait hg/{name} --for ready --timeout 20s"));
            assert_eq!(
                fs::read_to_string(victim).unwrap(),
                "the host's own words",
                "{what}"
            );
            assert!(!victim.with_file_name("none").exists(), "{what}");
        }
    });
}

/// A directory that is somebody else's, or not a directory at all, is not used.
#[test]
fn a_directory_that_is_not_ours_is_refused_with_its_owner_named() {
    type Put = fn(&Path);
    const PUTS: [(&str, Put, &str); 3] = [
        (
            "another's",
            |at| {
                fs::create_dir(at).unwrap();
                std::os::unix::fs::chown(at, Some(STRANGER), None).unwrap();
            },
            "it belongs to user 65534",
        ),
        ("a file", |at| fs::write(at, "").unwrap(), "Not a directory"),
        (
            "for everybody",
            |at| {
                fs::create_dir(at).unwrap();
                fs::set_permissions(at, fs::Permissions::from_mode(0o1777)).unwrap();
            },
            "shared world-writable directory",
        ),
    ];
    for (what, put, expected) in PUTS {
        empty(|harness| {
            put(&harness.run);
            let begin = Instant::now();
            let output = harness.sliced().stderr(Stdio::piped()).output().unwrap();
            let reported = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{what}");
            assert!(reported.contains(expected), "{what}: {reported}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
            assert!(
                OpenOptions::new().read(true).open(&harness.run).is_ok(),
                "{what}: it is still there"
            );
        });
    }
}
