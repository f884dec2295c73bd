//! Subnets of groups in bridge mode: examples and laws.
//! Out of scope: writing them.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;
use proptest::prelude::*;

use super::super::pools::{Used, bounds};

use super::super::tests::world::{World, actions, name};
use super::*;
use crate::api::network::BridgeSpec;
use crate::fleet::object::Phase;

fn network(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn bridge(gateway: Option<&str>) -> NetworkSpec {
    NetworkSpec::Bridge(BridgeSpec {
        bridge: "br0".into(),
        tap_prefix: "t".into(),
        gateway: gateway.map(network),
        addresses: Default::default(),
        antispoof: true,
        isolate_ports: false,
        max_connections: None,
        tap_owner: Default::default(),
    })
}

/// A group in bridge mode with subnets of this pool.
fn add_group(world: &mut World, group: &str, count: u32, pool: &str, prefix_len: u8) {
    world.add_group(group, count);
    world.group(group, |it| {
        it.spec.template.network = bridge(None);
        it.placement.subnets = Some(Subnets {
            pool: network(pool),
            prefix_len,
        });
    });
}

fn subnet(world: &World, group: &str, node: &str) -> Option<String> {
    let range = world.view.ranges.get(&name(group))?.get(&name(node))?;
    Some(format!("{} {}", range.subnet, range.gateway))
}

/// Whether no two subnets overlap.
fn are_disjoint(networks: &[Ipv4Network]) -> bool {
    let mut all: Vec<(u32, u32)> = networks.iter().map(|it| bounds(*it)).collect();
    all.sort_unstable();
    all.windows(2).all(|pair| pair[0].1 < pair[1].0)
}

#[test]
fn each_node_gets_a_subnet_before_its_first_vm_and_keeps_it() {
    let mut world = World::with_nodes(2, 8);
    add_group(&mut world, "g", 2, "10.9.0.0/16", 24);
    let plan = world.plan();
    assert_eq!(
        actions_of(&plan.subnets),
        [(Action::AssignSubnet, "g"), (Action::AssignSubnet, "g")]
    );
    world.run();
    let both = [subnet(&world, "g", "n1"), subnet(&world, "g", "n2")];
    let expected = ["10.9.0.0/24 10.9.0.1", "10.9.1.0/24 10.9.1.1"];
    assert_eq!(both.map(Option::unwrap), expected);
    world.all_ready();
    world.group("g", |it| it.spec.count = 4);
    let plan = world.run();
    assert!(plan.subnets.is_empty());
    assert_eq!(plan.steps.len(), 2);
}

fn actions_of(steps: &[Step]) -> Vec<(Action, &str)> {
    let steps = steps.iter();
    steps.map(|it| (it.action, it.name.as_str())).collect()
}

#[test]
fn a_group_without_subnets_needs_none_and_its_subnet_is_not_taken() {
    let mut world = World::with_nodes(2, 8);
    world.add_group("fixed", 2);
    world.group("fixed", |it| {
        it.spec.template.network = bridge(Some("10.9.0.1/24"))
    });
    add_group(&mut world, "g", 1, "10.9.0.0/16", 24);
    world.run();
    assert_eq!(world.view.ranges.len(), 1);
    let node = world.node_of("g-1").unwrap().to_owned();
    assert_eq!(subnet(&world, "g", &node).unwrap(), "10.9.1.0/24 10.9.1.1");
}

#[test]
fn vms_go_to_nodes_with_a_subnet_when_the_pool_is_exhausted_and_are_pending_when_these_are_full() {
    let mut world = World::with_nodes(3, 3);
    // Two subnets.
    add_group(&mut world, "g", 8, "10.9.0.0/23", 24);
    world.run();
    let bound = (1..=8).filter_map(|index| world.node_of(&format!("g-{index}")));
    let nodes: BTreeSet<&str> = bound.clone().collect();
    assert_eq!((bound.count(), nodes.len()), (6, 2));
    let pending = world.vm("g-8").pending.clone().unwrap();
    assert_eq!(
        pending,
        "0/3 nodes are available: 2 insufficient vCPUs, 1 no free subnet."
    );
    assert_eq!(world.plan().steps, []);
}

#[test]
fn subnets_of_a_removed_group_are_freed_before_it_is_removed() {
    let mut world = World::with_nodes(2, 8);
    add_group(&mut world, "g", 2, "10.9.0.0/23", 24);
    world.run();
    world.group("g", |it| it.meta.deleting = true);
    world.run();
    for vm in ["g-1", "g-2"] {
        let node = world.node_of(vm).unwrap().to_owned();
        world.report(vm, &node, 1, Phase::Deleted);
    }
    world.run();
    let plan = world.run();
    assert_eq!(
        actions(&plan),
        [(Action::FreeSubnet, "g"), (Action::FreeSubnet, "g")]
    );
    world.view.ranges.retain(|_, it| !it.is_empty());
    assert_eq!(actions(&world.run()), [(Action::RemoveGroup, "g")]);
    add_group(&mut world, "h", 2, "10.9.0.0/23", 24);
    world.run();
    assert!(subnet(&world, "h", "n1").is_some() && subnet(&world, "h", "n2").is_some());
}

#[test]
fn nodes_of_vms_that_were_bound_before_get_subnets_too() {
    let mut world = World::with_nodes(2, 8);
    world.add_group("g", 2);
    world.group("g", |it| it.spec.template.network = bridge(None));
    world.run();
    world.all_ready();
    let of_n1 = Subnets {
        pool: network("10.9.0.0/24"),
        prefix_len: 24,
    };
    world
        .view
        .groups
        .get_mut(&name("g"))
        .unwrap()
        .value
        .placement
        .subnets = Some(of_n1);
    let plan = world.run();
    assert_eq!(plan.subnets.len(), 1);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.blocked.len(), 1);
    assert!(world.plan().subnets.is_empty());
}

