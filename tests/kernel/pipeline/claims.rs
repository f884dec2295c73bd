//! Ranges and subnets: every group has its own, whatever chooses, is deleted or starts at the same time.
//! Out of scope: blocks and addresses of single VMs (`leases`).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use ipnetwork::Ipv4Network;
use proptest::prelude::*;
use slicectl::api::host_group::HostGroup;
use slicectl::api::lease::Address;
use slicectl::api::meta::{Name, Timestamp};
use slicectl::api::network::{Addresses, NetworkSpec};
use slicectl::api::on_demand::VmOverrides;
use slicectl::api::pool;
use slicectl::api::vm::VmSpec;
use slicectl::host::netlink::Handle;
use slicectl::host::netns::Netns;
use slicectl::owner::Instance;
use slicectl::reconcile::group::{
    self, AddError, Claim, ClaimOwner, Claims, Error, HostUse, Preflight, Progress, RangeError,
};
use slicectl::store::{Store, World};

use test_support::descriptors::copy_of;
use test_support::kernel;
use test_support::objects::{bridged, cni_spec, group, name, owner, spec};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// One daemon, as far as choosing goes. To each other, two in one process are as two processes: all that they share are files.
struct Daemon {
    store: Store,
    claims: Claims,
    netlink: Handle,
    instance: Instance,
}

impl Daemon {
    fn new(state: &Path, claims: &Path) -> Arc<Self> {
        Arc::new(Self {
            store: Store::open(state).unwrap().0,
            claims: Claims::new(claims, owner(state)),
            netlink: Netns::current().unwrap().netlink().unwrap(),
            instance: Instance::of(state),
        })
    }

    async fn put(&self, name: &str, template: VmSpec) {
        let group = group(name, 1, template);
        let put = self.store.write(|txn| txn.put_group(group));
        put.await
            .unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
    }

    async fn change(&self, name: &str, change: impl FnOnce(&mut HostGroup)) {
        let mut group = self
            .store
            .read(|world| world.group(&self::name(name)).cloned().unwrap());
        change(&mut group);
        let put = self.store.write(|txn| txn.put_group(group));
        put.await
            .unwrap_or_else(|error: slicectl::store::Error| panic!("{error}"));
    }

    /// What its start does.
    async fn resume(&self) {
        let stored = self.store.read(group::needed);
        self.claims.hold_stored(stored).await.unwrap();
        self.claims.release_unused(&self.store).await;
    }

    async fn add(&self, group: &Name, vm: Name) -> Result<(), AddError> {
        let host_use = HostUse {
            netlink: &self.netlink,
            instance: &self.instance,
        };
        let desired = (Some(vm), VmOverrides::default());
        let added = group::add(&self.store, &self.claims, &host_use, group, desired, NOW);
        added.await.map(drop)
    }

    async fn reconcile(&self, name: &Name) -> Result<(), Error> {
        let host_use = HostUse {
            netlink: &self.netlink,
            instance: &self.instance,
        };
        // Every replacement could run.
        let mut preflight = Preflight::default();
        loop {
            let (store, claims) = (&self.store, &self.claims);
            match group::reconcile(store, claims, &host_use, name, &preflight, NOW).await? {
                Progress::CheckFirst(question) => preflight.note(*question, Ok(())),
                Progress::Done | Progress::Waiting | Progress::Blocked(_) => return Ok(()),
            }
        }
    }

    fn addresses(&self) -> Vec<String> {
        let addresses = |world: &World| {
            let bridged = world
                .leases()
                .filter(|l| matches!(l.address, Address::Bridge { .. }));
            bridged
                .map(|lease| lease.address.ip().to_string())
                .collect()
        };
        self.store.read(addresses)
    }

    fn ranges(&self) -> Vec<Ipv4Network> {
        self.store
            .read(|world| world.pools().map(|(_, pool)| pool.range).collect())
    }
}

