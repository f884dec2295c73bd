//! Filters with their messages, and the order of the nodes.
//! Out of scope: what happens to VMs that have a node.

use std::path::PathBuf;
use std::time::Duration;

use super::super::step::Action;
use super::world::*;
use crate::api::guest_access::Agent;
use crate::api::network::{Addresses, BridgeSpec, CniSpec, IsolatedSpec, NetworkSpec};
use crate::api::secret::SecretName;
use crate::api::storage::AdditionalDisk;
use crate::api::vm::Hypervisor;
use crate::fleet::object::*;

/// What VM `web-1` has as `pending` if `n1` is the only node.
fn pending(change: impl FnOnce(&mut World)) -> Option<String> {
    let mut world = World::with_nodes(1, 4);
    world.add_group("web", 1);
    change(&mut world);
    world.run();
    assert!(world.plan().steps.is_empty(), "a second plan repeats it");
    let vm = world.vm("web-1");
    assert_eq!(vm.pending.is_some(), vm.binding.is_none());
    vm.pending.clone()
}

fn because(reason: &str) -> Option<String> {
    Some(format!("0/1 nodes are available: 1 {reason}."))
}

fn bridge() -> NetworkSpec {
    NetworkSpec::Bridge(BridgeSpec {
        bridge: "br0".into(),
        tap_prefix: "tap".into(),
        gateway: None,
        addresses: Addresses::Any,
        antispoof: true,
        isolate_ports: false,
        max_connections: None,
        tap_owner: Default::default(),
    })
}

type Change = fn(&mut World);

fn secrets() -> Vec<SecretName> {
    vec!["token".parse().unwrap()]
}

fn replacement() -> Replacement {
    Replacement {
        replace_after: Duration::from_secs(300),
        stop_after: Duration::from_secs(60),
        reconcile: Reconcile::KeepReplacement,
    }
}

fn disks() -> Vec<AdditionalDisk> {
    let disk = AdditionalDisk {
        path: "/dev/x".into(),
        read_only: false,
    };
    vec![disk]
}

#[test]
fn each_filter_has_a_reason_and_a_node_at_the_limit_fits() {
    fn template(world: &mut World, change: fn(&mut crate::api::vm::VmSpec)) {
        world.group("web", |it| change(&mut it.spec.template));
    }
    let table: [(Option<&str>, Change); 38] = [
        (None, |_| ()),
        (None, |w| template(w, |it| it.vcpu = 4)),
        (Some("insufficient vCPUs"), |w| {
            template(w, |it| it.vcpu = 5)
        }),
        (None, |w| template(w, |it| it.ram_bytes = 1000 * GIB)),
        (Some("insufficient memory"), |w| {
            template(w, |it| it.ram_bytes = 1001 * GIB)
        }),
        (None, |w| disk(w, 850)),
        (Some("insufficient disk space"), |w| disk(w, 851)),
        (Some("no free /30 network"), |w| {
            w.node_status("n1", |it| it.allocatable.isolated = 0)
        }),
        (None, |w| template(w, |it| it.network = bridge())),
        (Some("no free bridge port"), |w| {
            template(w, |it| it.network = bridge());
            w.node_status("n1", |it| it.allocatable.bridge_ports = 0);
        }),
        (Some("unschedulable"), |w| {
            w.admin("n1", |it| it.unschedulable = true)
        }),
        (Some("draining"), |w| {
            w.admin("n1", |it| it.drain = Some(Drain { delete_local: true }));
        }),
        (Some("gone"), |w| w.gone("n1")),
        (Some("secret not found"), |w| {
            template(w, |it| it.guest_access.provision.secrets = secrets());
        }),
        (None, |w| {
            template(w, |it| it.guest_access.provision.secrets = secrets());
            w.node_status("n1", |it| it.secrets.extend(secrets()));
        }),
        (Some("no guard runs"), |w| {
            w.group("web", |it| it.replacement = Some(replacement()));
            w.node_status("n1", |it| it.has_guard = false);
        }),
        (None, |w| {
            w.group("web", |it| it.replacement = Some(replacement()))
        }),
        (None, |w| w.node_status("n1", |it| it.has_guard = false)),
        (Some("slice-agent not installed"), |w| {
            template(w, |it| it.guest_access.agent = Agent::Inject);
            w.node_status("n1", |it| it.has_agent = false);
        }),
        (None, |w| {
            template(w, |it| it.guest_access.agent = Agent::Inject)
        }),
        (None, |w| w.node_status("n1", |it| it.has_agent = false)),
        (Some("CNI network not configured"), |w| {
            template(w, |it| it.network = cni());
            w.node_status("n1", |it| it.networks = ["other".to_owned()].into());
        }),
        (None, |w| {
            template(w, |it| it.network = cni());
            w.node_status("n1", |it| it.networks = ["lab".to_owned()].into());
        }),
        (Some("image, kernel or disk missing or not allowed"), |w| {
            template(w, |it| it.storage.disks = disks());
        }),
        (None, |w| {
            template(w, |it| it.storage.disks = disks());
            w.file("n1", "/dev/x", true);
        }),
        (Some("no contact"), |w| w.lose("n1", 0)),
        (Some("not registered"), |w| {
            w.view.nodes.get_mut(&name("n1")).unwrap().status = None;
        }),
        (Some("outdated daemon"), |w| {
            w.node_status("n1", |it| it.format = VERSION - 1)
        }),
        (None, |w| {
            w.group("web", |it| {
                it.placement.architecture = Some("x86_64".into())
            })
        }),
        (Some("other architecture"), |w| {
            w.group("web", |it| {
                it.placement.architecture = Some("aarch64".into())
            });
        }),
        (Some("VMM not installed"), |w| {
            template(w, |it| it.hypervisor = Hypervisor::Firecracker);
        }),
        (None, |w| template(w, |it| it.hypervisor = Hypervisor::None)),
        (Some("labels do not match"), |w| select(w, "hdd")),
        (None, |w| {
            select(w, "ssd");
            w.node_status("n1", |it| {
                drop(it.labels.insert("disk".into(), "ssd".into()))
            });
        }),
        (Some("labels do not match"), |w| {
            select(w, "ssd");
            w.node_status("n1", |it| {
                drop(it.labels.insert("disk".into(), "ssd".into()))
            });
            w.admin("n1", |it| {
                drop(it.labels.insert("disk".into(), "hdd".into()))
            });
        }),
        (Some("image, kernel or disk missing or not allowed"), |w| {
            kernel(w, "/k")
        }),
        (None, |w| {
            kernel(w, "/k");
            w.node_status("n1", |it| {
                it.files = [("/i".into(), true), ("/k".into(), true)].into()
            });
        }),
        (Some("image, kernel or disk missing or not allowed"), |w| {
            kernel(w, "/k2");
            w.node_status("n1", |it| {
                it.files = [("/i".into(), true), ("/k".into(), true)].into()
            });
        }),
    ];
    for (row, (reason, change)) in table.into_iter().enumerate() {
        assert_eq!(pending(change), reason.and_then(because), "row {row}");
    }
}

