//! A VMM and its disks: held while it runs, refused to all others, before anything is started.
//! Out of scope: how disks are made (`tests/kernel/disks.rs`).

use std::path::Path;

use slicectl::host::Kind;
use slicectl::host::image::{Use, hold};
use slicectl::reconcile::OnHost;
use slicectl::reconcile::vmm::{Action, Desired, Vmm};
use slicectl::vmm::{Access, Disk, Launch};

use crate::fixture::{PrivateNet, converge, some_vm};

fn sleeper(net: &PrivateNet, seconds: u32) -> Launch {
    Launch {
        argv: vec!["sleep".into(), seconds.to_string()],
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

fn on_disk(home: &Path, net: &PrivateNet, disk: &Path, access: Access) -> Desired {
    let dir = tempfile::tempdir_in(home).unwrap().keep();
    Desired {
        disks: vec![Disk {
            path: disk.to_owned(),
            access,
        }],
        ..some_vm(&dir, Some(sleeper(net, 600)))
    }
}

fn stopped(desired: &Desired) -> Desired {
    Desired {
        launch: None,
        ..desired.clone()
    }
}

async fn refused(stage: &Vmm, desired: &Desired) {
    stage.act(desired, &Action::CreateRunDir).await.unwrap();
    let start = Action::Launch { after: None };
    let error = stage.act(desired, &start).await.unwrap_err();
    assert_eq!(error.kind, Kind::Busy, "{error}");
    assert!(
        error.source.to_string().contains("in use by process"),
        "{}",
        error.source
    );
    assert!(stage.observe(desired).await.unwrap().running.is_empty());
    assert!(
        !desired.dir.join("process").exists(),
        "not even a birth was tried"
    );
}

#[tokio::test]
async fn two_vmms_never_have_one_disk_to_write_to() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let disk = home.path().join("disk");
    std::fs::write(&disk, vec![0; 8 << 20]).unwrap();
    let other_name = home.path().join("other name");
    std::os::unix::fs::symlink(&disk, &other_name).unwrap();
    let stage = Vmm::default();

    let first = on_disk(home.path(), &net, &disk, Access::ReadWrite);
    let (observed, _) = converge(&stage, &first).await;
    let pid = observed.process().unwrap().pid;
    for access in [Access::ReadOnly, Access::ReadWrite] {
        refused(&stage, &on_disk(home.path(), &net, &other_name, access)).await;
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max file size"))
        .unwrap();
    assert!(limit.contains(&(8_u64 << 20).to_string()), "{limit}");

    converge(&stage, &stopped(&first)).await;
    let second = on_disk(home.path(), &net, &other_name, Access::ReadWrite);
    converge(&stage, &second).await;
    converge(&stage, &stopped(&second)).await;
    hold(&disk, Use::Write).unwrap();
}

#[tokio::test]
async fn many_vmms_read_one_disk() {
    let (net, home) = (PrivateNet::new(), tempfile::tempdir().unwrap());
    let disk = home.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let stage = Vmm::default();
    let readers = [0; 2].map(|_| on_disk(home.path(), &net, &disk, Access::ReadOnly));
    for reader in &readers {
        converge(&stage, reader).await;
    }
    refused(
        &stage,
        &on_disk(home.path(), &net, &disk, Access::ReadWrite),
    )
    .await;
    for reader in &readers {
        converge(&stage, &stopped(reader)).await;
    }
    hold(&disk, Use::Write).unwrap();
}
