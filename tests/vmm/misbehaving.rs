//! A confined VMM that does what it wants with its own directory, its children and its disks: none of it is read back, stands in the
//! way, grows without end or outlives it.
//! Out of scope: what it sees of the host (`confine`, `tests/e2e/confinement.rs`).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use slicectl::host::process::{self, Identity, ProcessState, StopSignal, user_lives};
use slicectl::reconcile::OnHost;
use slicectl::reconcile::vmm::{
    Action, CONSOLE, CONSOLE_OLD, Confined, Desired, LOG_LIMIT, RUN_DIR_BYTES, Vmm, rotate,
};
use slicectl::vmm::{Access, CONFIG, Disk, Launch, NewFile};

use crate::fixture::{PrivateNet, converge, eventually, leave_the_mounts, some_vm, stage};

/// What a shell does in a VMM's place, before it sleeps.
fn does(net: &PrivateNet, script: &str) -> Launch {
    let script = format!("{script}; sleep 600; true");
    Launch {
        argv: ["/bin/sh".to_owned(), "-c".to_owned(), script].into(),
        netns: Some(net.path.clone()),
        tap: "lo".into(),
        files: Vec::new(),
        pipes: Vec::new(),
        version: None,
        only_kept: false,
        confined_by: Default::default(),
        back_end: None,
    }
}

/// What only sleeps.
fn sleeper(net: &PrivateNet) -> Launch {
    Launch {
        argv: ["/bin/sleep", "600"].map(str::to_owned).into(),
        ..does(net, "")
    }
}

/// A VM whose VMM has a user that nobody else has.
fn confined(dir: &Path, launch: Launch) -> (Desired, u32) {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    leave_the_mounts();
    let start = 2_100_000_000 + std::process::id() % 400_000 * 100;
    let user = start + GIVEN.fetch_add(1, Ordering::Relaxed);
    let confined = Confined {
        user,
        vcpu: 1,
        ram_bytes: 64 << 20,
        injected: None,
        files: Vec::new(),
    };
    let desired = Desired {
        confined: Some(confined),
        ..some_vm(dir, Some(launch))
    };
    (desired, user)
}

async fn kill(identity: &Identity) {
    let ProcessState::Alive(alive) = process::open(identity).unwrap() else {
        panic!("it has ended");
    };
    alive.stop(StopSignal::Kill).unwrap();
    alive.ended().await.unwrap();
}

/// Down, as a VM goes: who confines is not known then.
async fn clear(stage: &Vmm, desired: &Desired) {
    let nothing = Desired {
        launch: None,
        confined: None,
        disks: Vec::new(),
        ..desired.clone()
    };
    converge(stage, &nothing).await;
    let above = desired.dir.parent().unwrap();
    let left: Vec<_> = fs::read_dir(above).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn what_a_vmm_has_made_in_its_directory_is_neither_read_nor_in_the_way() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let script = format!(
        "rm {CONFIG}; mkfifo {CONFIG}; mkdir -p launch.json/x .{CONFIG}.new/x process/x {CONSOLE_OLD}/x; ln -s /dev/zero version; touch \"$(printf 'a\\377b')\" made"
    );
    let file = NewFile {
        name: CONFIG.to_owned(),
        text: "{}".to_owned(),
    };
    let launch = Launch {
        files: vec![file],
        ..does(&net, &script)
    };
    let (desired, _) = confined(home.path(), launch);
    let stage = stage(&[home.path()]);
    let (first, _) = converge(&stage, &desired).await;
    assert!(eventually(Duration::from_secs(9), || desired
        .dir
        .join("made")
        .exists()));
    let rest = converge(&stage, &desired).await.1;
    assert_eq!(
        rest,
        Vec::<String>::new(),
        "what it has read is what was noted"
    );

    kill(first.process().unwrap()).await;
    let (_, steps) = converge(&stage, &desired).await;
    assert_eq!(steps, ["start the VMM again: it was killed by SIGKILL"]);
    assert!(eventually(Duration::from_secs(9), || desired
        .dir
        .join("made")
        .exists()));
    clear(&stage, &desired).await;
}

#[tokio::test]
async fn a_child_of_a_vmm_ends_with_it_whatever_it_calls_itself() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let launch = does(&net, "env -i setsid sleep 601 & touch made");
    let (desired, user) = confined(home.path(), launch);
    let stage = stage(&[home.path()]);
    let children = || -> Vec<u32> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_child = |pid: &u32| {
            let owned = fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == user);
            owned && process::argv(*pid).is_ok_and(|argv| argv == ["sleep", "601"])
        };
        pids.filter(is_child).collect()
    };
    let (first, _) = converge(&stage, &desired).await;
    assert!(eventually(Duration::from_secs(9), || children().len() == 1));
    let before = children();
    kill(first.process().unwrap()).await;
    assert_eq!(children(), before, "it does not go by itself");
    converge(&stage, &desired).await;
    assert!(eventually(Duration::from_secs(9), || {
        let now = children();
        now.len() == 1 && now != before
    }));
    clear(&stage, &desired).await;
    assert!(eventually(Duration::from_secs(9), || !user_lives(user)));
}

