//! Never two writers, whoever the other is.
//! Out of scope: what is copied.
//!
//! # Why
//! Each test runs alone: a child that another test starts has copies of all descriptors of this process until its exec, so it would be
//! another holder.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use slicectl::host::Kind;
use slicectl::host::image::{Use, hold};
use slicectl::host::process::{self, ProcessState, Record, Spawn, StopSignal};

use crate::disks::fixture::{gone, image_with_a_hole, meet, names, some_vm};
use test_support::descriptors::copy_of;
use test_support::programs::{assert_passes, this_test, this_test_by};
use test_support::turns;

/// The variable that turns the test of a killed daemon into the daemon.
const HOLD_INTO: &str = "TEST_HOLD_INTO";

fn refused(path: &Path, how: Use) -> String {
    let error = hold(path, how).unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{error}");
    error.to_string()
}

#[test]
fn one_writes_or_many_read() {
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    let link = dir.path().join("another name");
    fs::hard_link(&image, &link).unwrap();
    let first = hold(&image, Use::Read).unwrap();
    let second = hold(&link, Use::Read).unwrap();
    refused(&link, Use::Write);
    drop((first, second));
    let writer = hold(&link, Use::Write).unwrap();
    refused(&image, Use::Write);
    refused(&image, Use::Read);
    drop(writer);
    hold(&image, Use::Write).unwrap();
}

