//! Reboots, neighbours on the same host.
//! Out of scope: strangers' things under our names.

use std::path::Path;

use slicectl::api::host_group::{HostGroupSpec, UpdatePolicy};
use slicectl::store::Store;

use crate::crash::life::{Dirs, End, Intent};
use crate::crash::world::{host, whole};
use test_support::kernel::{self, Canaries};
use test_support::objects::spec;

fn two(range: Option<&str>) -> HostGroupSpec {
    HostGroupSpec {
        count: 2,
        update: UpdatePolicy::Rolling,
        template: spec(range, ""),
    }
}

#[test]
fn after_a_reboot_everything_is_rebuilt_with_the_same_leases() {
    let disk = tempfile::tempdir().unwrap();
    let dirs = Dirs {
        state: disk.path().join("state"),
        run: Path::new("/run/slice").into(),
    };
    let build = || {
        assert_eq!(dirs.live(Intent::Apply("web", &two(None))), End::Converged);
        (leases(&dirs), whole(&dirs))
    };
    let (leases_before, before) = kernel::private_sync(build);
    rewrite_boot_id(&dirs);
    kernel::private_sync(|| {
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        assert_eq!(leases(&dirs), leases_before);
        assert_eq!(whole(&dirs), before);
    });
}

/// A machine of which the run directory is on a disk, and so outlives the boot that its records speak of.
#[test]
fn records_of_an_earlier_boot_are_not_taken_for_running_vms() {
    let disk = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(disk.path());
    kernel::private_sync(|| dirs.live(Intent::Apply("web", &two(None))));
    for entry in std::fs::read_dir(dirs.run.join("vm")).unwrap() {
        let record = entry.unwrap().path().join("record.json");
        let text = std::fs::read_to_string(&record).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["boot_id"] = "an earlier one".into();
        std::fs::write(&record, value.to_string()).unwrap();
    }
    dirs.lose_state_and_journal();
    kernel::private_sync(|| {
        assert_eq!(dirs.live(Intent::Same), End::Converged);
        assert!(leases(&dirs).is_empty());
        assert_eq!(
            std::fs::read_dir(dirs.run.join("vm")).unwrap().count(),
            0,
            "orphans of an earlier boot go"
        );
    });
}

#[test]
fn two_daemons_on_one_host_do_not_disturb_each_other() {
    kernel::private_sync(|| {
        kernel::run("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let canaries = Canaries::release();
        let (a, b) = (
            Dirs::below(Path::new("/run/a")),
            Dirs::below(Path::new("/run/b")),
        );
        assert_eq!(b.live(Intent::Apply("blue", &two(None))), End::Converged);
        let alone = host(&b);
        assert_eq!(a.live(Intent::Apply("amber", &two(None))), End::Converged);
        let together = host(&a);
        assert_eq!(
            b.live_counting(Intent::Same),
            (End::Converged, vec![]),
            "the other's world is at rest"
        );
        assert_eq!(host(&a), together);
        assert_eq!(a.live(Intent::Delete("amber")), End::Converged);
        assert_eq!(host(&b), alone, "byte by byte");
        assert_eq!(b.live(Intent::Delete("blue")), End::Converged);
        canaries.assert_alive();
    });
}

#[test]
fn two_daemons_that_want_the_same_range_do_not_get_it_both() {
    kernel::private_sync(|| {
        let (a, b) = (
            Dirs::below(Path::new("/run/a")),
            Dirs::below(Path::new("/run/b")),
        );
        let both = two(Some("169.254.100.0/22"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let first = runtime.block_on(hold(&a, &both));
        assert_eq!(b.live(Intent::Apply("blue", &both)), End::Unconverged);
        assert!(leases(&b).is_empty());
        first.store.close();
        drop(first);
        runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    });
}

/// A daemon that stays: its claims end with it.
async fn hold(dirs: &Dirs, spec: &HostGroupSpec) -> std::sync::Arc<slicectl::engine::Engine> {
    let daemon =
        slicectl::daemon::Daemon::prepare(&dirs.state, &dirs.run, slicectl::reconcile::no_probe())
            .await
            .unwrap();
    let engine = daemon.engine.clone();
    let group = test_support::objects::group("amber", spec.count, spec.template.clone());
    engine
        .store
        .write(|txn| txn.put_group(group))
        .await
        .unwrap_or_else(|e: slicectl::store::Error| panic!("{e}"));
    assert!(daemon.settle(std::time::Duration::from_secs(30)).await);
    engine
}

pub fn leases(dirs: &Dirs) -> Vec<String> {
    let (store, _) = Store::open(&dirs.state).unwrap();
    let leases = store.read(|world| {
        world
            .leases()
            .map(|lease| format!("{} {}", lease.name, lease.address.ip()))
            .collect()
    });
    store.close();
    leases
}

/// As a boot does: what the store records of the host network is of another one.
pub fn rewrite_boot_id(dirs: &Dirs) {
    let (store, _) = Store::open(&dirs.state).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let written = runtime.block_on(store.write(|txn| {
        let mut status = txn
            .world()
            .host_network_status()
            .cloned()
            .expect("a host network");
        status.boot_id = "an earlier one".to_owned();
        txn.put_host_network_status(status)
    }));
    written.unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
    store.close();
}
