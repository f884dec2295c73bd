//! What the daemon has answered is on the disk after a power failure at the next moment, and the next daemon goes on with it.
//! Out of scope: damage; the store alone (`tests/kernel/store/power.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use slicectl::store::{Opened, Store};

use test_support::harness::{self, Harness, group, slots};
use test_support::power::{Cache, Disk};

/// What is in a state directory.
#[derive(Debug, PartialEq)]
struct State {
    /// Groups that are not being deleted, with their count, policy and orders.
    groups: BTreeMap<String, (u32, String, Vec<String>)>,
    vms: Vec<String>,
    /// VMs with a forced deletion.
    forced: Vec<String>,
    leases: BTreeMap<String, String>,
}

impl State {
    fn at(dir: &Path) -> Self {
        let (store, opened) = Store::open(dir).unwrap();
        assert_eq!(opened, Opened::Existing);
        let state = store.read(|world| {
            let living = world.groups().filter(|group| !group.meta.deleting);
            Self {
                groups: living
                    .map(|group| {
                        let policy = serde_json::to_string(&group.spec.template.network).unwrap();
                        let orders = group.orders.values().map(|order| order.name.to_string());
                        let held = (group.spec.count, policy, orders.collect());
                        (group.meta.name.to_string(), held)
                    })
                    .collect(),
                vms: world.vms().map(|vm| vm.meta.name.to_string()).collect(),
                forced: {
                    let forced = world.vms().filter(|vm| vm.meta.deleting && vm.meta.forced);
                    forced.map(|vm| vm.meta.name.to_string()).collect()
                },
                leases: world
                    .leases()
                    .map(|lease| (lease.name.to_string(), lease.address.ip().to_string()))
                    .collect(),
            }
        });
        store.close();
        state
    }
}

/// The leases that the daemon says there are.
fn leases(harness: &Harness) -> BTreeMap<String, String> {
    let list = harness.get("leases");
    let items = list["items"].as_array().expect("items").iter();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    items
        .map(|lease| (text(&lease["metadata"]["name"]), text(&lease["ip"])))
        .collect()
}

/// What the next boot would find if the power failed now. The daemon stands still while the disk is copied: only a copy that is
/// made in no time is one.
fn cut(harness: &Harness, disk: &Disk) -> [State; 2] {
    harness::signal(harness.pid(), Signal::STOP);
    // What the kernel has been given before is written meanwhile.
    std::thread::sleep(Duration::from_millis(10));
    let images = [Cache::Lost, Cache::Written].map(|cache| disk.cut("daemon", cache));
    harness::signal(harness.pid(), Signal::CONT);
    images.map(|image| image.boot(State::at))
}

#[test]
fn what_was_answered_is_there_after_a_power_failure() {
    harness::empty(|mut harness| {
        let disk = Disk::mount(&harness.state());
        harness.start();
        let long: String = (0..1024)
            .map(|n| format!("10.{}.{}.0/24, ", n / 256, n % 256))
            .collect();
        let manifests = [
            (
                "a group",
                slots(2, "drop: [192.168.1.0/24]"),
                "192.168.1.0/24",
            ),
            (
                "another policy",
                slots(2, "drop: [192.168.2.0/24]"),
                "192.168.2.0/24",
            ),
            (
                "a long list",
                slots(2, &format!("drop: [{}]", long.trim_end_matches(", "))),
                "10.3.255.0/24",
            ),
            (
                "a larger group",
                slots(5, "drop: [192.168.3.0/24]"),
                "192.168.3.0/24",
            ),
        ];
        for (what, manifest, word) in manifests {
            let path = harness.write("manifest.yaml", &manifest);
            harness.ctl(&format!("apply -f {path}"));
            for state in cut(&harness, &disk) {
                let (_, policy, _) = &state.groups["sandbox"];
                assert!(policy.contains(word), "{what}: {state:?}");
            }
            harness.ctl("wait hg/sandbox --for ready --timeout 60s");
            let reported = leases(&harness);
            assert!(reported.len() >= 2, "{reported:?}");
            for state in cut(&harness, &disk) {
                assert_eq!(state.leases, reported, "{what}");
                assert_eq!(state.vms.len(), reported.len(), "{what}");
            }
        }
        harness.ctl("vm add sandbox --name own");
        for state in cut(&harness, &disk) {
            assert_eq!(state.groups["sandbox"].2, ["own"], "an order");
        }
        harness.ctl("wait vm/own --for ready --timeout 60s");
        let reported = leases(&harness);
        for state in cut(&harness, &disk) {
            assert_eq!(state.leases, reported, "an order's lease");
        }
        harness.ctl("delete vm/own");
        for state in cut(&harness, &disk) {
            assert_eq!(
                state.groups["sandbox"].2, [""; 0],
                "an order that was taken back"
            );
        }
        harness.ctl("wait vm/own --for deleted --timeout 60s");
        for state in cut(&harness, &disk) {
            assert!(
                !state.vms.contains(&"own".to_owned()),
                "a VM that was seen to be gone"
            );
        }
        many_at_once(&harness, &disk);
        harness.apply(&group("other", 1, "169.254.104.0/22", ""));
        harness.ctl("delete hg/other");
        for state in cut(&harness, &disk) {
            assert!(
                !state.groups.contains_key("other"),
                "a group that was deleted"
            );
        }
        harness.ctl("wait hg/other --for deleted --timeout 60s");
        for state in cut(&harness, &disk) {
            assert!(state.leases.keys().all(|name| !name.starts_with("other")));
        }
        harness.ctl("delete hg/sandbox --force");
        for state in cut(&harness, &disk) {
            assert!(!state.groups.contains_key("sandbox"));
            assert_eq!(state.vms, state.forced, "all that is left is forced");
        }
    });
}

/// Many ask at once, and the power fails at some moment.
fn many_at_once(harness: &Harness, disk: &Disk) {
    let answered = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for asker in 0..6 {
            let answered = &answered;
            scope.spawn(move || {
                for n in 0..3 {
                    let name = format!("own-{asker}-x{n}");
                    harness.ctl(&format!("vm add sandbox --name {name}"));
                    answered.lock().unwrap().push(name);
                }
            });
        }
        for moment in [1, 6, 12] {
            harness.until("answers", || {
                (answered.lock().unwrap().len() >= moment).then_some(())
            });
            let before = answered.lock().unwrap().clone();
            for state in cut(harness, disk) {
                let orders = &state.groups["sandbox"].2;
                for name in &before {
                    assert!(orders.contains(name), "{name} was answered: {orders:?}");
                }
            }
        }
    });
}

#[test]
fn after_a_power_failure_the_next_daemon_gives_the_same_leases() {
    harness::empty(|mut harness| {
        let disk = Disk::mount(&harness.state());
        harness.start();
        harness.save("sandbox.yaml", &slots(3, "drop: [192.168.1.0/24]"));
        harness.until("the group", || {
            (harness.get("hg sandbox")["status"]["ready_count"] == 3).then_some(())
        });
        let reported = leases(&harness);
        harness::signal(harness.pid(), Signal::STOP);
        let image = disk.cut("reboot", Cache::Lost);
        harness.kill();
        image.boot(|found| {
            test_support::kernel::run(&format!(
                "mount --bind {} {} && rm {}/state.seal",
                found.display(),
                harness.state().display(),
                harness.run.display()
            ));
            harness.start();
            harness.ctl("wait hg/sandbox --for ready --timeout 60s");
            assert_eq!(leases(&harness), reported);
            harness.stop();
            test_support::kernel::run(&format!("umount {}", harness.state().display()));
        });
    });
}
