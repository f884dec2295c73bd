//! Reservations of host-local that a crash left behind.
//! Out of scope: what host-local itself does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde_json::json;
use slicectl::cni::Network;

use crate::cni::stage::Stage;
use test_support::descriptors::copy_of;

fn network(stage: &Stage) -> Network {
    let ipam =
        json!({"type": "host-local", "dataDir": stage.path("data"), "subnet": "10.1.0.0/16"});
    let config = json!({
        "cniVersion": "1.0.0", "name": "net",
        "plugins": [{"type": "one", "ipam": ipam}, {"type": "two", "ipam": {"type": "static"}}, {"type": "three", "ipam": ipam}]
    });
    stage.conf("10.conflist", &config);
    stage.runtime.find("net").unwrap()
}

/// Name to content, without the lock.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_name() != "lock")
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read_to_string(entry.path()).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn a_sweep_removes_what_is_stale_and_leaves_strangers_alone() {
    let stage = Stage::new();
    let network = network(&stage);
    let folder = stage.path("data/net");
    let neighbour = stage.path("data/other");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(&neighbour).unwrap();
    let put = |name: &str, content: &str| fs::write(folder.join(name), content).unwrap();
    put("10.1.0.2", "ours-dead\r\neth0");
    put("10.1.0.3", "ours-dead\r\neth1");
    put("10.1.0.4", "ours-alive\r\neth0");
    put("10.1.0.5", "stranger\r\neth0");
    put("10.1.0.6", "ours-dead");
    put("10.1.0.7", "ours-dead-not\r\neth0");
    put("10.1.0.8", "");
    put("10.1.0.9", "stranger\r\nours-dead");
    put("fd00::2", "ours-dead\neth0");
    put("last_reserved_ip.0", "10.1.0.9");
    put("ours-dead", "ours-dead\r\neth0");
    fs::write(neighbour.join("10.1.0.2"), "ours-dead\r\neth0").unwrap();
    let before = files(&folder);
    let removed = stage
        .runtime
        .sweep_host_local(&network, || |id: &str| id == "ours-dead")
        .await;
    let gone = ["10.1.0.2", "10.1.0.3", "10.1.0.6", "fd00::2"];
    assert_eq!(removed.unwrap(), gone.map(|name| folder.join(name)));
    let mut left = before;
    left.retain(|name, _| !gone.contains(&name.as_str()));
    assert_eq!(files(&folder), left);
    assert_eq!(files(&neighbour).len(), 1);
    let again = stage
        .runtime
        .sweep_host_local(&network, || |id: &str| id == "ours-dead")
        .await;
    assert!(again.unwrap().is_empty());
}

#[tokio::test]
async fn a_sweep_of_what_was_never_used_makes_nothing() {
    let stage = Stage::new();
    let network = network(&stage);
    let removed = stage
        .runtime
        .sweep_host_local(&network, || |_: &str| true)
        .await;
    assert!(removed.unwrap().is_empty());
    assert!(!stage.path("data").exists());
}

/// A folder with a reservation of a container that is gone, and its lock in somebody's hands.
fn locked(stage: &Stage) -> (PathBuf, File) {
    let folder = stage.path("data/net");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10.1.0.2"), "dead\r\neth0").unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    (folder.join("10.1.0.2"), lock)
}

#[tokio::test(flavor = "current_thread")]
async fn a_sweep_waits_for_the_lock_of_host_local_and_another_task_goes_on_meanwhile() {
    let stage = Stage::new();
    let network = network(&stage);
    let (reserved, lock) = locked(&stage);
    let seen = reserved.clone();
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        let stood = seen.exists();
        drop(lock);
        stood
    });
    let steps = Arc::new(AtomicU32::new(0));
    let other = Arc::clone(&steps);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            other.fetch_add(1, Ordering::Relaxed);
        }
    });
    let swept = stage.runtime.sweep_host_local(&network, || |_: &str| true);
    assert_eq!(swept.await.unwrap(), [reserved]);
    assert!(holder.join().unwrap(), "it did not wait");
    // There is one thread: were it blocked, there would be none.
    let steps = steps.load(Ordering::Relaxed);
    assert!(steps >= 10, "the other task has come {steps} steps far");
}

#[tokio::test]
async fn who_is_stale_is_evaluated_once_after_all_that_is_reserved_was_read_and_under_the_lock() {
    let stage = Stage::new();
    let network = network(&stage);
    let (reserved, lock) = locked(&stage);
    fs::write(reserved.with_file_name("10.1.0.3"), "new\r\neth0").unwrap();
    drop(lock);
    let asked = std::cell::Cell::new(0);
    let judged = || {
        asked.set(asked.get() + 1);
        // The lock is held, and what is reserved from here on, in spite of it, is judged the next time.
        let lock = File::open(reserved.with_file_name("lock")).unwrap();
        let taken = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(taken, Err(rustix::io::Errno::WOULDBLOCK));
        fs::write(reserved.with_file_name("10.1.0.4"), "dead\r\neth0").unwrap();
        |id: &str| id == "dead"
    };
    let removed = stage.runtime.sweep_host_local(&network, judged).await;
    assert_eq!(removed.unwrap(), std::slice::from_ref(&reserved));
    assert_eq!(asked.get(), 1, "once for a folder");
    let left = files(reserved.parent().unwrap());
    assert_eq!(
        left.into_keys().collect::<Vec<_>>(),
        ["10.1.0.3", "10.1.0.4"]
    );
}

#[tokio::test]
async fn the_lock_is_free_after_a_sweep_although_a_forked_child_has_its_descriptor() {
    let stage = Stage::new();
    let network = network(&stage);
    let (reserved, lock) = locked(&stage);
    let path = reserved.with_file_name("lock");
    drop(lock);
    let copy = std::cell::RefCell::new(None);
    let stale = || {
        copy.replace(Some(copy_of(&path)));
        |_: &str| true
    };
    let removed = stage.runtime.sweep_host_local(&network, stale).await;
    assert_eq!(removed.unwrap(), std::slice::from_ref(&reserved));
    assert!(copy.borrow().is_some());
    let lock = File::open(&path).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
}
