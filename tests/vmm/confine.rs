//! A confined process: the files it was given, the control group it was born into.
//! Out of scope: VMMs (`tests/e2e/confinement.rs`).

use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use slicectl::api::allowed::Purpose;
use slicectl::host::process::{self, Confine, Reach, Spawn};
use slicectl::reconcile::vmm::{CONSOLE, LOG_LIMIT, RECORD};

use crate::fixture::{PrivateNet, eventually, places};
use crate::processes::kill;
use test_support::vmm::jailed_program;

#[test]
fn a_confined_process_is_created_into_its_control_group_and_sees_the_files_it_was_given() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let (given, kept) = (dir.path().join("given"), dir.path().join("kept"));
    for file in [&given, &kept] {
        std::fs::write(file, "words").unwrap();
        chown(file, Some(USER), Some(USER)).unwrap();
    }
    let group = Group::make();
    let script = format!(
        "grep -q words {0}; echo $? > first; echo x >> {0}; echo $? > second; test -e {1}; echo $? > third; exec sleep 600",
        given.display(),
        kept.display()
    );
    let argv = ["sh".to_owned(), "-c".to_owned(), script];
    let identity = process::spawn(&Spawn {
        argv: &argv,
        env: &[],
        cwd: &home,
        netns: &net.path,
        needs_link: "lo",
        input: None,
        log: &home.join(CONSOLE),
        file_limit: LOG_LIMIT,
        record: &dir.path().join(RECORD),
        inherits: &[],
        program: None,
        confine: Some(Confine {
            user: USER,
            home: &home,
            reach: &[Reach {
                path: &given,
                writable: false,
                named: None,
                map: None,
            }],
            kvm: false,
            cgroup: Some(&group.0),
            jail: None,
        }),
    })
    .unwrap();
    let output = |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default();
    assert!(eventually(Duration::from_secs(10), || output("third").ends_with('\n')));
    assert_eq!(output("first"), "0\n", "given: {}", output(CONSOLE));
    assert_ne!(output("second"), "0\n", "to be read only");
    assert_eq!(output("third"), "1\n", "not given, though it is its user's");
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", identity.pid)).unwrap();
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert!(
        groups
            .lines()
            .any(|line| line.starts_with("0::") && line.ends_with(name)),
        "{groups}"
    );
    kill(&identity);
}

#[test]
fn a_confined_process_changes_neither_the_mac_nor_the_owner_of_a_tap_that_it_holds() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let owner = slicectl::host::tap::Owner {
        uid: USER,
        gid: None,
    };
    let netns = slicectl::host::netns::Netns::open(&net.path).unwrap();
    netns
        .run_here(|| slicectl::host::tap::create("tap0", owner, &Default::default()))
        .unwrap();
    // Requests by their numbers (linux/if_tun.h, linux/sockios.h): each says which error the kernel answers.
    let script = r#"
        open(T, '+<', '/dev/net/tun') or die;
        sub try { my ($what, $number, $data) = @_; $r = ioctl(T, $number, $data); print "$what ", ($r ? 0 : $!+0), "\n"; }
        try('attach', 0x400454ca, pack('a16 S x22', 'tap0', 0x5002));
        try('mac', 0x8924, pack('a16 S C6 x16', '', 1, 2, 0, 0, 0, 0, 9));
        try('mac-wide', 0xffffffff00008924, pack('a16 S C6 x16', '', 1, 2, 0, 0, 0, 0, 9));
        try('persist', 0x400454cb, 0);
        try('owner', 0x400454cc, 0);
        try('group', 0x400454ce, 0);
        try('link', 0x400454cd, 1);
        try('offload', 0x400454d0, 0);
        try('features', 0x800454cf, pack('L', 0));
        print "end\n";
        close(T); sleep 600;
    "#;
    let argv = [
        "perl",
        "-e",
        &format!("$| = 1; open(STDOUT, '>', 'output');{script}"),
    ]
    .map(str::to_owned);
    let identity = process::spawn(&Spawn {
        argv: &argv,
        env: &[],
        cwd: &home,
        netns: &net.path,
        needs_link: "tap0",
        input: None,
        log: &home.join(CONSOLE),
        file_limit: LOG_LIMIT,
        record: &dir.path().join(RECORD),
        inherits: &[],
        program: None,
        confine: Some(Confine {
            user: USER,
            home: &home,
            reach: &[],
            kvm: false,
            cgroup: None,
            jail: None,
        }),
    })
    .unwrap();
    let output = || std::fs::read_to_string(home.join("output")).unwrap_or_default();
    assert!(
        eventually(Duration::from_secs(10), || output().ends_with("end\n")),
        "{}{}",
        output(),
        std::fs::read_to_string(home.join(CONSOLE)).unwrap_or_default()
    );
    let expected = "attach 0\nmac 1\nmac-wide 1\npersist 1\nowner 1\ngroup 1\nlink 1\noffload 0\nfeatures 0\nend\n";
    assert_eq!(output(), expected);
    kill(&identity);
}