#[test]
fn a_writer_who_locks_nothing_is_seen_and_named() {
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    let file = OpenOptions::new().append(true).open(&image).unwrap();
    let mut writer = Command::new("sleep")
        .arg("600")
        .stdout(file)
        .spawn()
        .unwrap();
    for how in [Use::Read, Use::Write] {
        let words = refused(&image, how);
        let named = format!("in use by process {} (sleep)", writer.id());
        assert!(words.ends_with(&named), "{words}");
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    hold(&image, Use::Write).unwrap();
    // One who reads is in nobody's way.
    let _reader = File::open(&image).unwrap();
    hold(&image, Use::Write).unwrap();
}

#[test]
fn locks_as_qemu_takes_them_are_detected() {
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    let other = File::open(&image).unwrap();
    // As QEMU does for an image that it only reads (block/file-posix.c, RAW_LOCK_PERM_BASE).
    // SAFETY: plain old data, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_RDLCK as libc::c_short;
    lock.l_start = 100;
    lock.l_len = 1;
    // SAFETY: the descriptor is open, the struct is ours.
    let taken = unsafe { libc::fcntl(other.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
    assert_eq!(taken, 0);
    refused(&image, Use::Write);
    hold(&image, Use::Read).unwrap();
    drop(other);
    hold(&image, Use::Write).unwrap();
}

#[tokio::test]
async fn a_disk_in_use_is_neither_removed_nor_grown_nor_copied_from() {
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let (disks, image) = (dir.path().join("disks"), image_with_a_hole(dir.path()));
    let desired = some_vm(&disks, &image, 0, false);
    let writer = OpenOptions::new().append(true).open(&image).unwrap();
    let words = meet(&desired).await.unwrap_err();
    assert!(words.contains("cannot read "), "{words}");
    drop(writer);
    meet(&desired).await.unwrap();
    let user = hold(&desired.disk(), Use::Write).unwrap();
    let words = meet(&gone(&desired)).await.unwrap_err();
    assert!(words.starts_with("remove the disk "), "{words}");
    let mut larger = desired.clone();
    larger.spec.as_mut().unwrap().at_least = 64 << 20;
    let words = meet(&larger).await.unwrap_err();
    assert!(words.starts_with("grow the disk "), "{words}");
    drop(user);
    meet(&gone(&desired)).await.unwrap();
    assert_eq!(names(&disks), [] as [&str; 0]);
}

/// A child between fork and exec has copies of all descriptors; here it stays there.
#[tokio::test]
async fn an_image_is_free_after_it_was_copied_or_grown_although_a_forked_child_has_its_descriptor()
{
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let (disks, image) = (dir.path().join("disks"), image_with_a_hole(dir.path()));
    let desired = some_vm(&disks, &image, 0, false);
    let copying = |path: &Path| {
        let path = path.to_owned();
        // One that is open for writing counts as a writer, whatever is locked.
        let is_locked_one = |copy: &std::os::fd::OwnedFd| {
            let flags = rustix::fs::fcntl_getfl(copy).unwrap();
            !flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR)
        };
        let copies = std::iter::repeat_with(move || copy_of(&path));
        std::thread::spawn(move || { copies }.find(is_locked_one).unwrap())
    };
    let copy = copying(&image);
    while !copy.is_finished() {
        meet(&desired).await.unwrap();
        meet(&gone(&desired)).await.unwrap();
    }
    let _copy = copy.join().unwrap();
    hold(&image, Use::Write).unwrap();

    meet(&desired).await.unwrap();
    let copy = copying(&desired.disk());
    let mut larger = desired.clone();
    while !copy.is_finished() {
        larger.spec.as_mut().unwrap().at_least += 64 << 20;
        meet(&larger).await.unwrap();
    }
    let _copy = copy.join().unwrap();
    hold(&desired.disk(), Use::Write).unwrap();
}

/// The lock lives exactly as long as the process that was given the disk.
#[test]
fn a_killed_daemon_leaves_the_lock_with_its_vmm_and_the_vmms_end_frees_it() {
    let _alone = turns::alone();
    if let Some(dir) = std::env::var_os(HOLD_INTO) {
        return start_and_be_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    let this = a_killed_daemon_leaves_the_lock_with_its_vmm_and_the_vmms_end_frees_it;
    let mut daemon = this_test(this)
        .env(HOLD_INTO, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let ready = dir.path().join("ready");
    eventually(|| ready.exists());
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let Record::Of(vmm) = process::read_record(&dir.path().join("process")).unwrap() else {
        panic!("nothing was started");
    };
    let words = refused(&image, Use::Write);
    assert!(
        words.contains(&format!("process {} (sleep)", vmm.pid)),
        "{words}"
    );
    let ProcessState::Alive(process) = process::open(&vmm).unwrap() else {
        panic!("it died with the daemon");
    };
    process.stop(StopSignal::Kill).unwrap();
    eventually(|| hold(&image, Use::Write).is_ok());
}

fn start_and_be_killed(dir: &Path) {
    let held = hold(&dir.join("image"), Use::Write).unwrap();
    let argv = ["sleep".to_owned(), "600".to_owned()];
    process::spawn(&Spawn {
        argv: &argv,
        env: &[],
        cwd: dir,
        netns: Path::new("/proc/self/ns/net"),
        needs_link: "lo",
        input: None,
        log: &dir.join("log"),
        file_limit: 1 << 20,
        record: &dir.join("process"),
        confine: None,
        inherits: &[held.as_fd()],
        program: None,
    })
    .unwrap();
    drop(held);
    fs::write(dir.join("ready"), "").unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

fn eventually(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it does not come"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As the shipped unit has it, or an older one: without CAP_LEASE nobody is told whether another user's file is written to.
#[test]
fn a_file_of_another_user_is_held_without_the_right_to_lease_it_and_its_writers_are_seen_all_the_same()
 {
    let _alone = turns::alone();
    const FILE: &str = "TEST_HOLD_WITHOUT_LEASE";
    if let Some(path) = std::env::var_os(FILE) {
        let path = Path::new(&path);
        drop(hold(path, Use::Write).unwrap());
        let file = OpenOptions::new().append(true).open(path).unwrap();
        let mut writer = Command::new("sleep")
            .arg("600")
            .stdout(file)
            .spawn()
            .unwrap();
        let words = refused(path, Use::Write);
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(words.contains("(sleep)"), "{words}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    std::os::unix::fs::chown(&image, Some(4321), Some(4321)).unwrap();
    let starter = [
        "setpriv",
        "--bounding-set",
        "-lease",
        "--inh-caps",
        "-lease",
    ];
    let this = a_file_of_another_user_is_held_without_the_right_to_lease_it_and_its_writers_are_seen_all_the_same;
    let mut test = this_test_by(&starter, this);
    test.env(FILE, &image);
    assert_passes(test);
}

/// How somebody else has an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    Shared,
    Exclusive,
    /// `fcntl`, of the process.
    Range,
    /// `fcntl`, of the open file.
    OpenRange,
    /// For writing, without a lock.
    Open,
}

/// A process of that user that has the image so; killed when dropped.
struct Other(std::process::Child);

impl Other {
    fn start(image: &Path, user: u32, has: Has) -> Self {
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::process::CommandExt;
        let path = CString::new(image.as_os_str().as_bytes()).unwrap();
        let mode = match has {
            Has::Open => libc::O_WRONLY | libc::O_APPEND,
            _ => libc::O_RDONLY,
        };
        let mut command = Command::new("sleep");
        command.arg("600");
        // SAFETY: only system calls, on memory of the function itself and on the path, which was made before the fork.
        unsafe {
            command.pre_exec(move || {
                // Opened here, as root: a descriptor of this process is copied to every child that another test starts meanwhile.
                let fd = libc::open(path.as_ptr(), mode);
                if fd < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                let id = libc::c_long::from(user);
                libc::syscall(
                    libc::SYS_setgroups,
                    0_usize,
                    std::ptr::null::<libc::gid_t>(),
                );
                libc::syscall(libc::SYS_setresgid, id, id, id);
                libc::syscall(libc::SYS_setresuid, id, id, id);
                let mut range: libc::flock = std::mem::zeroed();
                range.l_type = libc::F_RDLCK as libc::c_short;
                let done = match has {
                    Has::Shared => libc::flock(fd, libc::LOCK_SH | libc::LOCK_NB),
                    Has::Exclusive => libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB),
                    Has::Range => libc::fcntl(fd, libc::F_SETLK, &raw const range),
                    Has::OpenRange => libc::fcntl(fd, libc::F_OFD_SETLK, &raw const range),
                    Has::Open => 0,
                };
                match done {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        Self(command.spawn().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whoever can only read an image is no second writer, however he locks it; whoever can write it is one.
#[test]
fn a_lock_counts_if_its_holder_could_write() {
    let _alone = turns::alone();
    use std::os::unix::fs::{PermissionsExt, chown};
    const STRANGER: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    // Who, whose the image is and with which mode, how; what is refused.
    let reads = [Has::Shared, Has::Range, Has::OpenRange];
    let mut cases = vec![
        (STRANGER, 0, 0o644, Has::Exclusive, [false, false]),
        (STRANGER, 1000, 0o644, Has::Exclusive, [false, false]),
        (STRANGER, 0, 0o664, Has::Exclusive, [false, false]),
        (STRANGER, 0, 0o666, Has::Exclusive, [true, true]),
        (STRANGER, STRANGER, 0o644, Has::Exclusive, [true, true]),
        (STRANGER, STRANGER, 0o444, Has::Exclusive, [true, true]),
        (STRANGER, 0, 0o644, Has::Open, [true, true]),
        (0, 0, 0o644, Has::Exclusive, [true, true]),
        (0, 0, 0o644, Has::Open, [true, true]),
    ];
    for has in reads {
        cases.push((STRANGER, 0, 0o644, has, [false, false]));
        cases.push((STRANGER, STRANGER, 0o644, has, [false, true]));
        cases.push((0, 0, 0o644, has, [false, true]));
    }
    for (who, owner, mode, has, refused) in &cases {
        chown(&image, Some(*owner), Some(*owner)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(*mode)).unwrap();
        let other = Other::start(&image, *who, *has);
        for (how, refused) in [(Use::Read, refused[0]), (Use::Write, refused[1])] {
            let what = format!("{how:?} beside {has:?} of {who} on a file of {owner}, {mode:o}");
            match hold(&image, how) {
                Ok(_) => assert!(!refused, "{what}"),
                Err(error) => {
                    assert!(refused, "{what}: {}", error.source);
                    let named = format!("process {} (sleep)", other.0.id());
                    assert!(
                        error.source.to_string().contains(&named),
                        "{what}: {}",
                        error.source
                    );
                }
            }
        }
    }
    assert_eq!(cases.len(), 18);
}

/// A lock that was not taken because of somebody who does not count is no lock: who holds the image so is seen all the same.
#[test]
fn two_of_ours_do_not_meet_behind_a_strangers_lock() {
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    let mut stranger = Some(Other::start(&image, 65534, Has::Exclusive));
    for round in 0..2 {
        let writer = hold(&image, Use::Write).unwrap();
        let written = OpenOptions::new().append(true).open(&image).unwrap();
        refused(&image, Use::Read);
        refused(&image, Use::Write);
        drop((writer, written));
        hold(&image, Use::Write).unwrap();
        // And when he has gone meanwhile.
        if round == 0 {
            stranger = None;
        }
    }
    assert!(stranger.is_none());
}

/// An owner's lease makes whoever opens the file wait until it is broken, 45 s by default: not us.
#[test]
fn a_lease_of_the_owner_is_not_waited_for() {
    let _alone = turns::alone();
    let dir = tempfile::tempdir().unwrap();
    let image = image_with_a_hole(dir.path());
    let owner = File::open(&image).unwrap();
    let fd = owner.as_raw_fd();
    // SAFETY: plain system calls on an open descriptor.
    unsafe {
        // SIGURG, which is ignored: SIGIO would end us.
        assert_eq!(libc::fcntl(fd, 10, libc::SIGURG), 0);
        assert_eq!(libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK), 0);
    }
    for how in [Use::Read, Use::Write] {
        let begin = Instant::now();
        let words = refused(&image, how);
        assert!(words.contains("lease"), "{words}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    drop(owner);
    hold(&image, Use::Write).unwrap();
}
