//! VMs made on demand, as far as the store knows of them: names, places, addresses, races.
//! Out of scope: what is built for them.

use std::collections::BTreeSet;

use slicectl::api::host_group::{HostGroup, HostGroupSpec, MAX_COUNT, UpdatePolicy};
use slicectl::api::meta::{Name, Timestamp};
use slicectl::api::network::{Addresses, NetworkSpec};
use slicectl::api::on_demand::VmOverrides;
use slicectl::api::stage::Stage;
use slicectl::api::vm::VmSpec;
use slicectl::host::netlink::Handle;
use slicectl::host::netns::Netns;
use slicectl::owner::Instance;
use slicectl::reconcile::group::{self, AddError, Added, Claims, HostUse, Preflight, Removed};
use slicectl::store::Store;

use test_support::kernel;
use test_support::objects::{bridged, cni_spec, group, name, owner, spec};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
/// Two blocks.
const SMALL: &str = "169.254.100.0/29";

/// A store with the group `web`, and all that its reconciler needs.
struct Place {
    dir: tempfile::TempDir,
    store: Store,
    claims: Claims,
    netlink: Handle,
    instance: Instance,
}

impl Place {
    async fn with(count: u32, template: VmSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let place = Self {
            claims: Claims::new(&dir.path().join("claims"), owner(dir.path())),
            netlink: Netns::current().unwrap().netlink().unwrap(),
            instance: Instance::of(dir.path()),
            store,
            dir,
        };
        place.put(group("web", count, template)).await;
        place.settle().await;
        place
    }

    async fn put(&self, group: HostGroup) {
        let put = self.store.write(|txn| txn.put_group(group));
        put.await
            .unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
    }

    fn host_use(&self) -> HostUse<'_> {
        HostUse {
            netlink: &self.netlink,
            instance: &self.instance,
        }
    }

    async fn settle(&self) {
        let (store, host_use, web) = (&self.store, self.host_use(), name("web"));
        for _ in 0..4 {
            group::reconcile(
                store,
                &self.claims,
                &host_use,
                &web,
                &Preflight::default(),
                NOW,
            )
            .await
            .unwrap();
        }
    }

    async fn add(
        &self,
        named: Option<&str>,
        overrides: VmOverrides,
    ) -> Result<(Name, Added), AddError> {
        let desired = (named.map(name), overrides);
        let host_use = self.host_use();
        group::add(
            &self.store,
            &self.claims,
            &host_use,
            &name("web"),
            desired,
            NOW,
        )
        .await
    }

    async fn refused(&self, named: &str, overrides: VmOverrides) -> String {
        self.add(Some(named), overrides)
            .await
            .unwrap_err()
            .to_string()
    }

    async fn remove(&self, vm: &str) -> Removed {
        let removed = self.store.write(|txn| group::remove(txn, &name(vm))).await;
        removed.unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"))
    }

    fn vms(&self) -> Vec<String> {
        let names = |world: &slicectl::store::World| {
            world.vms().map(|vm| vm.meta.name.to_string()).collect()
        };
        self.store.read(names)
    }

    fn leases(&self) -> BTreeSet<String> {
        let names = |world: &slicectl::store::World| {
            world.leases().map(|lease| lease.name.to_string()).collect()
        };
        self.store.read(names)
    }

    async fn change(&self, change: impl FnOnce(&mut HostGroup)) {
        let mut group = self
            .store
            .read(|world| world.group(&name("web")).cloned().unwrap());
        change(&mut group);
        self.put(group).await;
        self.settle().await;
    }
}

fn small(overrides: impl FnOnce(&mut VmOverrides)) -> VmOverrides {
    let mut desired = VmOverrides::default();
    overrides(&mut desired);
    desired
}

#[test]
fn a_group_of_none_has_those_that_were_ordered_and_forgets_those_that_were_cancelled() {
    kernel::private(async {
        let place = Place::with(0, spec(None, "")).await;
        let (made_up, _) = place.add(None, VmOverrides::default()).await.unwrap();
        place.add(Some("ci"), VmOverrides::default()).await.unwrap();
        assert_eq!(place.vms(), [made_up.as_str(), "ci"]);
        assert!(
            made_up.as_str().starts_with("web-") && made_up.as_str().len() == 9,
            "{made_up}"
        );
        assert!(!HostGroup::is_counted_name(&made_up));
        assert_eq!(place.leases().len(), 2, "its address is there at once");
        place.settle().await;
        assert_eq!(place.vms().len(), 2);
        assert_eq!(place.remove(made_up.as_str()).await, Removed::Going);
        place.settle().await;
        assert_eq!(place.vms(), ["ci"]);
        assert_eq!(place.leases(), BTreeSet::from(["ci".to_owned()]));
        assert_eq!(place.remove("none-such").await, Removed::Absent);
    });
}

