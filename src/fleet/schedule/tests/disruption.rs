//! Updates and drains within `max_unavailable`.
//! Out of scope: lost nodes.

use super::super::step::Action::*;
use super::world::*;
use crate::api::host_group::UpdatePolicy;
use crate::fleet::object::*;

fn web(nodes: usize, count: u32) -> World {
    let mut world = World::with_nodes(nodes, 10);
    world.add_group("web", count);
    world.run();
    world.all_ready();
    world
}

fn drain(world: &mut World, node: &str, delete_local: bool) {
    world.admin(node, |it| it.drain = Some(Drain { delete_local }));
}

#[test]
fn an_update_raises_one_vm_after_the_other() {
    let mut world = web(2, 3);
    world.group("web", |it| it.spec.template.vcpu = 2);
    for vm in ["web-1", "web-2", "web-3"] {
        assert_eq!(actions(&world.run()), [(Update, vm)]);
        assert_eq!(world.vm(vm).group_generation, 2);
        assert!(
            world.plan().steps.is_empty(),
            "{vm} is not Ready with the new spec"
        );
        world.all_ready();
    }
    assert!(world.plan().steps.is_empty());
    let epochs = ["web-1", "web-2"].map(|vm| world.vm(vm).epoch);
    assert_eq!(epochs, [1, 1]);
    assert_eq!(
        world.vm("web-1").binding.as_ref().unwrap().resources.vcpus,
        2
    );
}

#[test]
fn an_update_raises_as_many_as_may_be_unavailable() {
    let mut world = web(2, 5);
    world.group("web", |it| {
        it.placement.max_unavailable = 2;
        it.spec.template.vcpu = 2;
    });
    assert_eq!(
        actions(&world.run()),
        [(Update, "web-1"), (Update, "web-2")]
    );
}

#[test]
fn on_delete_raises_none() {
    let mut world = web(2, 3);
    world.group("web", |it| {
        it.spec.update = UpdatePolicy::OnDelete;
        it.spec.template.vcpu = 2;
    });
    assert!(world.plan().steps.is_empty());
}

#[test]
fn a_vm_that_is_not_ready_is_updated_first_and_its_status_is_compared() {
    let mut world = web(2, 3);
    world.report("web-2", "n2", 1, Phase::NotReady);
    world.group("web", |it| it.spec.template.vcpu = 2);
    let plan = world.plan();
    assert_eq!(actions(&plan), [(Update, "web-2")]);
    assert!(world.holds(&plan.steps[0]));
    world.report("web-2", "n2", 1, Phase::Ready);
    assert!(!world.holds(&plan.steps[0]));
}

#[test]
fn vms_on_a_lost_node_are_unavailable_and_not_updated() {
    let mut world = web(2, 4);
    world.lose("n1", 1);
    world.group("web", |it| {
        it.placement.max_unavailable = 3;
        it.spec.template.vcpu = 2;
    });
    assert_eq!(actions(&world.run()), [(Update, "web-2")]);
}

#[test]
fn a_vm_that_grows_beyond_its_node_is_moved() {
    let mut world = web(2, 1);
    world.node_status("n1", |it| it.allocatable.vcpus = 1);
    world.group("web", |it| it.spec.template.vcpu = 2);
    assert_eq!(actions(&world.run()), [(Move, "web-1")]);
    assert_eq!(world.node_of("web-1"), Some("n2"));
    let mut world = web(2, 1);
    world.group("web", |it| it.spec.template.vcpu = 11);
    let plan = world.plan();
    assert_eq!((plan.steps.len(), plan.blocked.len()), (0, 1));
    let reason = "it is not moved: 0/2 nodes are available: 2 insufficient vCPUs.";
    assert_eq!(plan.blocked[0].reason, reason);
}