#[test]
fn a_mapped_file_belongs_to_the_confined_user_in_its_mount_and_to_its_owner_on_disk() {
    const OWNER: u32 = 1234;
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, "words").unwrap();
    std::fs::set_permissions(&disk, Permissions::from_mode(0o600)).unwrap();
    chown(&disk, Some(OWNER), Some(OWNER)).unwrap();
    let named = places(&[dir.path()]).open(Purpose::Image, &disk).unwrap();
    let map = process::IdMap {
        owner: (OWNER, OWNER),
        shown_as: USER,
    };
    assert!(process::can_be_mapped(named.as_fd(), map).unwrap());
    let script = format!(
        "printf ' more' >> {0}; stat -c %u:%g:%a {0} > attributes; exec sleep 600",
        disk.display()
    );
    let argv = ["sh".to_owned(), "-c".to_owned(), script];
    let identity = process::spawn(&Spawn {
        argv: &argv,
        env: &[],
        cwd: &home,
        netns: &net.path,
        needs_link: "lo",
        input: None,
        log: &home.join(CONSOLE),
        file_limit: LOG_LIMIT,
        record: &dir.path().join(RECORD),
        inherits: &[],
        program: None,
        confine: Some(Confine {
            user: USER,
            home: &home,
            reach: &[Reach {
                path: &disk,
                writable: true,
                named: Some(&named),
                map: Some(map),
            }],
            kvm: false,
            cgroup: None,
            jail: None,
        }),
    })
    .unwrap();
    let output = |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default();
    assert!(eventually(Duration::from_secs(10), || output("attributes")
        .ends_with('\n')));
    assert_eq!(
        output("attributes"),
        format!("{USER}:{USER}:600\n"),
        "{}",
        output(CONSOLE)
    );
    let found = std::fs::metadata(&disk).unwrap();
    let on_disk = (found.uid(), found.gid(), found.mode() & 0o7777);
    assert_eq!(on_disk, (OWNER, OWNER, 0o600));
    assert_eq!(std::fs::read_to_string(&disk).unwrap(), "words more");
    kill(&identity);
}

/// What a jailer is told here is what `reconcile::vmm` tells it (`recipes`, `real`), in short.
#[test]
fn a_jailed_process_is_created_into_its_control_group_and_its_files_are_shown_in_its_jail() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let (firecracker, jailer) = jailed_program(dir.path());
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(USER), Some(USER)).unwrap();
    let (given, kept) = (dir.path().join("given"), dir.path().join("kept"));
    for file in [&given, &kept] {
        std::fs::write(file, "words").unwrap();
    }
    let name = firecracker.file_name().unwrap();
    let root = Path::new("/jail").join(name).join("one/root");
    let (user, program) = (USER.to_string(), firecracker.to_str().unwrap());
    let argv = [
        [
            jailer.to_str().unwrap(),
            "--id",
            "one",
            "--exec-file",
            program,
        ],
        ["--uid", &user, "--gid", &user, "--chroot-base-dir"],
        ["/jail", "--", "--api-sock", "/vmm/socket", "--level"],
    ];
    let argv: Vec<String> = argv.concat().iter().map(|&word| word.to_owned()).collect();
    let argv = [argv, vec!["Error".to_owned()]].concat();
    let group = Group::make();
    let locked = std::fs::File::open(&kept).unwrap();
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let keep = process::Keep::of(&[locked.as_fd()]).unwrap();
    let places = places(&[dir.path()]);
    let open = |path: &Path| places.open(Purpose::Program, path).unwrap();
    let (tool, file) = (open(&jailer), open(&firecracker));
    let identity = process::spawn(&Spawn {
        argv: &argv,
        env: &[("TEST_JAIL", "its own")],
        cwd: &home,
        netns: &net.path,
        needs_link: "lo",
        input: None,
        log: &home.join(CONSOLE),
        file_limit: 64 << 20,
        record: &dir.path().join(RECORD),
        inherits: &[],
        program: None,
        confine: Some(Confine {
            user: USER,
            home: &home,
            reach: &[Reach {
                path: &given,
                writable: false,
                named: None,
                map: None,
            }],
            kvm: false,
            cgroup: Some(&group.0),
            jail: Some(process::Jail {
                root: &root,
                tool: &tool,
                program: &file,
                home: Path::new("/vmm"),
                errors: keep.standard_error(),
            }),
        }),
    })
    .unwrap();
    let words = keep.let_go();
    drop(locked);
    let up = eventually(Duration::from_secs(10), || home.join("socket").exists());
    let output = String::from_utf8_lossy(&words.read()).into_owned();
    assert!(up, "{output}");
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", identity.pid)).unwrap();
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert!(
        groups
            .lines()
            .any(|line| line.starts_with("0::") && line.ends_with(name)),
        "{groups}"
    );
    let seen = PathBuf::from(format!("/proc/{}/root", identity.pid));
    let below = |path: &Path| seen.join(path.strip_prefix("/").unwrap());
    assert_eq!(std::fs::read_to_string(below(&given)).unwrap(), "words");
    assert!(
        std::fs::write(below(&given), "others").is_err(),
        "read only"
    );
    assert!(!below(&kept).exists());
    assert!(!below(&home).exists(), "but under its short name");
    assert!(seen.join("vmm/socket").exists());
    let mark = process::env_var(identity.pid, "TEST_JAIL").unwrap();
    assert_eq!(mark.as_deref(), Some("its own"));
    let other = std::fs::File::open(&kept).unwrap();
    let take = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(
        rustix::fs::flock(&other, take).is_err(),
        "it keeps the lock"
    );
    kill(&identity);
    assert!(rustix::fs::flock(&other, take).is_ok());
}

/// Nobody's.
const USER: u32 = 2_147_352_000;

/// A control group of version 2, for as long as this value lives.
struct Group(PathBuf);

impl Group {
    fn make() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let mount = mount.expect("a host with control groups of version 2");
        let mount = Path::new(mount.split(' ').nth(4).unwrap());
        let group = mount.join(format!("slice-test-{}", slicectl::api::meta::Uid::random()));
        std::fs::create_dir(&group).unwrap();
        Self(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually(Duration::from_secs(5), || {
            std::fs::remove_dir(&self.0).is_ok()
        });
    }
}