#[test]
fn scaling_up_and_down_passes_them_by_and_a_counted_one_is_protected() {
    kernel::private(async {
        let place = Place::with(2, spec(None, "")).await;
        place.add(Some("ci"), VmOverrides::default()).await.unwrap();
        let uid = || {
            place
                .store
                .read(|world| world.vm_named(&name("ci")).unwrap().meta.uid)
        };
        let before = uid();
        for count in [5, 0, 3] {
            place.change(|group| group.spec.count = count).await;
            let counted = (1..=count).map(|index| format!("web-{index}"));
            let all: Vec<String> = counted.chain(["ci".to_owned()]).collect();
            assert_eq!(place.vms(), all);
            assert_eq!(place.leases(), all.into_iter().collect());
            assert_eq!(uid(), before);
        }
        let counted = Removed::Counted(name("web"), 3);
        assert_eq!(place.remove("web-2").await, counted);
        assert_eq!(place.vms().len(), 4);
    });
}

#[test]
fn the_same_order_again_changes_nothing_and_another_of_that_name_is_refused() {
    kernel::private(async {
        let place = Place::with(0, spec(None, "")).await;
        let overrides = small(|overrides| overrides.ram_bytes = Some(64 << 20));
        place.add(Some("ci"), overrides.clone()).await.unwrap();
        let (_, again) = place.add(Some("ci"), overrides.clone()).await.unwrap();
        assert_eq!(again, Added::Unchanged);
        let why = place.refused("ci", VmOverrides::default()).await;
        assert!(why.contains("already exists with other settings"), "{why}");
        for counted in ["web-1", "other-65536"] {
            let why = place.refused(counted, VmOverrides::default()).await;
            assert!(why.contains("ends in a number"), "{why}");
        }
        for free in ["web-01", "web-65537", "web"] {
            place.add(Some(free), VmOverrides::default()).await.unwrap();
        }
        // One of another group, and one that is on its way out.
        place.put(group("db", 0, spec(None, ""))).await;
        let desired = (Some(name("ci")), overrides.clone());
        let host_use = place.host_use();
        let (store, claims) = (&place.store, &place.claims);
        let why = group::add(store, claims, &host_use, &name("db"), desired, NOW).await;
        let why = why.unwrap_err().to_string();
        assert!(why.contains("belongs to hostgroup/web"), "{why}");
        hold(&place, "ci").await;
        place.remove("ci").await;
        let why = place.refused("ci", overrides).await;
        assert!(why.contains("still being removed"), "{why}");
    });
}

/// Something of it is on the host.
async fn hold(place: &Place, vm: &str) {
    let held = place.store.write(|txn| {
        let uid = txn.world().vm_named(&name(vm)).unwrap().meta.uid;
        txn.adopt_stage(uid, Stage::Lease, NOW)
    });
    held.await
        .unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
}

#[test]
fn more_than_the_group_allows_is_refused_with_both_figures() {
    kernel::private(async {
        let place = Place::with(0, spec(None, "")).await;
        let cases: [(VmOverrides, &str); 7] = [
            (
                small(|overrides| overrides.vcpu = Some(2)),
                "requests 2 vcpu, and the group allows at most 1",
            ),
            (small(|overrides| overrides.vcpu = Some(0)), "0 vcpu"),
            (
                small(|overrides| overrides.ram_bytes = Some(129 << 20)),
                "requests 129 MiB of memory, and the group allows at most 128 MiB",
            ),
            (
                small(|overrides| overrides.ram_bytes = Some(1)),
                "a whole number of MiB",
            ),
            (small(|overrides| overrides.persistent = true), "no `image`"),
            (
                small(|overrides| overrides.allow = Some(vec!["169.254.169.254".parse().unwrap()])),
                "allow[0]: \"169.254.169.254\" is a metadata service",
            ),
            (
                small(|overrides| overrides.drop = Some(vec!["10.0.0.0/8".parse().unwrap(); 1025])),
                "found 1025 entries",
            ),
        ];
        for (overrides, expected) in cases {
            let why = place.refused("ci", overrides).await;
            assert!(why.contains(expected), "{why}");
        }
        assert!(place.vms().is_empty() && place.leases().is_empty());
    });
}