fn pools() -> impl Strategy<Value = Vec<(u32, u8, u8)>> {
    // Pools that overlap partly, with subnets of different lengths.
    let pool = (0..1024_u32, 22..=28_u8, 22..=30_u8);
    proptest::collection::vec(pool, 1..60)
}

proptest! {
    #[test]
    fn subnets_are_in_their_pool_and_never_overlap(requests in pools(), foreign in pools()) {
        let mut used = Used::default();
        let base = u32::from(Ipv4Addr::new(10, 9, 0, 0));
        let at = |address: u32, prefix: u8| Ipv4Network::new(Ipv4Addr::from(base + address), prefix).unwrap();
        let foreign: Vec<Ipv4Network> =
            foreign.iter().take(5).map(|(address, prefix, _)| at(*address, *prefix)).collect();
        foreign.iter().for_each(|it| used.add(*it));
        let mut given: Vec<Ipv4Network> = Vec::new();
        for (address, prefix, prefix_len) in requests {
            let pool = at(address, prefix);
            let subnets = Subnets { pool, prefix_len };
            let overlaps = |it: Ipv4Network| {
                let (first, last) = bounds(it);
                given.iter().chain(&foreign).any(|other| bounds(*other).0 <= last && first <= bounds(*other).1)
            };
            match used.free(&subnets, 0) {
                Some(found) => {
                    prop_assert_eq!(found.prefix(), prefix_len);
                    prop_assert_eq!(found.network(), found.ip());
                    prop_assert!(bounds(pool).0 <= bounds(found).0 && bounds(found).1 <= bounds(pool).1);
                    prop_assert!(!overlaps(found));
                    used.add(found);
                    given.push(found);
                }
                // Each subnet of the pool is used.
                None if prefix_len >= prefix => {
                    let size = 1_u32 << (32 - prefix_len);
                    let (start, end) = bounds(pool);
                    let mut all = (start..=end).step_by(size as usize);
                    prop_assert!(all.all(|first| overlaps(Ipv4Network::new(first.into(), prefix_len).unwrap())));
                }
                None => {}
            }
        }
        prop_assert!(are_disjoint(&given));
    }

    #[test]
    fn nodes_and_groups_that_share_pools_never_overlap(
        groups in proptest::collection::vec((1..6_u32, 0..3_u32, 26..=29_u8), 1..5),
        nodes in 1..5_usize,
    ) {
        let mut world = World::with_nodes(nodes, 4);
        for (number, (count, pool, prefix_len)) in groups.iter().enumerate() {
            add_group(&mut world, &format!("g{number}"), *count, &format!("10.9.{}.0/{}", pool / 2, 24 + pool % 2), *prefix_len);
            world.run();
            world.all_ready();
        }
        world.run();
        let ranges: Vec<Ipv4Network> =
            world.view.ranges.values().flat_map(BTreeMap::values).map(|it| it.subnet).collect();
        prop_assert!(are_disjoint(&ranges));
        for vm in world.view.vms.values() {
            if let Some(binding) = &vm.value.binding {
                prop_assert!(world.view.ranges[&vm.value.group].contains_key(&binding.node));
            }
        }
        prop_assert!(world.plan().steps.is_empty() && world.plan().subnets.is_empty());
    }
}

#[test]
fn a_node_gets_no_more_vms_than_its_subnet_has_addresses() {
    // Five addresses for VMs on each of three nodes, which have the memory for 100.
    let mut world = World::with_nodes(3, 100);
    add_group(&mut world, "g", 20, "10.9.0.0/16", 29);
    world.run();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for index in 1..=20 {
        if let Some(node) = world.node_of(&format!("g-{index}")) {
            *counts.entry(node.to_owned()).or_default() += 1;
        }
    }
    let counts: Vec<usize> = counts.into_values().collect();
    assert_eq!(counts, [5, 5, 5]);
    let pending = world.vm("g-20").pending.clone().unwrap();
    assert_eq!(
        pending,
        "0/3 nodes are available: 3 no free address in its subnet."
    );
    assert_eq!(world.plan().steps, []);
}

#[test]
fn a_subnet_of_another_size_that_a_node_keeps_limits_it() {
    let mut world = World::with_nodes(1, 100);
    add_group(&mut world, "g", 2, "10.9.0.0/16", 30);
    world.run();
    world.group("g", |it| {
        it.placement.subnets.as_mut().unwrap().prefix_len = 24;
    });
    world.run();
    let bound = (1..=2).filter(|index| world.node_of(&format!("g-{index}")).is_some());
    assert_eq!(bound.count(), 1, "the node keeps its /30");
}
