//! Which VMs the file of the guard has, after each thing that may have happened to the store or to the file.
//! Out of scope: the guard ([`crate::fleet::fence`]).

use std::path::PathBuf;
use std::process::{Child, Command};

use super::*;
use crate::fleet::agent::fence_file::{Content, Ending, FILE, FenceWriter, users};
use crate::fleet::contact::{Boottime, Contact};
use crate::fleet::fence::{FenceFile, Guarded, VmmUser};

const BOOT: &str = "boot-1";

fn contact() -> Contact {
    Contact::new(
        None,
        Some(Boottime(Duration::from_secs(100))),
        Boottime(Duration::from_secs(100)),
    )
}

fn guarded(number: u128, user: u32, is_ending: bool) -> Guarded {
    Guarded {
        uid: uid(number),
        user: VmmUser(user),
        stop: vm(1).stop.expect("times"),
        is_ending,
    }
}

fn write(writer: &FenceWriter, guarded: Vec<Guarded>, knows: impl Fn(u32) -> bool) {
    let written = writer.write(|before| Content {
        contact: contact(),
        guarded,
        unknown: before
            .iter()
            .filter(|vm| !knows(vm.user.0))
            .copied()
            .collect(),
    });
    written.expect("written");
}

fn stored(dir: &Path) -> Vec<(u128, u32)> {
    let content = std::fs::read(dir.join(FILE)).expect("a file");
    let file = FenceFile::decode(&content).expect("a valid file");
    file.vms
        .iter()
        .map(|vm| (vm.uid.0.as_u128(), vm.user.0))
        .collect()
}

/// A process of another user, which ends with the value.
struct Process(Child);

impl Process {
    fn of(user: u32) -> Self {
        use std::os::unix::process::CommandExt as _;
        let child = Command::new("sleep").arg("60").uid(user).spawn();
        Self(child.expect("sleep"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A user that runs nothing: of this process, so that tests beside this one have others.
fn unused_user(number: u32) -> u32 {
    1_900_000_000 + (std::process::id() % 100_000) * 16 + number
}

#[test]
fn entries_of_vms_that_the_store_has_lost_stay_while_their_processes_run() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let [running, ended, reused] = [0, 1, 2].map(unused_user);
    let all = || [(1, running), (2, ended), (3, reused)].map(|(vm, user)| guarded(vm, user, false));
    write(&FenceWriter::new(dir.path(), BOOT), all().into(), |_| true);
    assert_eq!(users(dir.path(), BOOT), [running, ended, reused].into());
    assert!(
        users(dir.path(), "boot-2").is_empty(),
        "the users of another boot"
    );
    let processes = [running, reused].map(Process::of);
    // Another daemon without them in its store; a VM of its own has one of the users.
    let writer = FenceWriter::new(dir.path(), BOOT);
    write(&writer, Vec::new(), |user| user == reused);
    assert_eq!(stored(dir.path()), [(1, running)]);
    let guard = writer.guard();
    assert_eq!((guard.runs, guard.vms), (false, [uid(1)].into()));
    drop(processes);
    write(&writer, Vec::new(), |_| false);
    assert_eq!(stored(dir.path()), []);
}

#[test]
fn a_file_that_cannot_be_read_is_replaced_also_by_one_without_vms() {
    let variants: [(&str, Option<&[u8]>); 4] = [
        ("none", None),
        ("damaged", Some(b"{\"version\": 1")),
        ("too new", Some(b"{\"version\": 99}")),
        ("empty", Some(b"")),
    ];
    for (name, content) in variants {
        let dir = tempfile::tempdir().expect("a directory");
        let path: PathBuf = dir.path().join(FILE);
        if let Some(content) = content {
            std::fs::write(&path, content).expect("written");
        }
        let writer = FenceWriter::new(dir.path(), BOOT);
        write(&writer, Vec::new(), |_| false);
        assert_eq!(path.exists(), content.is_some(), "{name}");
        if content.is_some() {
            assert_eq!(stored(dir.path()), [], "{name}");
        }
        let before = std::fs::metadata(&path).and_then(|it| it.modified()).ok();
        write(&writer, Vec::new(), |_| false);
        let after = std::fs::metadata(&path).and_then(|it| it.modified()).ok();
        assert_eq!(before, after, "{name}: it is not written again");
    }
}

#[tokio::test]
async fn vms_that_are_about_to_end_do_not_get_more_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    run(&store, &[put_group(1, 128), add(1), add(2)]).await;
    for index in [1, 2] {
        let local = create(&store, index).await;
        let assigned = store.write(|txn| txn.put_vmm_id(local, 1_000 + index));
        let assigned: Result<(), Error> = assigned.await;
        assigned.expect("stored");
    }
    for (ending, expected) in [
        (Ending::These([uid(2)].into()), [false, true]),
        (Ending::These([].into()), [false, false]),
        (Ending::All, [true, true]),
    ] {
        let content = store.read(|world| Content::of(world, contact(), &[], &ending));
        let found = content.guarded.iter();
        let found: Vec<_> = found.map(|vm| (vm.uid, vm.user.0, vm.is_ending)).collect();
        assert_eq!(
            found,
            [(uid(1), 1_001, expected[0]), (uid(2), 1_002, expected[1])]
        );
    }
    store.close();
}