#[test]
fn lists_of_its_own_are_for_isolated_mode_alone() {
    kernel::private(async {
        for (template, mode) in [
            (bridged("br0", "192.168.137.1/24"), "bridge"),
            (cni_spec("net"), "cni"),
        ] {
            let place = Place::with(0, template).await;
            let why = place.refused("ci", small(|overrides| overrides.allow = Some(vec![])));
            let why = why.await;
            let expected =
                format!("sets allow, which needs mode: isolated (its group is in mode {mode})");
            assert!(why.contains(&expected), "{why}");
            place.add(Some("ci"), VmOverrides::default()).await.unwrap();
        }
    });
}

#[test]
fn when_no_address_is_left_the_order_is_refused_and_leaves_nothing() {
    kernel::private(async {
        let place = Place::with(1, spec(Some(SMALL), "")).await;
        place
            .add(Some("one"), VmOverrides::default())
            .await
            .unwrap();
        let why = place.refused("two", VmOverrides::default()).await;
        assert_eq!(
            why,
            format!("hostgroup/web: no free /30 is left in {SMALL}")
        );
        assert_eq!(place.vms(), ["web-1", "one"]);
        place.remove("one").await;
        place.settle().await;
        place
            .add(Some("two"), VmOverrides::default())
            .await
            .unwrap();

        let mut listed = bridged("br0", "192.168.137.1/24");
        if let NetworkSpec::Bridge(bridge) = &mut listed.network {
            let ip = |last| [192, 168, 137, last].into();
            bridge.addresses = Addresses::Listed(vec![ip(7), ip(8), ip(9)]);
        }
        let place = Place::with(2, listed).await;
        place
            .add(Some("one"), VmOverrides::default())
            .await
            .unwrap();
        let ip = place
            .store
            .read(|world| world.lease(&name("one")).unwrap().address.ip());
        assert_eq!(ip.to_string(), "192.168.137.9");
        let why = place.refused("two", VmOverrides::default()).await;
        assert!(why.contains("`addresses` lists 3"), "{why}");
        // The group is written smaller: what it no longer counts is free.
        place.change(|group| group.spec.count = 1).await;
        place
            .add(Some("two"), VmOverrides::default())
            .await
            .unwrap();
        let (one, two) = place.store.read(|world| {
            let tap = |vm: &str| {
                let vm = world.vm_named(&name(vm)).unwrap();
                match &vm.spec.network {
                    NetworkSpec::Bridge(bridge) => bridge.tap(vm.index),
                    NetworkSpec::Isolated(_) | NetworkSpec::Cni(_) => String::new(),
                }
            };
            (tap("one"), tap("two"))
        });
        assert_eq!((one.as_str(), two.as_str()), ("vmtapx0", "vmtapx1"));
        // It grows again: what it now counts must wait, and is told for whom.
        place.change(|group| group.spec.count = 2).await;
        let waits = place.store.write(|txn| {
            let vm = txn.world().vm_named(&name("web-2")).cloned().unwrap();
            Ok::<_, slicectl::store::Error>(txn.lease(&vm, NOW).unwrap_err().to_string())
        });
        assert_eq!(
            waits.await.unwrap(),
            "192.168.137.8 is already leased to vm/two"
        );
    });
}

#[test]
fn they_follow_their_group_and_keep_what_is_their_own() {
    kernel::private(async {
        let place = Place::with(1, spec(None, "10.0.0.0/8")).await;
        let own = small(|overrides| overrides.drop = Some(vec!["172.16.0.0/12".parse().unwrap()]));
        place.add(Some("own"), own).await.unwrap();
        place
            .add(Some("plain"), VmOverrides::default())
            .await
            .unwrap();
        let drops = |vm: &str| {
            let vm = place.store.read(|world| world.vm_named(&name(vm)).cloned());
            let vm = vm.unwrap();
            let policy = vm.spec.network.policy().unwrap().clone();
            let template = vm.on_demand.map(|made| made.template);
            (policy.drop[0].to_string(), vm.meta.generation, template)
        };
        let uid = |vm: &str| {
            let vm = name(vm);
            place
                .store
                .read(|world| world.vm_named(&vm).map(|vm| vm.meta.uid))
        };
        let before = ["own", "plain"].map(uid);
        let changed = spec(None, "192.168.0.0/16");
        let template = changed.clone();
        place.change(|group| group.spec.template = template).await;
        assert_eq!(["own", "plain"].map(uid), before);
        // The group's list has changed for it, too: it is written down again, for whoever adopts it.
        assert_eq!(
            drops("own"),
            ("172.16.0.0/12".to_owned(), 2, Some(changed.clone()))
        );
        assert_eq!(
            drops("plain"),
            ("192.168.0.0/16".to_owned(), 2, Some(changed))
        );
    });
}

