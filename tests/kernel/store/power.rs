//! What was acknowledged is on the disk after a power failure at the next moment.
//! Out of scope: the daemon's answers (`tests/e2e/power.rs`).

use serde_json::Value;
use slicectl::api::host_group::{HostGroup, Origin};
use slicectl::store::{Error, Opened, Store, Txn};

use crate::store::whole::{Step, apply, whole};
use test_support::kernel;
use test_support::objects::{group, name, spec};
use test_support::power::{Cache, Disk};

/// A group of so many bytes, of text that does not shrink.
fn big(n: usize, bytes: usize) -> HostGroup {
    let mut group = group("big", 1, spec(None, ""));
    group.meta.name = name(&format!("big-{n}"));
    let mut dice = test_support::dice::Dice::new(n as u64);
    let noise: String = (0..bytes)
        .map(|_| char::from(b'a' + dice.below(26) as u8))
        .collect();
    group.origin = Origin::File(noise.into());
    group
}

/// A transaction.
type Write = Box<dyn Fn(&mut Txn<'_>) -> Result<(), Error> + Send + Sync>;

fn put(n: usize, bytes: usize) -> Write {
    Box::new(move |txn| txn.put_group(big(n, bytes)))
}

fn found_at_boot(dir: &std::path::Path) -> (Value, Opened) {
    let (store, opened) = Store::open(&dir.join("new/state")).unwrap();
    let found = (whole(&store), opened);
    store.close();
    found
}

/// One acknowledged transaction after the other, each followed by a power failure: the first one that a new directory sees,
/// small and large values (beyond 512 KiB sled keeps them in files of their own), many at once, their removal, several
/// segments' worth, a reopened database.
#[test]
fn after_each_answer_the_power_may_fail() {
    let mut writes: Vec<(&str, Write)> = vec![
        ("first", Box::new(|txn| apply(txn, &Step::Group(0, 2)))),
        ("vm", Box::new(|txn| apply(txn, &Step::Vm(0, 1)))),
        ("lease", Box::new(|txn| apply(txn, &Step::Lease(0, 1)))),
        ("large", put(1, 200 << 10)),
        ("file", put(2, 700 << 10)),
        ("file-replaced", put(2, 800 << 10)),
        (
            "files",
            Box::new(|txn| (3..6).try_for_each(|n| txn.put_group(big(n, 600 << 10)))),
        ),
        (
            "many",
            Box::new(|txn| (1..1024).try_for_each(|n| apply(txn, &Step::Vm(1, n)))),
        ),
        ("release", Box::new(|txn| apply(txn, &Step::Release(0, 1)))),
        (
            "gone",
            Box::new(|txn| (3..6).try_for_each(|n| txn.remove_group(&name(&format!("big-{n}"))))),
        ),
    ];
    for n in 10..14 {
        writes.push(("again", put(n, 400 << 10)));
    }
    kernel::private(async {
        let dir = std::path::Path::new("/run/disk");
        let disk = Disk::mount(dir);
        // Directories of ours too have to be there again.
        let state = dir.join("new/state");
        let (mut store, _) = Store::open(&state).unwrap();
        for (n, (what, write)) in writes.iter().enumerate() {
            if n == 5 {
                store.close();
                store = Store::open(&state).unwrap().0;
            }
            store
                .write(|txn| write(txn))
                .await
                .unwrap_or_else(|e: Error| panic!("{what}: {e}"));
            let expected = (whole(&store), Opened::Existing);
            for cache in [Cache::Lost, Cache::Written] {
                let found = disk.cut(what, cache).boot(found_at_boot);
                assert!(found == expected, "{what}, cache {cache:?}: {:?}", found.1);
            }
        }
        store.close();
    });
}
