//! State and run directories that the version before has written (commit ab6c561, state format 2): nothing of a user's is lost or
//! restarted when this version takes over.
//! Out of scope: refusal of unknown formats (`store::format`).
//!
//! `tests/fixtures/state-2` was written by a daemon with VMs of all modes, among them one that was paused, one that was stopped and one
//! made on demand: `host.tar.gz` has its directories, `vms.json` its answer, `pairs.tsv` the keys and values of its database.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use test_support::harness::{self, Harness, empty};
use test_support::kernel::run;
use test_support::tiny;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/state-2");
/// The directory that the paths of the fixture name; the run directory was `/run/slice`.
const DIR: &str = "/run/upgrade";

/// The directories of the fixture with a boot in between: what was in `/run` is gone.
fn moved_in(test: impl FnOnce(Harness, &[Value]) + Send) {
    empty(|mut harness| {
        let mut builder = tempfile::Builder::new();
        harness.dir = builder
            .prefix("upgrade")
            .rand_bytes(0)
            .tempdir_in("/run")
            .unwrap();
        assert_eq!(harness.dir.path(), Path::new(DIR));
        run(&format!(
            "tar -xzf {FIXTURE}/host.tar.gz -C {DIR} && mv {DIR}/run {DIR}/run-before"
        ));
        std::fs::copy(tiny::kernel(), format!("{DIR}/tiny")).unwrap();
        run("mkdir -p /var/lib/cni && mount -t tmpfs tmpfs /var/lib/cni");
        harness
            .env
            .push(("SLICE_CNI_CONF_DIR", format!("{DIR}/net.d")));
        harness.env.push(("CNI_PATH", "/usr/lib/cni".to_owned()));
        let vms = std::fs::read(format!("{FIXTURE}/vms.json")).unwrap();
        let vms: Value = serde_json::from_slice(&vms).unwrap();
        test(harness, vms["items"].as_array().unwrap());
    });
}

/// What must be the same on both sides of an upgrade.
fn identity(vm: &Value) -> Value {
    let status = &vm["status"];
    let network = &status["network"];
    let keys = ["mode", "ip", "prefix_len", "gateway", "netns", "tap", "mtu"];
    let mut kept = serde_json::json!({
        "metadata": {
            "name": vm["metadata"]["name"],
            "uid": vm["metadata"]["uid"],
            "generation": vm["metadata"]["generation"],
            "created_at": vm["metadata"]["created_at"],
            "finalizers": vm["metadata"]["finalizers"],
        },
        "spec": vm["spec"],
        "power": vm["power"],
        "tags": vm["tags"],
        "ready": status["ready"],
        "firewall": status["firewall"],
        "disk": status["disk"],
        "user": status["vmm"]["user"],
        "state": status["vmm"]["state"],
        "network": keys.map(|key| network[key].clone()),
    });
    if network["mode"] != "cni" {
        // A plugin's veth has a name and a MAC by chance.
        kept["links"] = serde_json::json!([network["host_link"], network["mac"]]);
    }
    kept
}

fn as_before(harness: &Harness, before: &[Value]) {
    let now = |name: &str| harness.get(&format!("vm {name}"));
    for vm in before {
        let name = vm["metadata"]["name"].as_str().unwrap();
        let desired = identity(vm);
        let mut last;
        let deadline = Instant::now() + harness::PATIENCE;
        let same = loop {
            last = identity(&now(name));
            if last == desired || Instant::now() > deadline {
                break last == desired;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(
            same,
            "{name}\n before: {desired:#}\n now: {last:#}\n{}",
            harness.log()
        );
    }
}

/// A file that the version before has written for a VM, as that version would have written it in this boot.
fn in_this_boot(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let record = path.with_file_name("record.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    text.replace(record["boot_id"].as_str().unwrap(), boot.trim())
}

/// The keys of an object and of all objects in it.
fn shape(value: &Value, path: &str, keys: &mut Vec<String>) {
    if let Value::Object(fields) = value {
        for (key, value) in fields {
            let path = format!("{path}.{key}");
            keys.push(path.clone());
            shape(value, &path, keys);
        }
    }
}

fn keys(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    shape(&serde_json::from_str(text).expect("JSON"), "", &mut keys);
    keys
}

#[test]
fn after_a_boot_every_vm_of_the_version_before_is_as_it_was() {
    moved_in(|mut harness, before| {
        harness.start();
        as_before(&harness, before);
        assert_eq!(harness.vms().len(), before.len());
        for reason in ["StateSetAside", "StateLost", "Adopted", "GarbageCollected"] {
            assert_eq!(harness.messages("", reason), [""; 0], "{reason}");
        }
    });
}

#[test]
fn vms_that_run_under_the_version_before_are_adopted_as_they_run() {
    moved_in(|mut harness, before| {
        harness.start();
        as_before(&harness, before);
        // A plugin may have put its jump in front of ours; that is repaired before the daemon is killed.
        harness.settles(Duration::from_secs(1), || harness.messages("", "Drift"));
        // The records of this version are those of the version before, and so the host is as that one has left it.
        harness.kill();
        for vm in before {
            let uid = vm["metadata"]["uid"].as_str().unwrap();
            let [then, now] = [
                PathBuf::from(DIR).join("run-before").join(uid),
                harness.run.join("vm").join(uid),
            ];
            for name in ["record.json", "cni.json", "launch.json"] {
                let (then, now) = (then.join(name), now.join(name));
                // A VM that is stopped is not launched after a boot.
                if !now.exists() && (!then.exists() || name == "launch.json") {
                    continue;
                }
                let (text, found) = (in_this_boot(&then), std::fs::read_to_string(&now).unwrap());
                match name {
                    "record.json" => assert_eq!(text, found, "{}", now.display()),
                    // They name programs, and routes in an order of their own.
                    _ => assert_eq!(keys(&text), keys(&found), "{}", now.display()),
                }
                if name == "record.json" {
                    std::fs::write(&now, text).unwrap();
                }
            }
        }
        let world = harness::world_to_the_last_handle();
        let pids = |harness: &Harness| harness::pids(harness);
        harness.start();
        as_before(&harness, before);
        let running = pids(&harness);
        assert_eq!(running.len(), 1, "guest-1, which is paused");
        harness.stays(Duration::from_secs(1), || harness.messages("", "Drift"));
        assert_eq!(harness.messages("", "Drift"), [""; 0]);
        assert_eq!(harness::world_to_the_last_handle(), world);
        // The state is lost as well: the records alone are enough.
        harness.kill();
        std::fs::remove_dir_all(harness.state().join("db")).unwrap();
        harness.start();
        harness.until("all VMs", || {
            (harness.vms().len() == before.len()).then_some(())
        });
        as_before(&harness, before);
        assert_eq!(pids(&harness), running);
        assert_eq!(harness::world_to_the_last_handle(), world);
    });
}
