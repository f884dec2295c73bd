//! Nodes look for files when a group names them: nothing is decided before they have.
//! Out of scope: for how long they are waited for.

use std::path::PathBuf;
use std::time::Duration;

use super::super::step::Action;
use super::world::*;

/// Three nodes, and a group of three VMs with a kernel that no node has looked for.
fn world() -> World {
    let mut world = World::with_nodes(3, 10);
    world.add_group("web", 3);
    world.group("web", |it| {
        it.spec.template.kernel_file = Some(PathBuf::from("/k"))
    });
    for node in world.view.nodes.values_mut() {
        node.looks = Some(Duration::from_secs(3));
    }
    world
}

/// The node has looked.
fn looked(world: &mut World, node: &str, found: bool) {
    world.file(node, "/k", found);
    world.view.nodes.get_mut(&name(node)).unwrap().looks = None;
}

fn nodes(world: &World) -> Vec<&str> {
    let vms = world.view.vms.values();
    let bindings = vms.filter_map(|vm| vm.value.binding.as_ref());
    let mut nodes: Vec<&str> = bindings.map(|it| it.node.as_str()).collect();
    nodes.sort_unstable();
    nodes
}

#[test]
fn the_first_node_that_has_looked_does_not_get_all_vms() {
    let mut world = world();
    let plan = world.run();
    assert_eq!(
        (plan.steps.len(), plan.wake_after),
        (0, Some(Duration::from_secs(3)))
    );
    looked(&mut world, "n2", true);
    assert_eq!(actions(&world.run()), []);
    looked(&mut world, "n1", true);
    looked(&mut world, "n3", true);
    world.run();
    assert_eq!(nodes(&world), ["n1", "n2", "n3"]);
}

#[test]
fn a_node_that_cannot_run_the_vms_or_has_not_looked_in_time_is_not_waited_for() {
    for (what, change) in [
        ("no time is left", |w: &mut World| {
            w.view.nodes.get_mut(&name("n3")).unwrap().looks = None;
        }),
        ("no contact", |w| w.lose("n3", 0)),
        ("unschedulable", |w| {
            w.admin("n3", |it| it.unschedulable = true)
        }),
        ("another architecture", |w| {
            w.group("web", |it| {
                it.placement.architecture = Some("x86_64".into())
            });
            w.node_status("n3", |it| it.architecture = "riscv64".into());
        }),
        ("it lacks another file", |w| {
            w.group("web", |it| {
                it.spec.template.initrd_file = Some(PathBuf::from("/i"))
            });
            for node in ["n1", "n2", "n3"] {
                let found = node != "n3";
                w.file(node, "/i", found);
            }
        }),
    ] as [(&str, fn(&mut World)); 5]
    {
        let mut world = world();
        looked(&mut world, "n1", true);
        looked(&mut world, "n2", true);
        change(&mut world);
        world.run();
        assert_eq!(nodes(&world), ["n1", "n1", "n2"], "{what}");
    }
}

#[test]
fn no_vm_leaves_its_node_before_the_node_has_looked_for_the_files_of_a_new_template() {
    let mut world = World::with_nodes(2, 10);
    world.add_group("web", 2);
    world.run();
    world.all_ready();
    let before: Vec<String> = nodes(&world).into_iter().map(str::to_owned).collect();
    world.group("web", |it| {
        it.meta.generation += 1;
        it.template_generation = it.meta.generation;
        it.spec.template.kernel_file = Some(PathBuf::from("/k"));
    });
    for node in world.view.nodes.values_mut() {
        node.looks = Some(Duration::from_secs(5));
    }
    assert_eq!(actions(&world.run()), []);
    looked(&mut world, "n1", true);
    assert_eq!(actions(&world.run()), []);
    looked(&mut world, "n2", true);
    let plan = world.run();
    assert!(!plan.steps.is_empty());
    assert!(
        plan.steps.iter().all(|it| it.action == Action::Update),
        "{plan:?}"
    );
    assert_eq!(nodes(&world), before);
}
