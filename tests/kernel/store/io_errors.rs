//! A state directory that the system cannot read now is refused, and never taken for a damaged one.
//! Out of scope: a full disk, which is served (`tests/e2e/full_disk.rs`); damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use serde_json::Value;
use slicectl::store::{Opened, Store};

use crate::store::whole::{fill, whole};
use test_support::harness;
use test_support::kernel;

/// A state directory with something in it.
fn filled(dir: &Path) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let (store, _) = Store::open(dir).unwrap();
    runtime.unwrap().block_on(fill(&store));
    let expected = whole(&store);
    store.close();
    // sled writes its snapshot on opening.
    Store::open(dir).unwrap().0.close();
    expected
}

/// What is read on opening. sled names its snapshot anew each time.
const READ: [&str; 7] = ["seal", "format", "db/conf", "db/snap", "db/db", "db", ""];

fn file(dir: &Path, name: &str) -> PathBuf {
    if name != "db/snap" {
        return dir.join(name);
    }
    let entries = fs::read_dir(dir.join("db")).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let snapshot = paths.find(|path| path.to_str().unwrap().contains("/snap."));
    snapshot.expect("a snapshot")
}

fn assert_untouched(dir: &Path, expected: &Value, after: &str) {
    assert!(!dir.join("db.corrupt-1").exists(), "{after}: set aside");
    let (store, opened) = Store::open(dir).unwrap();
    assert_eq!(opened, Opened::Existing, "{after}");
    assert_eq!(&whole(&store), expected, "{after}");
    assert!(store.notes().is_empty(), "{after}: {:?}", store.notes());
    store.close();
}

fn refused(dir: &Path, what: &str) -> String {
    match Store::open(dir) {
        Err(error) => error.to_string(),
        Ok((_, opened)) => panic!("{what}: {opened:?}"),
    }
}

/// A read of our memory at an address where nothing is mapped is EIO, as one of a broken disk is.
#[test]
fn a_file_that_cannot_be_read_is_no_damaged_one() {
    kernel::private_sync(|| {
        let dir = Path::new("/run/state");
        let expected = filled(dir);
        // sled takes the length of its log from the file, and that of this one is 0: there is nothing to read.
        for name in READ
            .iter()
            .filter(|name| file(dir, name).is_file() && **name != "db/db")
        {
            let path = file(dir, name).display().to_string();
            let memory = format!("/proc/{}/mem", std::process::id());
            kernel::run(&format!("mount --bind {memory} {path}"));
            let text = refused(dir, name);
            assert!(text.contains("Input/output error"), "{name}: {text}");
            kernel::run(&format!("umount {path}"));
            assert_untouched(dir, &expected, name);
        }
    });
}

#[test]
fn a_file_that_may_not_be_read_is_no_damaged_one() {
    kernel::private_sync(|| {
        let dir = Path::new("/run/state");
        let expected = filled(dir);
        for name in READ {
            let path = file(dir, name);
            let before = fs::metadata(&path).unwrap().permissions();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
            let text = without_override(|| refused(dir, name));
            assert!(text.contains("Permission denied"), "{name}: {text}");
            fs::set_permissions(&path, before).unwrap();
            assert_untouched(dir, &expected, name);
        }
    });
}

/// As root who is held to permissions, on this thread.
fn without_override<T>(look: impl FnOnce() -> T) -> T {
    let all = capabilities(None).unwrap();
    let mut less = all;
    less.effective
        .remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
    set_capabilities(None, less).unwrap();
    let found = look();
    set_capabilities(None, all).unwrap();
    found
}

#[test]
fn a_daemon_without_file_descriptors_damages_nothing_and_reports_it() {
    harness::empty(|harness| {
        let expected = filled(&harness.state());
        let mut reasons = Vec::new();
        for limit in (9..48).step_by(3) {
            let sliced = harness.sliced();
            let mut limited = Command::new("sh");
            limited
                .args(["-c", "ulimit -n \"$1\"; shift; exec \"$@\"", "sh"])
                .arg(limit.to_string())
                .arg(sliced.get_program())
                .args(sliced.get_args())
                .arg("--once")
                .envs(
                    sliced
                        .get_envs()
                        .filter_map(|(key, value)| Some((key, value?))),
                )
                .stdin(Stdio::null());
            let output = limited.output().unwrap();
            let reported = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !harness.state().join("db.corrupt-1").exists(),
                "{limit}: {reported}"
            );
            if reported.contains("state database") && reported.contains("Too many open files") {
                reasons.push(limit);
            }
            if output.status.success() {
                break;
            }
        }
        assert!(
            !reasons.is_empty(),
            "the database was never what was refused"
        );
        let (store, opened) = Store::open(&harness.state()).unwrap();
        assert_eq!(opened, Opened::Existing);
        let found = whole(&store);
        assert_eq!(found["groups"], expected["groups"]);
        store.close();
    });
}