#[tokio::test]
async fn the_directory_of_a_vmm_has_an_end_and_its_log_is_rotated_in_the_last_of_it() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let fill = "for n in 1 2 3 4 5 6; do head -c 2000000 /dev/zero > f$n; done; while :; do head -c 65536 /dev/zero >> last || break; done";
    let (desired, _) = confined(
        home.path(),
        does(&net, &format!("head -c 1500000 /dev/zero; {fill}")),
    );
    let stage = stage(&[home.path()]);
    converge(&stage, &desired).await;
    let room = || rustix::fs::statvfs(&desired.dir).unwrap();
    assert!(eventually(Duration::from_secs(9), || room().f_bfree == 0));
    assert!(room().f_blocks * room().f_frsize <= RUN_DIR_BYTES);
    assert!(room().f_files < 1000);
    rotate(&desired.dir).unwrap();
    let length = |name: &str| fs::metadata(desired.dir.join(name)).unwrap().len();
    assert!(length(CONSOLE_OLD) >= 1_500_000 && length(CONSOLE) < LOG_LIMIT / 2);
    clear(&stage, &desired).await;
}

const ACL: &str = "system.posix_acl_access";

/// `user::rw-, user:4321:r--, group::r--, mask::r--, other::---` (include/uapi/linux/posix_acl_xattr.h).
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [
        (1, 6, u32::MAX),
        (2, 4, 4321),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, may, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(may.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[tokio::test]
async fn a_disk_is_written_to_and_its_owner_mode_and_acl_are_never_changed() {
    let place = tempfile::tempdir().unwrap();
    for (name, owner, mode) in [
        ("a users", (1234, 1235), 0o640),
        ("roots", (0, 0), 0o600),
        ("of an id of VMMs", (0x7800_0005, 0x7800_0005), 0o600),
    ] {
        let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
        let disk = place.path().join(name);
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        std::os::unix::fs::chown(&disk, Some(owner.0), Some(owner.1)).unwrap();
        fs::set_permissions(&disk, fs::Permissions::from_mode(mode)).unwrap();
        rustix::fs::setxattr(&disk, ACL, &acl(), rustix::fs::XattrFlags::empty()).unwrap();
        let script = format!(
            "printf x | dd of='{0}' conv=notrunc; echo $? > made; chmod 4777 '{0}'; chown 7 '{0}'",
            disk.display()
        );
        let (mut desired, _) = confined(home.path(), does(&net, &script));
        let used = Disk {
            path: disk.clone(),
            access: Access::ReadWrite,
        };
        desired.disks = vec![used.clone()];
        desired.confined.as_mut().unwrap().files = vec![used];
        let all = || {
            let found = fs::metadata(&disk).unwrap();
            let mut acl = [0_u8; 256];
            let length = rustix::fs::getxattr(&disk, ACL, &mut acl[..]);
            let acl = length
                .map(|length| acl[..length].to_vec())
                .unwrap_or_default();
            (found.uid(), found.gid(), found.mode(), acl)
        };
        let before = all();
        let stage = stage(&[place.path()]);
        let (first, _) = converge(&stage, &desired).await;
        let made = || fs::read_to_string(desired.dir.join("made")).unwrap_or_default();
        assert!(
            eventually(Duration::from_secs(9), || made() == "0\n"),
            "{name}: {}",
            made()
        );
        assert_eq!(fs::read(&disk).unwrap()[0], b'x', "{name}");
        assert_eq!(all(), before, "{name}: while it runs");
        kill(first.process().unwrap()).await;
        assert_eq!(all(), before, "{name}: killed");
        converge(&stage, &desired).await;
        assert_eq!(all(), before, "{name}: a second time");
        clear(&stage, &desired).await;
        assert_eq!(all(), before, "{name}: deleted");
    }
}

/// Overlayfs cannot map owners.
#[tokio::test]
async fn where_owners_cannot_be_mapped_a_disks_acl_is_extended_and_put_back_after_delete_and_reboot()
 {
    leave_the_mounts();
    let place = tempfile::tempdir().unwrap();
    let [low, up, work, top] = ["low", "up", "work", "top"].map(|name| place.path().join(name));
    for dir in [&low, &up, &work, &top] {
        fs::create_dir(dir).unwrap();
    }
    let (low, up, work) = (low.display(), up.display(), work.display());
    let options = format!("lowerdir={low},upperdir={up},workdir={work}");
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("x", &top, "overlay", flags, Some(options.as_c_str())).unwrap();
    for (name, has_acl, reboots) in [("a", false, false), ("b", true, false), ("c", true, true)] {
        let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
        let state = tempfile::tempdir().unwrap();
        let disk = top.join(name);
        fs::write(&disk, vec![0; 1 << 20]).unwrap();
        std::os::unix::fs::chown(&disk, Some(1234), Some(1235)).unwrap();
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o640)).unwrap();
        if has_acl {
            rustix::fs::setxattr(&disk, ACL, &acl(), rustix::fs::XattrFlags::empty()).unwrap();
        }
        let all = || {
            let found = fs::metadata(&disk).unwrap();
            let mut acl = [0_u8; 256];
            let length = rustix::fs::getxattr(&disk, ACL, &mut acl[..]);
            let acl = length.map(|length| acl[..length].to_vec());
            (
                found.uid(),
                found.gid(),
                found.mode(),
                acl.unwrap_or_default(),
            )
        };
        let before = all();
        let script = format!(
            "printf x | dd of={0} conv=notrunc; echo $? > made; chmod 4777 {0}",
            disk.display()
        );
        let (mut desired, user) = confined(home.path(), does(&net, &script));
        let used = Disk {
            path: disk.clone(),
            access: Access::ReadWrite,
        };
        desired.disks = vec![used.clone()];
        desired.confined.as_mut().unwrap().files = vec![used];
        let mut places = crate::fixture::places(&[&top]);
        places.disk_dir = state.path().join("disks");
        let stage = Vmm::new(places.clone());
        let (first, _) = converge(&stage, &desired).await;
        let made = || fs::read_to_string(desired.dir.join("made")).unwrap_or_default();
        assert!(
            eventually(Duration::from_secs(9), || made() == "0\n"),
            "{name}: {}",
            made()
        );
        let now = all();
        assert_eq!(
            (now.0, now.1, now.2 & 0o7707),
            (1234, 1235, before.2 & 0o7707),
            "{name}"
        );
        let its: Vec<u8> = [&[2, 0, 6, 0][..], &user.to_le_bytes()].concat();
        assert!(
            now.3.windows(8).any(|entry| entry == its),
            "{name}: {:?}",
            now.3
        );
        let record = places
            .disk_dir
            .join(".owners")
            .join(desired.uid.to_string());
        assert!(record.exists(), "{name}");
        kill(first.process().unwrap()).await;
        if reboots {
            let empty = tempfile::tempdir().unwrap();
            let run = slicectl::owner::RunDir(empty.path().to_owned());
            slicectl::reconcile::vmm::recover_owners(&run, &places.disk_dir).unwrap();
        } else {
            converge(&stage, &desired).await;
            assert_eq!(all(), now, "{name}: a second time");
        }
        clear(&stage, &desired).await;
        assert_eq!(all(), before, "{name}");
        assert!(!record.exists(), "{name}");
    }
}

