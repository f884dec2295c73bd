//! Nodes that refuse VMs: the backoff, its end and its reset.
//! Out of scope: the other filters.

use std::time::Duration;

use super::super::refusal;
use super::super::step::Action::*;
use super::world::*;
use crate::fleet::object::*;

/// VM `web-1` on `n1`, which refuses it. There are `count` nodes.
fn refused(count: usize) -> World {
    let mut world = World::with_nodes(count, 10);
    world.add_group("web", 1);
    world.run();
    refuse(&mut world);
    world
}

fn refuse(world: &mut World) {
    let vm = world.vm("web-1").clone();
    let node = vm.binding.unwrap().node;
    world.report("web-1", node.as_str(), vm.epoch, Phase::Refused);
}

#[test]
fn a_refused_vm_is_bound_to_another_node_with_a_greater_epoch() {
    let mut world = refused(2);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    let vm = world.vm("web-1");
    assert_eq!((world.node_of("web-1"), vm.epoch), (Some("n2"), 2));
    let refusal = &vm.refusals[0];
    assert_eq!(
        (
            refusal.node.as_str(),
            refusal.reason.as_str(),
            refusal.times
        ),
        ("n1", "the node says so", 1)
    );
    assert!(
        world.plan().steps.is_empty(),
        "the refusal of epoch 1 is old"
    );
}

#[test]
fn without_another_node_the_vm_is_pending_until_the_backoff_ends() {
    let mut world = refused(1);
    let plan = world.run();
    assert_eq!(actions(&plan), [(Unbind, "web-1")]);
    assert_eq!(plan.wake_after, Some(Duration::from_secs(10)));
    let vm = world.vm("web-1");
    assert_eq!((vm.epoch, vm.binding.as_ref()), (2, None));
    let reason =
        "0/1 nodes are available: 1 refused the VM. The last refusal is of n1: the node says so";
    assert_eq!(vm.pending.as_deref(), Some(reason));
    world.advance(9);
    let plan = world.plan();
    assert_eq!(
        (plan.steps.len(), plan.wake_after),
        (0, Some(Duration::from_secs(1)))
    );
    world.advance(1);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    assert_eq!(world.vm("web-1").epoch, 3);
}

#[test]
fn the_backoff_doubles_from_10_seconds_to_5_minutes() {
    let mut world = refused(1);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let wait = world.run().wake_after.unwrap();
        waits.push(wait.as_secs());
        world.advance(wait.as_secs());
        assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
        refuse(&mut world);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
}

#[test]
fn a_change_of_the_group_or_of_what_the_node_has_ends_the_backoff_and_resets_it() {
    let changes: [fn(&mut World); 2] = [
        |world| world.group("web", |it| it.spec.template.ram_bytes = 2 * GIB),
        |world| world.node_status("n1", |it| it.allocatable.vcpus = 9),
    ];
    for change in changes {
        let mut world = refused(1);
        world.run();
        world.advance(10);
        world.run();
        refuse(&mut world);
        assert_eq!(world.run().wake_after, Some(Duration::from_secs(20)));
        change(&mut world);
        assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
        refuse(&mut world);
        assert_eq!(world.run().wake_after, Some(Duration::from_secs(10)));
    }
}

#[test]
fn a_clock_that_is_set_back_does_not_prolong_the_backoff() {
    let mut world = refused(1);
    world.run();
    world.view.now = world
        .view
        .now
        .checked_sub(Duration::from_secs(3600))
        .unwrap();
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
}

#[test]
fn old_refusals_are_forgotten() {
    let mut world = refused(2);
    world.run();
    world.advance(1000);
    refuse(&mut world);
    world.run();
    let nodes = world.vm("web-1").refusals.iter().map(|it| it.node.as_str());
    assert_eq!(nodes.collect::<Vec<_>>(), ["n2"]);
}

#[test]
fn a_vm_that_many_nodes_refuse_is_offered_to_no_other_until_a_backoff_ends() {
    let most = refusal::MOST;
    let mut world = refused(most + 20);
    for _ in 1..most {
        assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
        refuse(&mut world);
    }
    let plan = world.run();
    assert_eq!(actions(&plan), [(Unbind, "web-1")]);
    assert_eq!(plan.wake_after, Some(Duration::from_secs(10)));
    let vm = world.vm("web-1");
    assert_eq!(vm.refusals.len(), most);
    let last = vm.refusals.last().expect("a refusal");
    let reason = format!(
        "{most} nodes have refused the VM; it is offered again later. The last refusal is of {}: the node says so",
        last.node
    );
    assert_eq!(vm.pending, Some(reason));
    let exhausted = world.view.clone();
    // Another template is another VM.
    world.group("web", |it| it.spec.template.vcpu = 2);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    world.view = exhausted;
    world.advance(9);
    assert_eq!(actions(&world.run()), []);
    world.advance(1);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    refuse(&mut world);
    world.run();
    assert_eq!(world.vm("web-1").refusals.len(), most);
}

#[test]
fn the_reason_of_a_node_is_cut() {
    let mut world = World::with_nodes(2, 10);
    world.add_group("web", 1);
    world.run();
    refuse(&mut world);
    let uid = world.vm("web-1").meta.uid;
    let status = world
        .view
        .statuses
        .get_mut(&uid)
        .unwrap()
        .get_mut(&name("n1"));
    status.unwrap().value.message = Some("\u{e9}".repeat(10_000));
    world.run();
    assert_eq!(world.vm("web-1").refusals[0].reason, "\u{e9}".repeat(200));
}
