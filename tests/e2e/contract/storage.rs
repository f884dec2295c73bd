//! The disk of the state directory: no answer precedes it, and what it does not accept is an error that changes nothing.
//! Out of scope: what is on the disk after a power failure (`kernel`: `store`).

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::json;
use test_support::harness::{Harness, empty, slots};
use test_support::kernel::run;

use super::client::{Answer, Api};

/// How long no request may be answered while the disk accepts no write.
const STALL: Duration = Duration::from_secs(2);

/// A file system that is thawed and unmounted at the end, however the test ends: a frozen one cannot be.
struct Disk(PathBuf);

impl Disk {
    /// Mounts an ext4 of 64 MiB on the state directory.
    fn mount(harness: &Harness) -> Self {
        let state = harness.state();
        let path = state.display();
        run(&format!(
            "mkdir -p {path}; truncate -s 64M /run/disk; mkfs.ext4 -q /run/disk; mount -o loop /run/disk {path}"
        ));
        Self(state)
    }

    fn freeze(&self) {
        run(&format!("fsfreeze -f {}", self.0.display()));
    }

    fn thaw(&self) {
        run(&format!("fsfreeze -u {}", self.0.display()));
    }

    /// Leaves no space, not even for a small file.
    fn fill(&self) {
        let path = self.0.display();
        run(&format!(
            "dd if=/dev/zero of={path}/filler bs=1M status=none || dd if=/dev/zero of={path}/filler2 bs=1 status=none || true"
        ));
    }

    fn make_space(&self) {
        let path = self.0.display();
        run(&format!("rm -f {path}/filler {path}/filler2"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = self.0.display();
        run(&format!("fsfreeze -u {path} 2>/dev/null || true"));
    }
}

/// VMs and secrets on a disk of their own, for one request of each kind that changes something.
fn with_disk(test: impl FnOnce(&mut Harness, &Api, &Disk) + Send) {
    empty(|mut harness| {
        let disk = Disk::mount(&harness);
        harness.start();
        harness.apply(&slots(0, "allow: [10.0.0.0/8]"));
        let api = Api::of(&harness);
        for name in ["tagged", "deleted", "removed", "pulled"] {
            let body = json!({ "hostname": name });
            assert_eq!(api.post("/hostgroup/sandbox/nodes", &body).status, 200);
        }
        for name in ["changed", "dropped", "replaced"] {
            let body = json!({ "name": name, "data": "eA==" });
            assert_eq!(api.post("/secrets", &body).status, 201);
        }
        test(&mut harness, &api, &disk);
        harness.stop();
        drop(disk);
        run(&format!("umount {}", harness.state().display()));
    });
}

/// Every request that changes stored objects, with the status of its success. In both APIs.
const CHANGES: [(&str, &str, &str, u16); 12] = [
    (
        "POST",
        "/hostgroup/sandbox/nodes",
        r#"{"hostname": "one"}"#,
        200,
    ),
    ("PATCH", "/vm/tagged/tags", r#"{"add": ["x"]}"#, 200),
    ("DELETE", "/hostgroup/sandbox/nodes/deleted", "", 200),
    (
        "POST",
        "/secrets",
        r#"{"name": "new", "data": "eA=="}"#,
        201,
    ),
    ("PATCH", "/secrets/changed", r#"{"data": "eXk="}"#, 200),
    ("DELETE", "/secrets/dropped", "", 200),
    ("POST", "/v1/groups/sandbox/vms", r#"{"name": "two"}"#, 201),
    ("DELETE", "/v1/vms/removed", "", 204),
    ("DELETE", "/v1/objects/vm/pulled", "", 204),
    (
        "POST",
        "/v1/secrets",
        r#"{"name": "other", "data": "eA=="}"#,
        201,
    ),
    ("PATCH", "/v1/secrets/replaced", r#"{"data": "eXk="}"#, 200),
    (
        "POST",
        "/v1/apply",
        r#"{"sources": [{"name": "m.yaml", "text": "config: {hypervisor: none, host_groups: [{name: late, count: 0, vcpu: 1, ram_mb: 128, network: {mode: isolated, range: 169.254.108.0/22}}]}"}]}"#,
        200,
    ),
];

fn send(api: &Api, (method, path, body, _): (&str, &str, &str, u16)) -> Answer {
    api.send(method, path, Some(body).filter(|body| !body.is_empty()))
}

#[test]
fn no_answer_precedes_the_disk() {
    with_disk(|_, api, disk| {
        disk.freeze();
        std::thread::scope(|scope| {
            let (sender, answers) = mpsc::channel();
            for change in CHANGES {
                let sender = sender.clone();
                scope.spawn(move || {
                    let answer = send(api, change);
                    sender.send((change, answer)).expect("the test goes on");
                });
            }
            drop(sender);
            let early = answers.recv_timeout(STALL);
            // A read of what is on the disk does not wait.
            let read = api.get("/info").status;
            disk.thaw();
            assert_eq!(early.err(), Some(RecvTimeoutError::Timeout));
            assert_eq!(read, 200);
            let mut count = 0;
            for (change, answer) in answers {
                assert_eq!(answer.status, change.3, "{change:?}: {answer:?}");
                count += 1;
            }
            assert_eq!(count, CHANGES.len());
        });
    });
}

#[test]
fn a_full_disk_refuses_every_change_with_the_cause_and_loses_nothing() {
    with_disk(|harness, api, disk| {
        let lists = |api: &Api| [api.get("/nodes").json(), api.get("/secrets").json()];
        let tags = || api.get("/vm/tagged/tags").json();
        let before = (lists(api), tags());
        disk.fill();
        // To remove the file of a secret needs no space.
        let needs_space = |change: &&(_, &str, _, _)| change.1 != "/secrets/dropped";
        for &change in CHANGES.iter().filter(needs_space) {
            let answer = send(api, change);
            assert!(answer.status >= 500, "{change:?}: {answer:?}");
            let text = answer.text();
            assert!(
                text.contains("No space left on device"),
                "{change:?}: {text}"
            );
        }
        assert_eq!((lists(api), tags()), before);
        harness.kill();
        disk.make_space();
        harness.start();
        assert_eq!((lists(api), tags()), before, "after a restart");
        for change in CHANGES {
            let answer = send(api, change);
            assert_eq!(answer.status, change.3, "{change:?}: {answer:?}");
        }
        let left = fs::read_dir(harness.state().join("secrets")).expect("the secrets");
        let names: Vec<_> = left
            .map(|entry| entry.expect("a file").file_name())
            .collect();
        assert_eq!(names.len(), 4, "{names:?}");
    });
}