#[test]
fn a_group_that_goes_takes_its_orders_along_and_one_of_its_name_begins_with_none() {
    kernel::private(async {
        let place = Place::with(1, spec(None, "")).await;
        place.add(Some("ci"), VmOverrides::default()).await.unwrap();
        hold(&place, "ci").await;
        let web = name("web");
        let deleted = place.store.write(|txn| {
            let mut group = txn.world().group(&web).cloned().unwrap();
            group.meta.deleting = true;
            group.orders.clear();
            txn.put_group(group)
        });
        deleted
            .await
            .unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
        let why = place
            .add(Some("late"), VmOverrides::default())
            .await
            .unwrap_err();
        assert!(matches!(why, AddError::NoGroup), "{why}");
        place.settle().await;
        assert_eq!(place.vms(), ["ci"], "as long as something of it stands");
        let left = place.store.write(|txn| {
            let uid = txn.world().vm_named(&name("ci")).unwrap().meta.uid;
            txn.release(uid, Stage::Lease, NOW)
        });
        left.await
            .unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
        place.settle().await;
        let groups = place.store.read(|world| world.groups().count());
        assert_eq!((place.vms().len(), place.leases().len(), groups), (0, 0, 0));
    });
}

#[test]
fn of_two_that_order_one_name_at_once_one_gets_it() {
    kernel::private(async {
        let place = Place::with(0, spec(None, "")).await;
        for round in 0..20 {
            let named = format!("ci-r{round}");
            let other = small(|overrides| overrides.ram_bytes = Some(64 << 20));
            let (one, two) = tokio::join!(
                place.add(Some(&named), VmOverrides::default()),
                place.add(Some(&named), other)
            );
            assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        }
        assert_eq!(place.vms().len(), 20);
        assert_eq!(place.leases().len(), 20);
        let places: BTreeSet<u32> = place
            .store
            .read(|world| world.vms().map(|vm| vm.index).collect());
        assert_eq!(places, (MAX_COUNT + 1..=MAX_COUNT + 20).collect());
    });
}

#[test]
fn adding_and_deleting_in_any_order_with_the_store_reopened_leaves_no_lease() {
    kernel::private(async {
        let mut place = Place::with(1, spec(Some("169.254.100.0/27"), "")).await;
        let mut seed = 7_u32;
        let mut there: Vec<String> = Vec::new();
        for round in 0..60 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pick = (seed >> 16) as usize;
            match there.len() {
                0 => there.push(add(&place).await),
                most @ 7.. => {
                    let gone = there.swap_remove(pick % most);
                    assert_eq!(place.remove(&gone).await, Removed::Going);
                }
                some if pick.is_multiple_of(2) => {
                    let gone = there.swap_remove(pick % some);
                    assert_eq!(place.remove(&gone).await, Removed::Going);
                    place.settle().await;
                }
                _ => there.push(add(&place).await),
            }
            if round % 10 == 9 {
                place.store.close();
                let (store, _) = Store::open(place.dir.path()).unwrap();
                place.store = store;
                let found: BTreeSet<String> = place.vms().into_iter().collect();
                let desired = there.iter().cloned().chain(["web-1".to_owned()]);
                assert_eq!(found, desired.collect());
            }
        }
        for vm in there {
            place.remove(&vm).await;
        }
        place.settle().await;
        assert_eq!(place.leases(), BTreeSet::from(["web-1".to_owned()]));
    });
}

async fn add(place: &Place) -> String {
    let (name, _) = place.add(None, VmOverrides::default()).await.unwrap();
    name.to_string()
}

