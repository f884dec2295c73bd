//! Creation and deletion: what `count` and `deleting` change, and what proves that a VM does not run.
//! Out of scope: VMs that are moved or replaced.

use super::super::step::Action::*;
use super::world::*;
use crate::fleet::object::*;

/// Group `web` with VMs that are Ready, on `n1` and `n2`.
fn web(count: u32) -> World {
    let mut world = World::with_nodes(2, 10);
    world.add_group("web", count);
    world.run();
    world.all_ready();
    assert!(world.plan().steps.is_empty());
    world
}

#[test]
fn the_vms_of_a_group_are_created_with_their_names_and_bindings() {
    let mut world = World::with_nodes(2, 10);
    world.add_group("web", 2);
    assert_eq!(
        actions(&world.run()),
        [(Create, "web-1"), (Create, "web-2")]
    );
    let (vm, group) = (world.vm("web-2"), &world.view.groups[&name("web")].value);
    assert_eq!((vm.index, vm.epoch, vm.group_uid), (2, 1, group.meta.uid));
    let binding = vm.binding.as_ref().unwrap();
    assert_eq!((binding.node.as_str(), binding.epoch), ("n2", 1));
    assert_eq!(
        (binding.resources.vcpus, binding.resources.isolated),
        (1, 1)
    );
}

#[test]
fn scaling_down_deletes_the_highest_indexes_first() {
    let mut world = web(4);
    world.group("web", |it| it.spec.count = 2);
    let plan = world.run();
    let deletes = actions(&plan)
        .into_iter()
        .filter(|(action, _)| *action == Delete);
    assert_eq!(
        deletes.collect::<Vec<_>>(),
        [(Delete, "web-4"), (Delete, "web-3")]
    );
}

#[test]
fn a_bound_vm_is_removed_after_its_node_has_confirmed_and_not_because_its_status_is_absent() {
    let mut world = web(1);
    world.group("web", |it| it.meta.deleting = true);
    assert_eq!(actions(&world.run()), [(Delete, "web-1")]);
    for _ in 0..2 {
        assert!(world.plan().steps.is_empty());
        world.view.statuses.clear();
    }
    let deleting = world.vm("web-1").clone();
    for (phase, epoch) in [
        (Phase::Deleted, 0),
        (Phase::Stopped, 1),
        (Phase::NotReady, 1),
    ] {
        world.report("web-1", "n1", epoch, phase);
        assert!(world.plan().steps.is_empty(), "{phase:?} of epoch {epoch}");
    }
    world.report("web-1", "n2", 1, Phase::Deleted);
    assert!(world.plan().steps.is_empty(), "another node");
    world.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Remove, "web-1")]);
    assert_eq!(actions(&world.run()), [(RemoveGroup, "web")]);
    assert!(world.plan().steps.is_empty());
    assert!(deleting.meta.deleting && world.view.vms.is_empty() && world.view.groups.is_empty());
}

#[test]
fn a_vm_that_was_never_bound_is_removed_at_once() {
    let mut world = World::with_nodes(1, 1);
    world.add_group("web", 2);
    world.run();
    world.group("web", |it| it.spec.count = 1);
    assert!(actions(&world.run()).contains(&(Remove, "web-2")));
}

#[test]
fn a_vm_on_a_lost_node_is_deleted_when_the_node_confirms_or_is_gone() {
    for is_gone in [false, true] {
        let mut world = web(1);
        world.group("web", |it| it.meta.deleting = true);
        world.run();
        world.lose("n1", 1_000_000);
        assert!(world.plan().steps.is_empty());
        match is_gone {
            true => world.gone("n1"),
            false => world.report("web-1", "n1", 1, Phase::Deleted),
        }
        assert_eq!(actions(&world.run()), [(Remove, "web-1")]);
    }
}

#[test]
fn an_index_is_used_again_after_its_vm_is_removed() {
    let mut world = web(1);
    world.group("web", |it| it.spec.count = 0);
    world.run();
    let uid = world.vm("web-1").meta.uid;
    world.group("web", |it| it.spec.count = 1);
    assert!(world.plan().steps.is_empty(), "the name is in use");
    world.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Remove, "web-1")]);
    assert_eq!(actions(&world.run()), [(Create, "web-1")]);
    assert_ne!(world.vm("web-1").meta.uid, uid);
}