#[tokio::test]
async fn a_program_behind_a_link_below_another_mount_is_run_under_the_name_it_was_called_by() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    leave_the_mounts();
    // In a copy of the mounts that this thread has for itself.
    rustix::mount::mount(
        "x",
        "/usr/share",
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"mode=755"),
    )
    .unwrap();
    let (real, link) = (Path::new("/usr/share/sleeper"), home.path().join("a name"));
    // By another process, see `test_support::vmm`.
    let mut install = std::process::Command::new("install");
    let installed = install.arg("/bin/sleep").arg(real).status();
    assert!(installed.unwrap().success());
    std::os::unix::fs::symlink(real, &link).unwrap();
    let run = tempfile::tempdir().unwrap();
    let argv = vec![link.display().to_string(), "600".to_owned()];
    let launch = Launch {
        argv: argv.clone(),
        ..does(&net, "")
    };
    let (desired, _) = confined(run.path(), launch);
    let stage = stage(&[home.path(), Path::new("/usr/share")]);
    let (observed, _) = converge(&stage, &desired).await;
    let pid = observed.process().unwrap().pid;
    assert_eq!(process::argv(pid).unwrap(), argv);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let below = mounts.lines().find(|line| line.contains(" /usr/share "));
    let options = below.unwrap().split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|found| found == option), "{options}");
    }
    clear(&stage, &desired).await;
}

#[tokio::test]
async fn one_from_before_there_were_users_is_kept_and_never_started_again() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let old = some_vm(home.path(), Some(sleeper(&net)));
    let stage = stage(&[home.path()]);
    let (running, _) = converge(&stage, &old).await;
    let mut kept = old.clone();
    kept.launch.as_mut().unwrap().only_kept = true;
    kept.launch.as_mut().unwrap().argv = process::argv(running.process().unwrap().pid).unwrap();
    let rest = converge(&stage, &kept).await.1;
    assert_eq!(rest, Vec::<String>::new());
    kill(running.process().unwrap()).await;
    let error = stage.act(&kept, &Action::Launch { after: None }).await;
    let why = error.unwrap_err().source.to_string();
    assert!(why.contains("must be assigned first"), "{why}");
    assert!(stage.observe(&kept).await.unwrap().running.is_empty());
    clear(&stage, &old).await;
}

#[tokio::test]
async fn a_vmm_is_not_spared_as_the_daemon_is_when_memory_is_short() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let ours = Path::new("/proc/self/oom_score_adj");
    let before = fs::read_to_string(ours).unwrap();
    fs::write(ours, "123").unwrap();
    let desired = some_vm(home.path(), Some(sleeper(&net)));
    let stage = stage(&[home.path()]);
    let (observed, _) = converge(&stage, &desired).await;
    fs::write(ours, before.trim()).unwrap();
    let pid = observed.process().unwrap().pid;
    let its = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(its, "0\n");
    clear(&stage, &desired).await;
}