#[test]
fn a_policy_of_its_own_may_open_the_host_to_its_groups_range() {
    kernel::private(async {
        let place = Place::with(0, spec(Some(SMALL), "")).await;
        let overrides =
            small(|overrides| overrides.allow = Some(vec!["192.168.1.1:3128".parse().unwrap()]));
        place.add(Some("ci"), overrides).await.unwrap();
        let openings = || {
            place
                .store
                .read(|world| world.host_requirements().openings.len())
        };
        assert_eq!(openings(), 1);
        place.remove("ci").await;
        assert_eq!(openings(), 0);
    });
}

/// What the manifest's reader would say of the other half: a group that no longer allows what one of them has.
#[test]
fn a_group_may_not_take_from_one_what_it_has() {
    use slicectl::api::manifest::{self, Source};
    use slicectl::api::on_demand::OnDemandEntry;
    use slicectl::api::validate;
    let text = "config:
  host_groups:
    - name: web
      count: 0
      vcpu: 1
      ram_mb: 64
      hypervisor: none
      network: {mode: bridge}
";
    let source = Source {
        name: "web.yaml".to_owned(),
        text: text.to_owned(),
    };
    let drafts = manifest::parse(&source).unwrap();
    let template = VmSpec {
        vcpu: 4,
        ..spec(None, "")
    };
    let mut stored = group("web", 0, template.clone());
    stored.spec = HostGroupSpec {
        count: 0,
        update: UpdatePolicy::Rolling,
        template,
    };
    let overrides = small(|overrides| {
        overrides.vcpu = Some(2);
        overrides.ram_bytes = Some(128 << 20);
        overrides.allow = Some(vec![]);
    });
    let order = OnDemandEntry {
        fleet: None,
        name: name("ci"),
        overrides,
    };
    stored.orders.insert(MAX_COUNT + 1, order);
    let problems = validate::check_apply(&[stored.clone()], &drafts).unwrap_err();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "web.yaml:5:13: config.host_groups[0].vcpu: vm/ci, made on demand, requests 2 vcpu, and the group allows at most 1",
            "web.yaml:6:15: config.host_groups[0].ram_mb: vm/ci, made on demand, requests 128 MiB of memory, and the group allows at most 64 MiB",
            "web.yaml:8:23: config.host_groups[0].network.mode: vm/ci, made on demand, sets allow, which needs mode: isolated (its group is in mode bridge)",
        ]
    );
    // One that is going has no say.
    stored.meta.deleting = true;
    assert_eq!(validate::check_apply(&[stored], &drafts), Ok(()));
}

/// A link of the daemon is known by the label of its address, which the kernel sets to the name of the link.
#[test]
fn an_order_avoids_what_the_host_uses_and_passes_over_the_daemons_own_links() {
    // The second block of the range, of which the first is the other VM's.
    let foreign = [
        "ip addr add 169.254.100.5/32 dev d0",
        "ip addr add 169.254.100.5/32 dev d0 label d0:1",
        "ip addr add 169.254.100.5/32 dev d0 && ip link set d0 down && ip link set d0 name d1",
        "ip addr add 10.0.0.1 peer 169.254.100.6 dev d0",
        "ip route add 169.254.100.4/30 dev d0",
        // A link that has our name, and no address that says so.
        "ip link add OURS type bridge && ip link set OURS up && ip route add 169.254.100.4/30 dev OURS",
    ];
    let own = [
        "ip link add OURS type bridge && ip link set OURS up && ip addr add 169.254.100.5/30 dev OURS",
        "ip link add OURS type bridge && ip link set OURS up && ip addr add 169.254.100.5/32 dev OURS label OURS:1",
        "ip link add x type bridge && ip addr add 169.254.100.5/32 dev x && ip link set x name OURS",
    ];
    let variants = foreign.map(|setup| (setup, false)).into_iter();
    for (setup, is_free) in variants.chain(own.map(|setup| (setup, true))) {
        kernel::private(async move {
            kernel::run("ip link add d0 type bridge");
            kernel::run("ip link set d0 up");
            let place = Place::with(1, spec(Some(SMALL), "")).await;
            let ours = format!("{}x", place.instance.link_prefix());
            kernel::run(&setup.replace("OURS", &ours));
            let added = place.add(Some("ci"), VmOverrides::default()).await;
            assert_eq!(added.is_ok(), is_free, "{setup}: {added:?}");
        });
    }
}
