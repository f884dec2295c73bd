//! Images, disks and other files of the hosts: a VM runs only where its files can be used.
//! Out of scope: what is refused on one host.

use std::path::{Path, PathBuf};

use serde_json::Value;
use test_support::programs;

use super::super::hosts::{Fleet, fleet};
use super::started::kept;
use super::{group, nothing_left, ready};

/// A sparse file.
fn file(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(4 << 20).expect("its size");
    path
}

/// The state directory of a new host has no disks, and not the directory of the disks.
#[test]
fn vms_with_copies_of_an_image_run_on_nodes_that_had_none() {
    let programs = tempfile::tempdir_in(programs::scratch()).expect("a directory");
    let image = file(programs.path(), "image");
    fleet(2, 1, |fleet| {
        let manifest = kept(programs.path()).replace("count: 1", "count: 2");
        let image = format!("image: {}\n      agent:", image.display());
        fleet.apply(&manifest.replace("agent:", &image));
        ready(fleet, 2);
        assert_eq!(fleet.counts(), [1, 1]);
        fleet.ctl("delete hg web --fleet --wait=60s");
        nothing_left(fleet);
    });
}

/// The reason for which the VM `web-1` is pending.
fn pending(fleet: &Fleet) -> Option<String> {
    let vms = fleet.get("vms --fleet")?;
    let vm = vms.first().filter(|vm| vm["state"] == "Pending")?;
    vm["message"].as_str().map(str::to_owned)
}

/// The file exists on both hosts, since they have one file system.
#[test]
fn a_vm_runs_only_on_nodes_that_use_all_of_its_files() {
    let programs = tempfile::tempdir_in(programs::scratch()).expect("a directory");
    fleet(2, 2, |fleet| {
        let dir = |host: usize| fleet.hosts[host].harness.dir().to_owned();
        for (at, (field, host)) in [
            ("image", 1),
            ("initrd_file", 0),
            ("userdata_file", 1),
            ("disk", 0),
        ]
        .into_iter()
        .enumerate()
        {
            let path = file(&dir(host), field);
            let line = match field {
                "disk" => format!("disks: [{{path: {}, read_only: true}}]", path.display()),
                _ => format!("{field}: {}", path.display()),
            };
            let agent = match field {
                "userdata_file" => "baked",
                _ => "none",
            };
            let manifest = kept(programs.path())
                .replace("agent: none", &format!("agent: {agent}\n      {line}"))
                .replace("count: 1", "count: 2");
            fleet.apply(&manifest);
            let vms = ready(fleet, 2);
            let expected = fleet.hosts[host].name;
            let is_there = |vm: &Value| vm["node"] == expected;
            assert!(vms.iter().all(is_there), "{at} {field}: {vms:?}");
            fleet.ctl("delete hg web --fleet --wait=60s");
        }
        // A file that every user may replace is used by no node.
        let path = file(&dir(0), "shared");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&path, mode).expect("its mode");
        let line = format!("image: {}\n      agent:", path.display());
        fleet.apply(&kept(programs.path()).replace("agent:", &line));
        fleet.until("it is pending", |fleet| {
            let reason = pending(fleet)?;
            let expected = "2 image, kernel or disk missing or not allowed";
            reason.contains(expected).then_some(())
        });
        fleet.apply(&group("web", 1, ""));
        ready(fleet, 1);
    });
}