#[test]
fn a_forced_deletion_is_passed_on() {
    let mut world = web(1);
    world.group("web", |it| it.meta.deleting = true);
    world.run();
    assert!(!world.vm("web-1").meta.forced);
    world.group("web", |it| it.meta.forced = true);
    assert_eq!(actions(&world.run()), [(Delete, "web-1")]);
    assert!(world.vm("web-1").meta.forced && world.plan().steps.is_empty());
}

#[test]
fn of_two_vms_with_one_index_the_bound_one_remains() {
    let mut world = web(1);
    let mut twin = world.vm("web-1").clone();
    twin.meta.uid = uid(1);
    (twin.binding, twin.epoch) = (None, 0);
    world.put_vm(twin.clone());
    let plan = world.run();
    assert_eq!(actions(&plan), [(Remove, "web-1")]);
    assert!(!world.view.vms.contains_key(&twin.meta.uid));
}

#[test]
fn vms_of_a_group_that_is_not_there_stay() {
    let mut world = web(2);
    let group = world.view.groups.remove(&name("web")).unwrap();
    assert!(world.plan().steps.is_empty());
    let mut pending = world.vm("web-2").clone();
    pending.binding = None;
    world.put_vm(pending);
    assert_eq!(actions(&world.run()), [(Pending, "web-2")]);
    assert!(world.plan().steps.is_empty());
    assert_eq!(
        world.vm("web-2").pending.as_deref(),
        Some("group web is not found")
    );
    world.view.groups.insert(name("web"), group);
    assert_eq!(actions(&world.run()), [(Bind, "web-2")]);
}

#[test]
fn vms_of_an_earlier_group_of_the_same_name_are_deleted() {
    let mut world = web(1);
    world.group("web", |it| it.meta.uid = uid(7));
    assert_eq!(actions(&world.run()), [(Delete, "web-1")]);
}

#[test]
fn a_vm_that_a_user_has_deleted_on_its_node_gets_a_node_again() {
    let mut world = web(1);
    world.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    assert_eq!(world.vm("web-1").epoch, 2);
}

#[test]
fn what_is_missing_from_a_view_deletes_and_moves_nothing() {
    let world = web(4);
    let mut without_nodes = web(4);
    without_nodes.view.nodes.clear();
    let mut without_status = web(4);
    without_status.view.statuses.clear();
    let mut unregistered = web(4);
    for node in unregistered.view.nodes.values_mut() {
        node.status = None;
    }
    let mut lost = web(4);
    lost.lose("n1", 1_000_000);
    lost.lose("n2", 1_000_000);
    for mut world in [world, without_nodes, without_status, unregistered, lost] {
        assert_eq!(world.plan().steps, []);
        world.group("web", |it| it.spec.template.vcpu = 2);
        let moved = |action| !matches!(action, Update | Pending);
        assert!(
            !actions(&world.plan())
                .into_iter()
                .any(|(action, _)| moved(action))
        );
    }
}

#[test]
fn a_vm_with_a_disk_on_its_node_gets_the_same_node_again_or_none() {
    let mut world = web(1);
    world.group("web", |it| it.spec.template.storage.persistent = true);
    world.run();
    world.add_group("other", 15);
    world.run();
    world.report("web-1", "n1", 1, Phase::Deleted);
    world.admin("n1", |it| it.unschedulable = true);
    let plan = world.run();
    assert_eq!(actions(&plan), []);
    let reason = "it is not started again: it has a persistent disk";
    assert_eq!(plan.blocked[0].reason, reason);
    world.admin("n1", |it| it.unschedulable = false);
    assert_eq!(actions(&world.run()), [(Bind, "web-1")]);
    assert_eq!(
        (world.node_of("web-1"), world.vm("web-1").epoch),
        (Some("n1"), 2)
    );
}