#[test]
fn a_drain_moves_one_vm_after_the_other_and_stops_each_first() {
    let mut world = web(2, 4);
    drain(&mut world, "n1", false);
    for vm in ["web-1", "web-3"] {
        assert_eq!(actions(&world.run()), [(Move, vm)]);
        let binding = world.vm(vm).binding.clone().unwrap();
        let moving = binding.moving_from.unwrap();
        assert_eq!((binding.node.as_str(), binding.epoch), ("n2", 2));
        assert_eq!(
            (moving.node.as_str(), moving.epoch, moving.delete_disk),
            ("n1", 1, false)
        );
        assert!(world.plan().steps.is_empty(), "n1 has not confirmed");
        world.report(vm, "n1", 1, Phase::Deleted);
        assert_eq!(actions(&world.run()), [(Confirm, vm)]);
        assert_eq!(world.vm(vm).binding.as_ref().unwrap().moving_from, None);
        assert!(world.plan().steps.is_empty(), "{vm} is not Ready on n2");
        world.report(vm, "n2", 2, Phase::Ready);
    }
    assert_eq!(actions(&world.run()), []);
}

#[test]
fn a_drain_stops_no_vm_that_has_no_other_node() {
    let mut world = web(2, 2);
    drain(&mut world, "n1", false);
    world.admin("n2", |it| it.unschedulable = true);
    let plan = world.plan();
    assert!(plan.steps.is_empty());
    let reason = "it is not moved: 0/2 nodes are available: 1 unschedulable, 1 draining.";
    assert_eq!(
        (plan.blocked[0].vm.as_str(), plan.blocked[0].reason.as_str()),
        ("web-1", reason)
    );
}

#[test]
fn a_drain_does_not_move_a_persistent_disk_unless_it_deletes_it() {
    let mut world = web(2, 2);
    world.group("web", |it| it.spec.template.storage.persistent = true);
    world.run();
    world.all_ready();
    world.run();
    world.all_ready();
    drain(&mut world, "n1", false);
    let plan = world.plan();
    assert_eq!(actions(&plan), []);
    assert_eq!(
        plan.blocked[0].reason,
        "it is not moved: it has a persistent disk"
    );
    drain(&mut world, "n1", true);
    assert_eq!(actions(&world.run()), [(Move, "web-1")]);
    let binding = world.vm("web-1").binding.clone().unwrap();
    assert!(binding.moving_from.unwrap().delete_disk);
}

#[test]
fn a_persistent_vm_on_a_draining_node_is_still_updated() {
    let mut world = web(1, 1);
    drain(&mut world, "n1", false);
    world.group("web", |it| it.spec.template.storage.persistent = true);
    assert_eq!(actions(&world.run()), [(Update, "web-1")]);
}

#[test]
fn a_drain_of_a_lost_node_waits_for_it() {
    let mut world = web(2, 1);
    drain(&mut world, "n1", false);
    world.lose("n1", 1_000_000);
    assert!(world.plan().steps.is_empty());
}

#[test]
fn drains_and_updates_share_what_may_be_unavailable() {
    let mut world = web(2, 4);
    world.group("web", |it| it.placement.max_unavailable = 2);
    drain(&mut world, "n2", false);
    assert_eq!(actions(&world.run()), [(Move, "web-2"), (Move, "web-4")]);
    let mut world = web(2, 4);
    world.group("web", |it| {
        it.placement.max_unavailable = 3;
        it.spec.template.vcpu = 2;
    });
    drain(&mut world, "n2", false);
    let expected = [(Move, "web-2"), (Move, "web-4"), (Update, "web-1")];
    assert_eq!(actions(&world.run()), expected);
}

#[test]
fn a_node_that_refuses_a_moved_vm_is_left_after_the_old_copy_is_deleted() {
    let mut world = web(3, 1);
    drain(&mut world, "n1", false);
    world.run();
    world.report("web-1", "n2", 2, Phase::Refused);
    assert!(world.plan().steps.is_empty());
    world.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    assert_eq!(world.node_of("web-1"), Some("n3"));
}