/// All at once, each in a task of its own.
async fn at_once(work: Vec<(Arc<Daemon>, Name)>) -> Vec<Result<(), Error>> {
    let tasks: Vec<_> = work
        .into_iter()
        .map(|(daemon, name)| tokio::spawn(async move { daemon.reconcile(&name).await }))
        .collect();
    futures::future::join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

/// A template with a bridge and without `gateway`, which is then derived.
fn on_a_bridge(name: &str) -> VmSpec {
    let mut template = bridged(name, "10.0.0.1/24");
    if let NetworkSpec::Bridge(bridge) = &mut template.network {
        bridge.gateway = None;
    }
    template
}

fn assert_disjoint(ranges: &[Ipv4Network], count: usize) {
    assert_eq!(ranges.len(), count, "{ranges:?}");
    for (n, one) in ranges.iter().enumerate() {
        for other in &ranges[n + 1..] {
            assert!(!pool::overlaps(*one, *other), "{one} and {other}");
        }
    }
}

/// A daemon that has nothing.
fn stranger(claims: &Path) -> Claims {
    Claims::new(claims, owner(Path::new("/stranger")))
}

/// Nobody else on the host can take any of these.
async fn assert_held(ranges: &[Ipv4Network], claims: &Path) {
    for range in ranges {
        let taken = stranger(claims)
            .hold(vec![Claim::Range(*range)])
            .await
            .is_ok();
        assert!(!taken, "{range} is not held");
    }
}

/// Whether another daemon can take a range, which it does not keep.
async fn is_free(range: &str, claims: &Path) -> bool {
    let (one, range) = (stranger(claims), Claim::Range(range.parse().unwrap()));
    let taken = one.hold(vec![range]).await.is_ok();
    let dir = tempfile::tempdir_in("/run").unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    one.release_unused(&store).await;
    store.close();
    taken
}

/// How often (`make soak` asks for more).
fn rounds(few: u32) -> u32 {
    let rounds = std::env::var("SLICE_CLAIM_ROUNDS");
    rounds.map_or(few, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn fifty_six_groups_at_once_get_a_range_each_every_time() {
    kernel::private(async {
        for run in 0..rounds(20) {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let daemon = Daemon::new(&dir.path().join("state"), &claims);
            let mut work = Vec::new();
            for n in 0..56 {
                let group = format!("g{run}-{n}");
                daemon.put(&group, spec(None, "")).await;
                work.push((daemon.clone(), name(&group)));
            }
            for done in at_once(work).await {
                done.unwrap();
            }
            assert_disjoint(&daemon.ranges(), 56);
            assert_held(&daemon.ranges(), &claims).await;
            daemon.store.close();
        }
    });
}

#[test]
fn two_daemons_that_choose_at_once_share_no_range_and_no_subnet() {
    kernel::private(async {
        for run in 0..rounds(6) {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let daemons = ["a", "b"].map(|d| Daemon::new(&dir.path().join(d), &claims));
            let mut work = Vec::new();
            for n in 0..28 {
                for daemon in &daemons {
                    // The same names: both begin with the same candidate.
                    let group = format!("g{run}-{n}");
                    daemon.put(&group, spec(None, "")).await;
                    work.push((daemon.clone(), name(&group)));
                    if n < 8 {
                        let group = format!("b{run}-{n}");
                        daemon.put(&group, on_a_bridge(&format!("br{n}"))).await;
                        work.push((daemon.clone(), name(&group)));
                    }
                }
            }
            for done in at_once(work).await {
                done.unwrap();
            }
            let ranges: Vec<_> = daemons.iter().flat_map(|d| d.ranges()).collect();
            assert_disjoint(&ranges, 72);
            assert_held(&ranges, &claims).await;
            daemons.iter().for_each(|daemon| daemon.store.close());
        }
    });
}

#[test]
fn of_groups_that_want_one_explicit_range_at_once_one_gets_it() {
    kernel::private(async {
        for _ in 0..20 {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let daemon = Daemon::new(&dir.path().join("state"), &dir.path().join("claims"));
            let mut work = Vec::new();
            for n in 0..8 {
                let group = format!("g{n}");
                daemon.put(&group, spec(Some("169.254.100.0/22"), "")).await;
                work.push((daemon.clone(), name(&group)));
            }
            let done = at_once(work).await;
            assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
            assert_disjoint(&daemon.ranges(), 1);
            daemon.store.close();
        }
    });
}

/// What may happen to one of the groups of one of two daemons.
#[derive(Clone, Copy, Debug)]
enum Act {
    Isolated,
    Bridged,
    Cni,
    Scale(u32),
    Order,
    Delete,
    Settle,
}

fn act() -> impl Strategy<Value = (usize, usize, Act)> {
    let act = prop_oneof![
        3 => Just(Act::Isolated),
        2 => Just(Act::Bridged),
        1 => Just(Act::Cni),
        2 => (0_u32..4).prop_map(Act::Scale),
        2 => Just(Act::Order),
        2 => Just(Act::Delete),
        1 => Just(Act::Settle),
    ];
    (0_usize..2, 0_usize..6, act)
}

/// All acts of a round at once, then everybody is reconciled twice at once: what is in the way is deleted, what waits comes.
async fn round(daemons: &[Arc<Daemon>; 2], acts: &[(usize, usize, Act)], seed: usize) {
    let tasks: Vec<_> = acts
        .iter()
        .enumerate()
        .map(|(n, (daemon, group, act))| {
            let (daemon, act) = (daemons[*daemon].clone(), *act);
            let group = format!("g{group}");
            tokio::spawn(async move { daemon.act(&group, act, seed * 100 + n).await })
        })
        .collect();
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    for _ in 0..3 {
        let mut work = Vec::new();
        for daemon in daemons {
            for n in 0..6 {
                work.push((daemon.clone(), name(&format!("g{n}"))));
                work.push((daemon.clone(), name(&format!("g{n}"))));
            }
        }
        for done in at_once(work).await {
            done.unwrap();
        }
    }
}

impl Daemon {
    async fn act(&self, group: &str, act: Act, n: usize) {
        let known = self.store.read(|world| world.group(&name(group)).cloned());
        let living = known.clone().filter(|group| !group.meta.deleting);
        let template = match act {
            Act::Isolated => Some(spec(None, "")),
            Act::Bridged => Some(on_a_bridge(&format!("br{group}"))),
            Act::Cni => Some(cni_spec("net")),
            Act::Scale(_) | Act::Order | Act::Delete | Act::Settle => None,
        };
        match (living, template, act) {
            (None, Some(template), _) if known.is_none() => self.put(group, template).await,
            (Some(_), Some(template), _) => {
                self.change(group, |g| g.spec.template = template).await;
            }
            (Some(_), None, Act::Scale(count)) => {
                self.change(group, |g| g.spec.count = count).await
            }
            (Some(_), None, Act::Delete) => self.change(group, |g| g.meta.deleting = true).await,
            (Some(_), None, Act::Order) => {
                // Its group may be deleted at the same moment.
                let _ = self.add(&name(group), name(&format!("vm{n}x"))).await;
            }
            (Some(_), None, Act::Settle) => drop(self.reconcile(&name(group)).await),
            (_, _, _) => {}
        }
    }
}

/// No two groups have an address in common, whichever daemon's they are; all that anybody has is held, and nothing else.
async fn assert_sound(daemons: &[Arc<Daemon>; 2], claims: &Path) {
    let needed = daemons
        .each_ref()
        .map(|daemon| daemon.store.read(group::needed));
    for one in &needed[0] {
        for other in &needed[1] {
            assert!(!one.conflicts(other), "{one} and {other}");
        }
    }
    for (daemon, needed) in daemons.iter().zip(&needed) {
        daemon.store.read(|world| {
            let of = |name: &Name| {
                // Groups on one bridge share its subnet.
                let pool = world.pool(name).filter(|pool| pool.gateway.is_none());
                pool.map(|pool| pool.range)
            };
            let groups: Vec<_> = world.groups().collect();
            for (n, one) in groups.iter().enumerate() {
                for other in &groups[n + 1..] {
                    let (Some(a), Some(b)) = (of(&one.meta.name), of(&other.meta.name)) else {
                        continue;
                    };
                    assert!(!pool::overlaps(a, b), "{a} and {b}");
                }
            }
            let addresses: Vec<_> = world.leases().map(|l| l.address.ip()).collect();
            let distinct: BTreeSet<_> = addresses.iter().collect();
            assert_eq!(distinct.len(), addresses.len());
        });
        assert_eq!(file(claims, &daemon.instance), *needed);
    }
}

/// What is claimed for a daemon, as others read it.
fn file(claims: &Path, instance: &Instance) -> BTreeSet<Claim> {
    match std::fs::read_to_string(claims.join(format!("{instance}.json"))) {
        Err(_) => BTreeSet::new(),
        Ok(text) => {
            let file: serde_json::Value = serde_json::from_str(&text).unwrap();
            serde_json::from_value(file["claims"].clone()).unwrap()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(12),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_interleaving_of_two_daemons_keeps_ranges_apart_and_held_and_nothing_else(
        rounds in proptest::collection::vec((proptest::collection::vec(act(), 1..16), any::<[bool; 2]>()), 1..6),
    ) {
        kernel::private(async {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let state = |n: usize| dir.path().join(["a", "b"][n]);
            let mut daemons = [0, 1].map(|n| Daemon::new(&state(n), &claims));
            for (n, (acts, restarts)) in rounds.iter().enumerate() {
                round(&daemons, acts, n).await;
                assert_sound(&daemons, &claims).await;
                for (d, _) in restarts.iter().enumerate().filter(|(_, restart)| **restart) {
                    let held = file(&claims, &daemons[d].instance);
                    daemons[d].store.close();
                    // In force while nobody is there who holds it.
                    for claim in &held {
                        let taken = stranger(&claims).hold(vec![claim.clone()]).await.is_ok();
 assert!(!taken || matches!(claim, Claim::Gateway { .. }), "{claim}");
                    }
                    daemons[d] = Daemon::new(&state(d), &claims);
                    daemons[d].resume().await;
                    assert_sound(&daemons, &claims).await;
                }
            }
            daemons.iter().for_each(|daemon| daemon.store.close());
        });
    }
}

#[test]
fn a_claim_outlives_its_daemon_until_nothing_can_come_back_for_it() {
    /// What is done to the host of a daemon that has ended.
    type Then = fn(&Path);
    const TABLE: [(&str, Then, bool); 6] = [
        ("it ended", |_| {}, false),
        (
            "its state is gone, and its copy is not",
            |dir| {
                std::fs::create_dir_all(dir.join("a/run")).unwrap();
                std::fs::write(dir.join("a/run/state.journal"), "").unwrap();
                std::fs::remove_dir_all(dir.join("a/db")).unwrap();
            },
            false,
        ),
        (
            "its state is gone, and a link of its VM is not",
            |dir| {
                let label = format!(
                    "slice/{}/vm/x-1@11111111-2222-4333-8444-555555555555",
                    Instance::of(&dir.join("a"))
                );
                kernel::run(&format!(
                    "ip link add gone0 type veth peer name gone1; ip link set gone0 alias {label}"
                ));
                std::fs::remove_dir_all(dir.join("a/db")).unwrap();
            },
            false,
        ),
        (
            "its state cannot be looked at",
            |dir| {
                std::fs::remove_dir_all(dir.join("a")).unwrap();
                std::fs::write(dir.join("a"), "").unwrap();
            },
            false,
        ),
        (
            "all of it is gone",
            |dir| std::fs::remove_dir_all(dir.join("a")).unwrap(),
            true,
        ),
        (
            "the host was booted",
            |dir| {
                let path = dir.join(format!("claims/{}.json", Instance::of(&dir.join("a"))));
                let text = std::fs::read_to_string(&path).unwrap();
                std::fs::write(&path, text.replace("this-boot", "another-boot")).unwrap();
            },
            true,
        ),
    ];
    const RANGE: &str = "169.254.100.0/22";
    for (what, then, free) in TABLE {
        kernel::private(async {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let one = Daemon::new(&dir.path().join("a"), &claims);
            one.put("web", spec(Some(RANGE), "")).await;
            one.reconcile(&name("web")).await.unwrap();
            one.store.close();
            drop(one);
            then(dir.path());
            let two = Daemon::new(&dir.path().join("b"), &claims);
            two.put("web", spec(Some(RANGE), "")).await;
            let done = two.reconcile(&name("web")).await;
            assert_eq!(done.is_ok(), free, "{what}: {done:?}");
            if let Err(error) = done {
                let reported = error.to_string();
                assert!(
                    reported.contains("169.254.100.0/22 is claimed by another sliced"),
                    "{reported}"
                );
                assert!(reported.contains("which does not run now"), "{reported}");
                // Another range is chosen where the choice is free.
                two.put("other", spec(None, "")).await;
                two.reconcile(&name("other")).await.unwrap();
            }
            two.store.close();
        });
    }
}

#[test]
fn what_a_daemon_claimed_is_its_own_after_its_state_was_moved_or_its_file_was_lost() {
    /// What is done between two runs, and the directory of the second one.
    type Then = fn(&Path) -> &'static str;
    const TABLE: [(&str, Then); 4] = [
        ("nothing", |_| "a"),
        ("its claims are lost", |dir| {
            std::fs::remove_dir_all(dir.join("claims")).unwrap();
            "a"
        }),
        ("its file is nonsense", |dir| {
            let path = dir.join(format!("claims/{}.json", Instance::of(&dir.join("a"))));
            std::fs::write(path, "{").unwrap();
            "a"
        }),
        ("its state was moved", |dir| {
            std::fs::rename(dir.join("a"), dir.join("c")).unwrap();
            "c"
        }),
    ];
    for (what, then) in TABLE {
        kernel::private(async {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let run_dir = dir.path().join("run");
            let at = |part: &str| {
                let state = dir.path().join(part);
                let owner = ClaimOwner {
                    run_dir: run_dir.clone(),
                    ..owner(&state)
                };
                let mut daemon = Arc::into_inner(Daemon::new(&state, &claims)).unwrap();
                daemon.claims = Claims::new(&claims, owner);
                Arc::new(daemon)
            };
            let one = at("a");
            one.put("web", spec(None, "")).await;
            one.reconcile(&name("web")).await.unwrap();
            let ranges = one.ranges();
            one.store.close();
            drop(one);
            let again = at(then(dir.path()));
            again.resume().await;
            again.reconcile(&name("web")).await.unwrap();
            assert_eq!(again.ranges(), ranges, "{what}");
            assert_held(&ranges, &claims).await;
            again
                .change("web", |group| group.meta.deleting = true)
                .await;
            again.reconcile(&name("web")).await.unwrap();
            again.reconcile(&name("web")).await.unwrap();
            assert!(is_free(&ranges[0].to_string(), &claims).await, "{what}");
            again.store.close();
        });
    }
}

#[test]
fn bridges_of_two_daemons_are_refused_only_where_they_would_give_an_address_twice() {
    // The second daemon's bridge and gateway, beside `br0` with 10.0.7.1/24 and two VMs; whether it may have them.
    const TABLE: [(&str, &str, bool); 8] = [
        ("br0", "10.0.7.1/24", true),
        ("br0", "10.0.7.9/24", true),
        ("br1", "10.0.6.1/24", true),
        ("br1", "10.0.8.1/24", true),
        ("br1", "10.0.4.1/23", true),
        ("br1", "10.0.7.1/24", false),
        ("br1", "10.0.7.200/30", false),
        ("br1", "10.1.0.1/8", false),
    ];
    for (bridge, gateway, fine) in TABLE {
        kernel::private(async {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let daemons = ["a", "b"].map(|d| Daemon::new(&dir.path().join(d), &claims));
            daemons[0].put("web", bridged("br0", "10.0.7.1/24")).await;
            daemons[0].change("web", |group| group.spec.count = 2).await;
            daemons[0].reconcile(&name("web")).await.unwrap();
            daemons[1].put("web", bridged(bridge, gateway)).await;
            daemons[1].change("web", |group| group.spec.count = 2).await;
            let done = daemons[1].reconcile(&name("web")).await;
            let what = format!("{bridge} {gateway}");
            assert_eq!(done.is_ok(), fine, "{what}: {done:?}");
            match done {
                Ok(()) => {
                    let ips = daemons.iter().flat_map(|d| d.addresses());
                    let ips: BTreeSet<_> = ips.collect();
                    assert_eq!(ips.len(), 4, "{what}: {ips:?}");
                    assert!(!ips.contains("10.0.7.1"), "{what}");
                }
                Err(error) => {
                    let reported = error.to_string();
                    assert!(reported.contains("choose another `gateway`"), "{reported}");
                }
            }
            daemons.iter().for_each(|daemon| daemon.store.close());
        });
    }
}

#[test]
fn two_daemons_that_fill_one_bridge_at_once_give_no_address_twice() {
    kernel::private(async {
        for run in 0..rounds(6) {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let daemons = ["a", "b"].map(|d| Daemon::new(&dir.path().join(d), &claims));
            let mut work = Vec::new();
            for daemon in &daemons {
                for n in 0..3 {
                    let group = format!("g{n}");
                    daemon.put(&group, bridged("br0", "10.0.7.1/24")).await;
                    daemon.change(&group, |group| group.spec.count = 7).await;
                    for _ in 0..3 {
                        work.push((daemon.clone(), name(&group)));
                    }
                }
            }
            for done in at_once(work).await {
                done.unwrap();
            }
            let all: Vec<_> = daemons.iter().flat_map(|d| d.addresses()).collect();
            let distinct: BTreeSet<_> = all.iter().collect();
            assert_eq!((all.len(), distinct.len()), (42, 42), "run {run}");
            assert_sound(&daemons, &claims).await;
            daemons.iter().for_each(|daemon| daemon.store.close());
        }
    });
}

#[test]
fn listed_addresses_that_another_daemon_has_on_the_bridge_are_refused() {
    kernel::private(async {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let claims = dir.path().join("claims");
        let daemons = ["a", "b"].map(|d| Daemon::new(&dir.path().join(d), &claims));
        let listed = |ip: &str| {
            let mut template = bridged("br0", "10.0.7.1/24");
            if let NetworkSpec::Bridge(bridge) = &mut template.network {
                bridge.addresses = Addresses::Listed(vec![ip.parse().unwrap()]);
            }
            template
        };
        daemons[0].put("web", listed("10.0.7.5")).await;
        daemons[0].reconcile(&name("web")).await.unwrap();
        daemons[1].put("web", listed("10.0.7.5")).await;
        let refused = daemons[1].reconcile(&name("web")).await.unwrap_err();
        assert!(
            matches!(
                &refused,
                Error::Range(RangeError::Claimed {
                    claim: Claim::Address { .. },
                    ..
                })
            ),
            "{refused}"
        );
        daemons[1]
            .change("web", |group| group.spec.template = listed("10.0.7.6"))
            .await;
        daemons[1].reconcile(&name("web")).await.unwrap();
        assert_sound(&daemons, &claims).await;
        daemons.iter().for_each(|daemon| daemon.store.close());
    });
}

#[test]
fn a_group_that_is_switched_to_another_mode_gives_up_what_no_vm_has_any_more() {
    let isolated = || spec(None, "");
    let bridge = || bridged("br0", "10.0.7.1/24");
    let cni = || cni_spec("net");
    type Template = fn() -> VmSpec;
    let table: [(Template, Template, usize); 6] = [
        (isolated, cni, 0),
        (bridge, cni, 0),
        (isolated, bridge, 2),
        (bridge, isolated, 1),
        (cni, isolated, 1),
        (cni, bridge, 2),
    ];
    for (before, after, left) in table {
        kernel::private(async {
            let dir = tempfile::tempdir_in("/run").unwrap();
            let claims = dir.path().join("claims");
            let daemon = Daemon::new(&dir.path().join("a"), &claims);
            daemon.put("web", before()).await;
            daemon.reconcile(&name("web")).await.unwrap();
            daemon
                .change("web", |group| group.spec.template = after())
                .await;
            for _ in 0..4 {
                daemon.reconcile(&name("web")).await.unwrap();
            }
            let needed = daemon.store.read(group::needed);
            let held = file(&claims, &daemon.instance);
            assert_eq!(held, needed);
            assert_eq!(held.len(), left, "{held:?}");
            daemon.store.close();
        });
    }
}

#[test]
fn a_wide_gateway_is_one_claim() {
    kernel::private(async {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let claims = dir.path().join("claims");
        let daemon = Daemon::new(&dir.path().join("a"), &claims);
        daemon.put("web", bridged("br0", "10.0.0.1/8")).await;
        daemon.reconcile(&name("web")).await.unwrap();
        assert_eq!(file(&claims, &daemon.instance).len(), 2);
        assert_eq!(std::fs::read_dir(&claims).unwrap().count(), 3);
        daemon.store.close();
    });
}

#[test]
fn the_lock_of_the_claims_is_free_although_a_forked_child_still_has_its_descriptor() {
    kernel::private(async {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let claims = dir.path().join("claims");
        let daemon = Daemon::new(&dir.path().join("a"), &claims);
        // A child between fork and exec has copies of all descriptors; here it stays there.
        let copy = std::thread::spawn({
            let claims = claims.clone();
            move || copy_of(&claims.join("lock"))
        });
        daemon.put("web", spec(None, "")).await;
        while !copy.is_finished() {
            daemon.reconcile(&name("web")).await.unwrap();
            let claim = Claim::Range("169.254.200.0/22".parse().unwrap());
            daemon.claims.hold(vec![claim]).await.unwrap();
        }
        let _copy = copy.join().unwrap();
        let begin = std::time::Instant::now();
        assert!(is_free("169.254.240.0/22", &claims).await);
        assert!(begin.elapsed() < std::time::Duration::from_secs(4));
        daemon.store.close();
    });
}
