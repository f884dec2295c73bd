//! The VMs that groups would create: how many are computed, and that nothing is stored.
//! Out of scope: the steps for them (`difference` of the e2e tests).

use slicectl::api::host_group::HostGroupSpec;
use slicectl::api::meta::{Name, Timestamp};
use slicectl::api::vmm_ids::IdRange;
use slicectl::host::netns::Netns;
use slicectl::owner::Instance;
use slicectl::reconcile::group::{self, Claims, HostUse};
use slicectl::reconcile::lease::Leases;
use slicectl::store::Store;

use test_support::kernel;
use test_support::objects::{group, name, owner, spec};

#[test]
fn the_limit_of_what_is_computed_is_one_for_all_groups_and_nothing_is_stored() {
    kernel::private(async {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let (store, _) = Store::open(&dir.path().join("state")).unwrap();
        let claims = Claims::new(&dir.path().join("claims"), owner(dir.path()));
        let netlink = Netns::current().unwrap().netlink().unwrap();
        let instance = Instance::of(dir.path());
        let host_use = HostUse {
            netlink: &netlink,
            instance: &instance,
        };
        let users = IdRange::default();
        let leases = Leases {
            claims: None,
            users: (&users, users.start(instance.as_str())),
            user_lives: |_| false,
            guarded_users: &Default::default(),
            now: Timestamp::UNIX_EPOCH,
        };
        let specs: Vec<(Name, HostGroupSpec)> = ["one", "two", "three"]
            .into_iter()
            .map(|text| (name(text), group(text, 2, spec(None, "")).spec))
            .collect();
        for (limit, expected) in [
            (0, &[][..]),
            (1, &["one-1"]),
            (3, &["one-1", "one-2", "two-1"]),
            (
                9,
                &["one-1", "one-2", "three-1", "three-2", "two-1", "two-2"],
            ),
        ] {
            let found = group::foresee(&store, &claims, &host_use, &specs, &leases, limit).await;
            let names: Vec<&str> = found.keys().map(Name::as_str).collect();
            assert_eq!(names, expected, "limit {limit}");
            for (name, vm) in &found {
                let assigned = vm.assigned.as_ref();
                let assigned = assigned.unwrap_or_else(|why| panic!("{name}: {why}"));
                assert!(assigned.lease.is_some(), "{name}");
            }
        }
        store.read(|world| {
            assert_eq!(world.groups().count(), 0);
            assert_eq!(world.vms().count(), 0);
            assert_eq!(world.leases().count(), 0);
        });
    });
}
