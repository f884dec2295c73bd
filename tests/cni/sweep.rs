//! Reservations of host-local that a crash left behind.
//! Not here: what host-local itself does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use slicectl::cni::Network;

use crate::stage::Stage;

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

#[test]
fn a_sweep_removes_what_is_stale_and_leaves_strangers_alone() {
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
        .sweep_host_local(&network, |id| id == "ours-dead");
    let gone = ["10.1.0.2", "10.1.0.3", "10.1.0.6", "fd00::2"];
    assert_eq!(removed.unwrap(), gone.map(|name| folder.join(name)));
    let mut left = before;
    left.retain(|name, _| !gone.contains(&name.as_str()));
    assert_eq!(files(&folder), left);
    assert_eq!(files(&neighbour).len(), 1);
    let again = stage
        .runtime
        .sweep_host_local(&network, |id| id == "ours-dead");
    assert!(again.unwrap().is_empty());
}

#[test]
fn a_sweep_of_what_was_never_used_makes_nothing() {
    let stage = Stage::new();
    let network = network(&stage);
    let removed = stage.runtime.sweep_host_local(&network, |_| true);
    assert!(removed.unwrap().is_empty());
    assert!(!stage.path("data").exists());
}

#[test]
fn a_sweep_waits_for_the_lock_of_host_local() {
    let stage = Stage::new();
    let network = network(&stage);
    let folder = stage.path("data/net");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10.1.0.2"), "dead\r\neth0").unwrap();
    let lock = fs::File::create(folder.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let sweep = scope.spawn(|| stage.runtime.sweep_host_local(&network, |_| true));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(folder.join("10.1.0.2").exists());
        drop(lock);
        assert_eq!(sweep.join().unwrap().unwrap().len(), 1);
    });
}