fn cni() -> NetworkSpec {
    NetworkSpec::Cni(CniSpec {
        network_name: "lab".to_owned(),
        tap_owner: Default::default(),
        cni: Default::default(),
    })
}

fn disk(world: &mut World, gib: u64) {
    world.node_status("n1", |it| it.files = [("/i".into(), true)].into());
    world.group("web", |it| {
        it.spec.template.storage.image = Some(PathBuf::from("/i"));
        it.spec.template.storage.size_bytes = Some(gib * GIB);
    });
}

fn kernel(world: &mut World, path: &str) {
    let path = Some(PathBuf::from(path));
    world.group("web", |it| it.spec.template.kernel_file = path);
}

fn select(world: &mut World, value: &str) {
    let label = ("disk".to_owned(), value.to_owned());
    world.group("web", |it| {
        it.placement.node_selector = Labels::from([label])
    });
}

#[test]
fn a_message_counts_the_nodes_by_reason() {
    let mut world = World::with_nodes(6, 4);
    world.add_group("web", 1);
    world.group("web", |it| it.spec.template.ram_bytes = 2000 * GIB);
    for node in ["n2", "n3", "n4"] {
        world.admin(node, |it| it.unschedulable = true);
    }
    world.lose("n6", 5);
    world.run();
    let expected = "0/6 nodes are available: 2 insufficient memory, 3 unschedulable, 1 no contact.";
    assert_eq!(world.vm("web-1").pending.as_deref(), Some(expected));
}

#[test]
fn without_nodes_the_message_says_so() {
    let mut world = World::new();
    world.add_group("web", 1);
    world.run();
    let pending = world.vm("web-1").pending.as_deref();
    assert_eq!(pending, Some("0/0 nodes are available."));
}

#[test]
fn a_vm_that_fits_later_is_bound_and_its_message_is_cleared() {
    let mut world = World::with_nodes(1, 4);
    world.admin("n1", |it| it.unschedulable = true);
    world.add_group("web", 1);
    world.run();
    world.admin("n1", |it| it.unschedulable = false);
    assert_eq!(actions(&world.run()), [(Action::Bind, "web-1")]);
    let vm = world.vm("web-1");
    assert_eq!((vm.pending.as_ref(), vm.epoch), (None, 1));
}

#[test]
fn a_message_that_changes_is_updated_once() {
    let mut world = World::with_nodes(1, 4);
    world.admin("n1", |it| it.unschedulable = true);
    world.add_group("web", 1);
    world.run();
    world.lose("n1", 0);
    assert_eq!(actions(&world.run()), [(Action::Pending, "web-1")]);
    assert_eq!(world.vm("web-1").pending, because("no contact"));
    assert!(world.plan().steps.is_empty());
}

