//! A confined process: the files it was given, the control group it was born into.
//! Not here: VMMs (`tests/daemon/confinement.rs`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use slicectl::host::process::{self, Confine, Reach, Spawn};
use slicectl::reconcile::vmm::{CONSOLE, LOG_LIMIT, RECORD};

use crate::processes::kill;
use crate::support::{PrivateNet, eventually};

#[test]
fn a_confined_process_is_born_into_its_control_group_and_sees_the_files_it_was_given() {
    let (net, dir) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).unwrap();
    let (given, kept) = (dir.path().join("given"), dir.path().join("kept"));
    for file in [&given, &kept] {
        std::fs::write(file, "words").unwrap();
        std::os::unix::fs::chown(file, Some(USER), Some(USER)).unwrap();
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
        confine: Some(Confine {
            user: USER,
            home: &home,
            reach: &[Reach {
                path: &given,
                writable: false,
            }],
            kvm: false,
            cgroup: Some(&group.0),
            jail: None,
        }),
    })
    .unwrap();
    let said = |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default();
    assert!(eventually(Duration::from_secs(10), || said("third").ends_with('\n')));
    assert_eq!(said("first"), "0\n", "given: {}", said(CONSOLE));
    assert_ne!(said("second"), "0\n", "to be read only");
    assert_eq!(said("third"), "1\n", "not given, though it is its user's");
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