#[test]
fn a_vm_of_which_nothing_is_reported_may_be_ready() {
    let mut world = web(2, 3);
    world.group("web", |it| it.spec.template.vcpu = 2);
    let uid = world.vm("web-2").meta.uid;
    world.view.statuses.remove(&uid);
    assert!(world.plan().steps.is_empty());
    world.group("web", |it| it.placement.max_unavailable = 2);
    assert_eq!(actions(&world.run()), [(Update, "web-1")]);
}

#[test]
fn another_number_of_vms_or_another_placement_updates_no_vm() {
    let changes: [fn(&mut Group); 3] = [
        |it| it.spec.count = 5,
        |it| it.placement.max_unavailable = 3,
        |it| it.spec.update = UpdatePolicy::OnDelete,
    ];
    for change in changes {
        let mut world = web(2, 3);
        world.group("web", change);
        let plan = world.run();
        let is_create = |(action, _): &(_, &str)| *action == Create;
        assert!(actions(&plan).iter().all(is_create), "{plan:?}");
        assert!((1..=3).all(|index| world.vm(&format!("web-{index}")).group_generation == 1));
    }
}

#[test]
fn a_node_that_has_the_template_of_a_later_update_makes_a_vm_available() {
    let mut world = web(2, 2);
    for (of_status, is_available) in [(1, false), (2, true), (3, true)] {
        for vm in ["web-1", "web-2"] {
            let mut object = world.vm(vm).clone();
            object.group_generation = 2;
            world.put_vm(object);
            let node = world.node_of(vm).unwrap().to_owned();
            world.report(vm, &node, 1, Phase::Ready);
            let uid = world.vm(vm).meta.uid;
            let statuses = world.view.statuses.get_mut(&uid).unwrap();
            let status = statuses.get_mut(&name(&node)).unwrap();
            status.value.group_generation = of_status;
        }
        let mut updated = web(2, 2);
        updated.view = world.view.clone();
        let group = updated.view.groups.get_mut(&name("web")).unwrap();
        (group.value.meta.generation, group.value.template_generation) = (4, 4);
        let plan = updated.plan();
        // Without an available VM both may be updated: nothing is interrupted.
        let expected = if is_available { 1 } else { 2 };
        assert_eq!(plan.steps.len(), expected, "generation {of_status}");
    }
}

#[test]
fn a_vm_that_gets_no_more_than_it_has_is_updated_on_a_node_that_has_less_by_now() {
    type Change = fn(&mut Group);
    let variants: [(Change, &[(super::super::step::Action, &str)]); 3] = [
        (
            |it| it.spec.template.ram_bytes = GIB / 2,
            &[(Update, "web-1")],
        ),
        (
            |it| it.spec.template.dns_servers = vec!["10.0.0.1".parse().unwrap()],
            &[(Update, "web-1")],
        ),
        (
            |it| it.spec.template.ram_bytes = 2 * GIB,
            &[(Move, "web-1")],
        ),
    ];
    for (change, expected) in variants {
        let mut world = web(2, 1);
        world.node_status("n1", |it| it.allocatable = Resources::default());
        world.group("web", change);
        assert_eq!(actions(&world.run()), expected);
    }
}

#[test]
fn a_drain_that_waits_for_the_budget_says_so() {
    let mut world = web(3, 3);
    world.lose("n3", 1);
    drain(&mut world, "n1", false);
    let plan = world.plan();
    assert_eq!(actions(&plan), []);
    let blocked: Vec<_> = plan
        .blocked
        .iter()
        .map(|it| (it.vm.as_str(), it.reason.as_str()))
        .collect();
    let reason =
        "it is not moved yet: 1 VMs of group web are not available, and max_unavailable is 1";
    assert_eq!(blocked, [("web-1", reason)]);
    world.regain("n3");
    let plan = world.run();
    assert_eq!(
        (actions(&plan), plan.blocked.len()),
        (vec![(Move, "web-1")], 0)
    );
}
