//! The programs of VMMs: their versions, which they are asked for in a confinement, and which jailer can start which program.
//! Out of scope: where programs are searched (the unit tests of the module); what may be named (`named`).

use std::path::Path;

use slicectl::api::vm::Hypervisor;
use slicectl::vmm::{Program, Programs, Version};

use crate::fixture::places;

#[tokio::test]
async fn a_named_jailer_must_be_usable_and_an_unusable_one_in_path_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let [fc, jailer] = ["firecracker", "jailer"].map(|name| dir.path().join(name));
    let programs = Programs::new(places(&[dir.path()]));
    let named = async |version| {
        make(&jailer, version);
        let firecracker = Program {
            path: fc.clone(),
            version: Version::new(1, 12),
        };
        let found = programs.confinement(Some(&jailer), &firecracker).await;
        found.map(|by| by.to_string())
    };
    make(&fc, "Firecracker v1.12.0");
    let why = named("Jailer v1.9.0").await.unwrap_err();
    assert!(why.contains("1.9") && why.contains("1.12"), "{why}");
    let why = named("Jailer v1.12.1").await.unwrap_err();
    assert!(why.contains("dynamically"), "{why}");
    std::fs::write(&fc, STATIC).unwrap();
    assert_eq!(named("Jailer v1.12.1").await, Ok("jailer 1.12".to_owned()));
    std::fs::rename(&fc, dir.path().join("fc")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("fc"), &fc).unwrap();
    let why = named("Jailer v1.12.1").await.unwrap_err();
    assert!(why.contains("rename"), "{why}");
    std::fs::remove_file(&jailer).unwrap();
    let gone = Program {
        path: fc.clone(),
        version: Version::new(1, 12),
    };
    let why = programs.confinement(Some(&jailer), &gone).await;
    assert!(why.unwrap_err().contains("jailer_bin"));
}

/// The header of an ELF program without segments.
const STATIC: [u8; 64] = {
    let mut header = [0; 64];
    (header[0], header[1], header[2], header[3]) = (0x7f, b'E', b'L', b'F');
    (header[4], header[5], header[54]) = (2, 1, 56);
    header
};

#[tokio::test]
async fn the_version_is_queried_again_when_the_file_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fc");
    let programs = Programs::new(places(&[dir.path()]));
    for (text, minor) in [("Firecracker v1.9.0", 9), ("Firecracker v1.15.1", 15)] {
        make(&path, text);
        let got = programs.get(Hypervisor::Firecracker, Some(&path)).await;
        assert_eq!(got.unwrap().version, Version::new(1, minor));
    }
    make(&path, "nonsense here");
    let why = programs.get(Hypervisor::Firecracker, Some(&path)).await;
    assert!(why.unwrap_err().contains("nonsense"));
}

/// Another process writes the file: a child of this one could inherit a writable descriptor, and the exec would fail with ETXTBSY.
fn make(path: &Path, output: &str) {
    let script = "printf '#!/bin/sh\\necho %s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let made = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(path)
        .arg(output)
        .status();
    assert!(made.unwrap().success());
}
