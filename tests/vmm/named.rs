//! What may be named: a table of files, by every kind that a stranger could think of.
//! Out of scope: manifests (`tests/e2e/named.rs`).

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slicectl::api::allowed::Purpose;
use slicectl::vmm::FileAccess;

/// A user who is not root.
const ALICE: u32 = 1234;

struct Fixture {
    root: tempfile::TempDir,
}

impl Fixture {
    /// `images/` and `bin/`, which are allowed, and `outside/`, which is not.
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["images", "bin", "outside", "images/alice", "images/loose"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        let fixture = Self { root };
        fixture.file("outside/secret", 0o600);
        fixture.file("outside/script", 0o755);
        chown(fixture.at("images/alice"), Some(ALICE), Some(ALICE)).unwrap();
        fixture.mode("images/loose", 0o777);
        fixture
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.at(path), Permissions::from_mode(mode)).unwrap();
    }

    fn file(&self, path: &str, mode: u32) -> PathBuf {
        fs::write(self.at(path), "#!/bin/sh\necho secret\n").unwrap();
        self.mode(path, mode);
        self.at(path)
    }

    fn alices(&self, path: &str) -> PathBuf {
        let path = self.file(path, 0o644);
        chown(&path, Some(ALICE), Some(ALICE)).unwrap();
        path
    }

    fn link(&self, path: &str, to: &Path) -> PathBuf {
        symlink(to, self.at(path)).unwrap();
        self.at(path)
    }

    fn places(&self) -> FileAccess {
        let mut places = FileAccess::default();
        places.allowed.programs = vec![self.at("bin")];
        places.allowed.images = vec![self.at("images")];
        places
    }
}

#[test]
fn an_image_is_a_regular_file_in_an_allowed_directory_reached_without_links() {
    let fixture = Fixture::new();
    let fifo = fixture.at("images/fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let device = |name: &str, kind, major, minor| {
        let path = fixture.at(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, device).unwrap();
        path
    };
    let char_device = rustix::fs::FileType::CharacterDevice;
    let _socket = std::os::unix::net::UnixListener::bind(fixture.at("images/socket")).unwrap();
    fs::hard_link(fixture.at("outside/secret"), fixture.at("images/hard")).unwrap();
    fixture.link("images/dirlink", &fixture.at("outside"));
    let set_id = fixture.file("images/suid", 0o4755);
    let accepted = [
        fixture.file("images/plain", 0o644),
        fixture.file("images/private", 0o600),
        fixture.file("images/with, a=comma", 0o644),
        fixture.alices("images/alices"),
        fixture.alices("images/alice/own"),
        {
            let sparse = fixture.at("images/sparse");
            fs::File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
            sparse
        },
        {
            fs::create_dir(fixture.at("images/deep")).unwrap();
            fixture.file("images/deep/file", 0o644)
        },
        device("images/disk", rustix::fs::FileType::BlockDevice, 7, 200),
    ];
    let pid = std::process::id();
    let refused = [
        "/etc/shadow".into(),
        "/proc/self/environ".into(),
        "/proc/self/root/etc/shadow".into(),
        format!("/proc/{pid}/root/etc/shadow").into(),
        format!("/proc/{pid}/fd/0").into(),
        "/dev/mem".into(),
        "/dev/kmsg".into(),
        "/dev/vda".into(),
        "//server/share/image".into(),
        "nbd://127.0.0.1/x".into(),
        "relative".into(),
        fixture.at("images"),
        fixture.at("images/"),
        fixture.at("images/deep"),
        fixture.at("outside/secret"),
        fixture.at("images/../outside/secret"),
        fixture.at("images/./../outside/secret"),
        fixture.at("images/dirlink/secret"),
        fixture.link("images/link", &fixture.at("outside/secret")),
        fixture.link("images/inside", &fixture.at("images/plain")),
        fixture.link("images/magic", Path::new("/proc/self/fd/0")),
        fixture.link("images/device-link", Path::new("/dev/null")),
        fixture.at("images/hard"),
        fixture.at("images/none"),
        fixture.at("images/plain/below"),
        fifo,
        fixture.at("images/socket"),
        device("images/null", char_device, 1, 3),
        device("images/mem", char_device, 1, 1),
        set_id,
        fixture.file("images/sgid", 0o2755),
        fixture.file("images/everybodys", 0o666),
        fixture.file("images/loose/file", 0o644),
        // Alice could put root's file in the place of her own by a hard link.
        fixture.file("images/alice/roots", 0o644),
    ];
    let places = fixture.places();
    let begin = Instant::now();
    for path in &accepted {
        let opened = places.open(Purpose::Image, path);
        assert!(opened.is_ok(), "{}: {opened:?}", path.display());
    }
    for path in &refused {
        let opened = places.open(Purpose::Image, path);
        let why = opened.expect_err(&path.display().to_string()).to_string();
        let words = why.contains("expected")
            || why.contains("does not exist")
            || why.contains("cannot open");
        assert!(words, "{}: {why}", path.display());
    }
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "nothing is waited for"
    );
}

