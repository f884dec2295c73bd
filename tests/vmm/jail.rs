//! Firecracker under its jailer: what is different from the two other ways to run it.
//! Out of scope: what is the same (`real`); under the real daemon (`tests/vmm/tiny/jail.rs`).

use slicectl::api::vm::Hypervisor;
use slicectl::host::process::{self, Exit, ProcessState, StopSignal};
use slicectl::host::{Kind, image};
use slicectl::reconcile::vmm::{Action, CONSOLE, LABEL_VAR, RUN_DIR_VAR, Vmm};
use slicectl::reconcile::{OnHost, Reconcile};
use slicectl::vmm::{Access, ConfinedBy, Disk, Programs};

use crate::fixture::converge;
use crate::real::{As, assert_ends, console, ended, place};
use test_support::vmm::{double_of, static_double_of};

/// A jailer closes what it was born with, so a VMM holds its disks through its standard error.
#[tokio::test]
async fn a_jailed_firecracker_holds_its_disks_until_it_ends() {
    let place = place(Hypervisor::Firecracker, As::Jailed).await;
    let path = place.dir.path().join("root.img");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let disk = Disk {
        path: path.clone(),
        access: Access::ReadWrite,
    };
    let desired = place.desired(|_, slot| slot.disks.push(disk));
    // The lock alone: a real one is seen to write to it, too.
    let is_free = || {
        let file = std::fs::File::open(&path).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok()
    };
    let identity = place.boot(&desired).await;
    assert!(!is_free());
    let ProcessState::Alive(alive) = process::open(&identity).unwrap() else {
        panic!("it has ended: {}", console(&desired));
    };
    alive.stop(StopSignal::Kill).unwrap();
    alive.ended().await.unwrap();
    assert!(is_free(), "as soon as it has ended");
    let other = image::hold(&path, image::Use::Write).unwrap();
    let launch = Action::Launch { after: None };
    let error = place.stage.act(&desired, &launch).await.unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{}", error.source);
    drop(other);
    place.stage.act(&desired, &launch).await.unwrap();
    assert!(!is_free());
    place.clear(desired).await;
    assert!(is_free());
}

/// What its record would have told can be lost: its root says whose it is.
#[tokio::test]
async fn a_jailed_firecracker_is_found_without_its_record() {
    let place = place(Hypervisor::Firecracker, As::Jailed).await;
    let desired = place.desired(|_, _| {});
    let identity = place.boot(&desired).await;
    let found = process::find(LABEL_VAR).unwrap();
    let own = found.iter().find(|found| found.identity == identity);
    assert_eq!(own.unwrap().value, desired.label.to_string());
    let dir = process::env_var(identity.pid, RUN_DIR_VAR).unwrap();
    assert_eq!(dir.as_deref(), desired.dir.to_str());
    std::fs::remove_file(desired.record()).unwrap();
    let (running, steps) = converge(&place.stage, &desired).await;
    assert_eq!(running.process(), Some(&identity));
    assert_eq!(steps.len(), 1, "it is noted again: {steps:?}");
    std::fs::remove_file(desired.record()).unwrap();
    place.clear(desired).await;
    assert!(ended(&identity).is_some());
}

#[tokio::test]
async fn what_a_jailer_complains_of_is_the_reason() {
    let mut place = place(Hypervisor::Firecracker, As::Jailed).await;
    // The header of a program, and no program.
    let mut header = [0_u8; 64];
    header[..5].copy_from_slice(b"\x7fELF\x02");
    place.program.path = place.dir.path().join("firecracker-of-nothing");
    std::fs::write(&place.program.path, header).unwrap();
    let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&place.program.path, runs).unwrap();
    let desired = place.desired(|_, _| {});
    let create = place.stage.act(&desired, &Action::CreateRunDir).await;
    create.unwrap();
    let launch = Action::Launch { after: None };
    let error = place.stage.act(&desired, &launch).await.unwrap_err();
    let why = error.source.to_string();
    assert!(why.contains("Failed to exec into Firecracker"), "{why}");
    assert!(why.contains("exited with status 1"), "{why}");
    assert!(
        console(&desired).contains("Failed to exec"),
        "the log tells it, too"
    );
    place.clear(desired).await;
}

/// While the jailer works it has other words and another root: a daemon that comes back in between must not take it for a stranger.
#[tokio::test]
async fn a_jailed_firecracker_is_what_was_desired_at_every_moment_of_its_start() {
    let place = place(Hypervisor::Firecracker, As::Jailed).await;
    let desired = place.desired(|_, _| {});
    let create = place.stage.act(&desired, &Action::CreateRunDir).await;
    create.unwrap();
    for _ in 0..3 {
        let launch = Action::Launch { after: None };
        let start = async {
            loop {
                match place.stage.act(&desired, &launch).await {
                    // Whoever reads the record holds it for a moment.
                    Err(error) if error.kind == Kind::Busy => tokio::task::yield_now().await,
                    started => break started.unwrap(),
                }
            }
        };
        let look = async {
            let daemon = Vmm::default();
            let mut words = std::collections::BTreeSet::new();
            while words.is_empty() || !console(&desired).contains("ready") {
                let observed = daemon.observe(&desired).await.unwrap();
                for running in &observed.running {
                    words.insert(process::argv(running.process.resource().pid).unwrap());
                }
                for action in Vmm::plan(&desired, &observed).unwrap() {
                    let harmless = match observed.running.as_slice() {
                        [] => matches!(action, Action::Launch { .. } | Action::CreateRunDir),
                        [_] => matches!(action, Action::Record(_)),
                        _ => false,
                    };
                    assert!(harmless, "{action}: {words:?} {:?}", observed.running);
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(start, look);
        let observed = place.stage.observe(&desired).await.unwrap();
        let identity = observed.process().unwrap().clone();
        let ProcessState::Alive(alive) = process::open(&identity).unwrap() else {
            panic!("it has ended: {}", console(&desired));
        };
        alive.stop(StopSignal::Kill).unwrap();
        alive.ended().await.unwrap();
        std::fs::remove_file(desired.dir.join(CONSOLE)).unwrap();
    }
    place.clear(desired).await;
}

#[tokio::test]
async fn the_oldest_jailer_gets_no_newer_argument() {
    let mut place = place(Hypervisor::Firecracker, As::Jailed).await;
    let program = static_double_of("firecracker-1.10", place.dir.path());
    let jailer = double_of("jailer-1.10", place.dir.path());
    let programs = Programs::new(crate::fixture::places(&[place.dir.path()]));
    let got = programs.get(Hypervisor::Firecracker, Some(&program)).await;
    place.program = got.unwrap();
    let by = programs.confinement(Some(&jailer), &place.program).await;
    place.confined_by = by.unwrap();
    assert!(matches!(&place.confined_by, ConfinedBy::Jailer(it) if it.path == jailer));
    let desired = place.desired(|_, slot| slot.connection.mtu = 1400);
    let identity = place.boot(&desired).await;
    place.ask(&desired).await;
    assert_ends(&identity, Exit::Code(0));
    place.clear(desired).await;
}