/// The nodes of VMs `web-1`, `web-2`, ….
fn nodes(world: &World, count: usize) -> Vec<&str> {
    let vms = (1..=count).map(|it| format!("web-{it}"));
    vms.filter_map(|it| world.node_of(&it)).collect()
}

#[test]
fn spread_prefers_the_node_with_fewest_vms_of_the_group_then_the_fullest_then_the_name() {
    let mut world = World::with_nodes(3, 10);
    world.add_group("db", 1);
    world.group("db", |it| {
        it.placement.node_selector = Labels::from([("on".into(), "n3".into())])
    });
    world.admin("n3", |it| drop(it.labels.insert("on".into(), "n3".into())));
    world.run();
    world.add_group("web", 5);
    world.run();
    assert_eq!(nodes(&world, 5), ["n3", "n1", "n2", "n3", "n1"]);
}

#[test]
fn pack_fills_a_node_before_the_next() {
    let mut world = World::with_nodes(3, 3);
    world.add_group("web", 7);
    world.group("web", |it| it.placement.strategy = Strategy::Pack);
    world.run();
    assert_eq!(nodes(&world, 7), ["n1", "n1", "n1", "n2", "n2", "n2", "n3"]);
}

#[test]
fn spread_continues_with_the_vms_that_a_group_has() {
    let mut world = World::with_nodes(3, 10);
    world.add_group("web", 2);
    world.run();
    world.group("web", |it| it.spec.count = 4);
    world.run();
    assert_eq!(nodes(&world, 4), ["n1", "n2", "n3", "n1"]);
}

#[test]
fn a_bridge_has_at_most_1023_ports_also_for_several_groups() {
    let mut world = World::new();
    world.add_node("n1", node_status(5000, 5000));
    for group in ["a", "b"] {
        world.add_group(group, 600);
        world.group(group, |it| it.spec.template.network = bridge());
    }
    world.run();
    let bound = world
        .view
        .vms
        .values()
        .filter(|it| it.value.binding.is_some());
    assert_eq!(bound.count(), 1023);
    assert_eq!(world.vm("b-600").pending, because("no free bridge port"));
}

#[test]
fn two_hundred_vms_for_190_places_leave_ten_pending_with_the_reason() {
    let mut world = World::with_nodes(19, 10);
    world.add_group("web", 200);
    world.run();
    assert!(world.plan().steps.is_empty());
    let (bound, pending): (Vec<_>, Vec<_>) = world
        .view
        .vms
        .values()
        .partition(|it| it.value.binding.is_some());
    assert_eq!((bound.len(), pending.len()), (190, 10));
    let reason = "0/19 nodes are available: 19 insufficient vCPUs.";
    assert!(
        pending
            .iter()
            .all(|it| it.value.pending.as_deref() == Some(reason))
    );
}

#[test]
fn copies_that_may_exist_use_their_nodes() {
    let mut world = World::with_nodes(1, 2);
    world.add_group("old", 2);
    world.run();
    world.all_ready();
    world.group("old", |it| it.meta.deleting = true);
    world.run();
    world.add_group("web", 1);
    world.run();
    assert_eq!(world.vm("web-1").pending, because("insufficient vCPUs"));
    world.report("old-1", "n1", 1, Phase::Deleted);
    world.run();
    world.run();
    assert_eq!(world.node_of("web-1"), Some("n1"));
}

#[test]
fn a_node_gets_as_many_vms_of_a_group_in_isolated_mode_as_its_range_has_networks() {
    let range = |text: &str| {
        NetworkSpec::Isolated(IsolatedSpec {
            range: Some(text.parse().unwrap()),
            max_connections: None,
            policy: Default::default(),
            tap_owner: Default::default(),
        })
    };
    for strategy in [Strategy::Pack, Strategy::Spread] {
        let mut world = World::with_nodes(2, 100);
        world.add_group("web", 11);
        world.group("web", |it| {
            it.placement.strategy = strategy;
            it.spec.template.network = range("169.254.100.0/28");
        });
        world.run();
        let on = |world: &World, node: &str| {
            let vms = world.view.vms.values();
            let bound = vms.filter_map(|vm| vm.value.binding.clone());
            bound.filter(|binding| binding.node == name(node)).count()
        };
        assert_eq!((on(&world, "n1"), on(&world, "n2")), (4, 4));
        let pending = world.vm("web-11").pending.clone().unwrap();
        assert_eq!(pending, "0/2 nodes are available: 2 no free /30 network.");
        assert!(
            world.plan().steps.is_empty(),
            "a second plan repeats nothing"
        );
        world.add_node("n3", node_status(100, 1000));
        world.run();
        assert_eq!(on(&world, "n3"), 3);
    }
}
