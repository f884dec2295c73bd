//! The cost of plans: how it grows.
//! Out of scope: what is decided; times (`benches/schedule.rs`).

use super::super::step::Plan;
use super::world::*;
use crate::fleet::object::*;

/// A fleet with resources for `vms` VMs in `groups` groups on `nodes` nodes.
fn fleet(vms: u32, nodes: usize, groups: u32) -> World {
    let each = u64::from(vms).div_ceil(nodes as u64) + 1;
    let mut world = World::with_nodes(nodes, each);
    for group in 0..groups {
        let group = format!("g{group}");
        world.add_group(&group, vms / groups);
        world.group(&group, |it| it.placement.max_unavailable = 100);
    }
    world
}

/// The nodes looked at: from nothing; for one VM more in each group; for an update; for the drain of a node.
fn examined(vms: u32, nodes: usize, groups: u32, strategy: Strategy) -> [u64; 4] {
    let mut world = fleet(vms, nodes, groups);
    let each = |world: &mut World, change: fn(&mut Group)| {
        for group in 0..groups {
            world.group(&format!("g{group}"), change);
        }
    };
    for group in 0..groups {
        world.group(&format!("g{group}"), |it| it.placement.strategy = strategy);
    }
    let first = world.run();
    assert_eq!(first.steps.len() as u32, vms);
    world.all_ready();
    assert_eq!(world.plan(), Plan::default());
    each(&mut world, |it| it.spec.count += 1);
    let grown = world.plan();
    each(&mut world, |it| it.spec.count -= 1);
    let updated = world.plan();
    world.admin("n1", |it| {
        it.drain = Some(Drain {
            delete_local: false,
        })
    });
    let drained = world.plan();
    [&first, &grown, &updated, &drained].map(|it| it.examined)
}

#[test]
fn the_cost_grows_in_proportion_to_the_fleet() {
    for strategy in [Strategy::Spread, Strategy::Pack] {
        for groups in [1, 50] {
            let small = examined(1000, 40, groups, strategy);
            let large = examined(2000, 80, groups, strategy);
            for (small, large) in small.into_iter().zip(large) {
                assert!(
                    large <= 2 * small + 100,
                    "{groups} groups: {small}, {large}"
                );
            }
            assert!(large[0] <= 2 * (2000 + 80), "{large:?}");
        }
    }
}

#[test]
fn groups_with_equal_requests_share_one_look_at_the_nodes() {
    let mut world = fleet(500, 100, 500);
    let plan = world.plan();
    assert_eq!((plan.steps.len(), plan.examined), (500, 100 + 500));
}