#[test]
fn a_program_and_everything_on_its_way_is_roots_alone() {
    let fixture = Fixture::new();
    for dir in ["bin/alice", "bin/loose"] {
        fs::create_dir(fixture.at(dir)).unwrap();
    }
    chown(fixture.at("bin/alice"), Some(ALICE), Some(ALICE)).unwrap();
    fixture.mode("bin/loose", 0o775);
    let plain = fixture.file("bin/plain", 0o755);
    fs::hard_link(&plain, fixture.at("bin/other-name")).unwrap();
    let accepted = [
        plain.clone(),
        fixture.at("bin/other-name"),
        fixture.link("bin/root-link", Path::new("plain")),
    ];
    let alices_link = fixture.link("bin/alice/link", &plain);
    rustix::fs::chownat(
        rustix::fs::CWD,
        &alices_link,
        Some(rustix::fs::Uid::from_raw(ALICE)),
        None,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
    let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty()).unwrap();
    let memory = std::os::fd::AsRawFd::as_raw_fd(&memory);
    let refused = [
        "/bin/sh".into(),
        "/tmp/x.sh".into(),
        "/dev/null".into(),
        "/proc/self/exe".into(),
        format!("/proc/self/fd/{memory}").into(),
        fixture.at("outside/script"),
        fixture.at("bin"),
        fixture.at("bin/../outside/script"),
        fixture.link("bin/out", &fixture.at("outside/script")),
        fixture.link("bin/up", Path::new("../outside/script")),
        fixture.link("bin/self", Path::new("self")),
        fixture.link(
            "bin/memory",
            &PathBuf::from(format!("/proc/self/fd/{memory}")),
        ),
        alices_link,
        fixture.file("bin/alice/roots", 0o755),
        fixture.file("bin/loose/roots", 0o755),
        fixture.alices("bin/alices"),
        fixture.file("bin/group-writes", 0o775),
        fixture.file("bin/others-write", 0o757),
        fixture.file("bin/no-program", 0o644),
        fixture.file("bin/suid", 0o4755),
        fixture.file("bin/sgid", 0o2755),
        fixture.at("bin/none"),
    ];
    let places = fixture.places();
    for path in &accepted {
        let opened = places.open(Purpose::Program, path).unwrap();
        assert!(opened.real().starts_with(fixture.at("bin")));
    }
    for path in &refused {
        let opened = places.open(Purpose::Program, path);
        assert!(opened.is_err(), "{}", path.display());
    }
}

#[test]
fn an_allowed_directory_that_others_can_write_allows_nothing() {
    for (mode, owner, below) in [
        (0o777, 0, true),
        (0o1777, 0, true),
        (0o775, 0, true),
        (0o755, ALICE, true),
        // The one above it.
        (0o777, 0, false),
        (0o755, ALICE, false),
    ] {
        let root = tempfile::tempdir().unwrap();
        let above = root.path().join("above");
        let dir = above.join("images");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("image"), "x").unwrap();
        let changed = if below { &dir } else { &above };
        let mut places = FileAccess::default();
        places.allowed.images = vec![dir.clone()];
        let open = || places.open(Purpose::Image, &dir.join("image"));
        assert!(open().is_ok());
        fs::set_permissions(changed, Permissions::from_mode(mode)).unwrap();
        chown(changed, Some(owner), None).unwrap();
        let why = open().expect_err("loose").to_string();
        assert!(why.contains(&format!("{mode:04o}")), "{why}");
    }
}

/// Whoever owns a directory exchanges files in it, and the directory itself, all the time.
#[test]
fn what_is_opened_is_never_what_was_swapped_in_between() {
    let fixture = Fixture::new();
    fixture.alices("images/alice/file");
    fixture.link("images/alice/link", &fixture.at("outside/secret"));
    fs::create_dir(fixture.at("images/alice/dir")).unwrap();
    fixture.alices("images/alice/dir/file");
    chown(fixture.at("images/alice/dir"), Some(ALICE), Some(ALICE)).unwrap();
    fixture.link("images/alice/dirlink", &fixture.at("outside"));
    fixture.alices("outside/file");
    let inode = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(fixture.at(path)).unwrap().ino()
    };
    let good = [inode("images/alice/file"), inode("images/alice/dir/file")];
    let stop = AtomicBool::new(false);
    let swap = |one: &str, other: &str| {
        let (one, other) = (fixture.at(one), fixture.at(other));
        while !stop.load(Ordering::Relaxed) {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, &one, cwd, &other, flags).unwrap();
        }
    };
    let places = fixture.places();
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| swap("images/alice/file", "images/alice/link"));
        scope.spawn(|| swap("images/alice/dir", "images/alice/dirlink"));
        let end = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < end {
            for path in ["images/alice/file", "images/alice/dir/file"] {
                match places.open(Purpose::Image, &fixture.at(path)) {
                    Err(_) => refused += 1,
                    Ok(named) => {
                        use std::os::unix::fs::MetadataExt;
                        let now = named.open().unwrap().metadata().unwrap();
                        assert!(good.contains(&now.ino()), "what lies outside was opened");
                        opened += 1;
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        opened > 100 && refused > 100,
        "{opened} opened, {refused} refused"
    );
}
