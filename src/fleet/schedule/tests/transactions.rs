//! Batches: what fits a transaction of etcd.
//! Out of scope: the decisions.

use std::collections::BTreeSet;

use super::super::step::batches;
use super::world::*;

#[test]
fn batches_hold_all_steps_in_order_within_the_limits_of_etcd() {
    let mut world = World::with_nodes(30, 50);
    for group in ["a", "b", "c"] {
        world.add_group(group, 300);
    }
    let created = world.run();
    world.all_ready();
    for group in ["a", "b", "c"] {
        world.group(group, |it| {
            it.placement.max_unavailable = 200;
            it.spec.template.dns_servers = vec!["10.0.0.1".parse().unwrap()];
        });
    }
    let updated = world.plan();
    for (plan, least) in [(created, 8), (updated, 5)] {
        let batches = batches(&plan.steps, 128);
        let steps: Vec<_> = batches
            .iter()
            .flat_map(|it| it.steps.iter().copied())
            .collect();
        assert_eq!(steps, plan.steps.iter().collect::<Vec<_>>());
        assert!(
            (least..least + 3).contains(&batches.len()),
            "{}",
            batches.len()
        );
        for batch in &batches {
            assert!(batch.steps.len() <= 128 && batch.compares.len() <= 127);
            let keys: BTreeSet<String> =
                batch.compares.iter().map(|it| it.key.to_string()).collect();
            assert_eq!(keys.len(), batch.compares.len());
            let required = batch.steps.iter().flat_map(|it| &it.compares);
            assert!(required.into_iter().all(|it| batch.compares.contains(&it)));
        }
    }
}

#[test]
fn no_two_steps_write_one_key_and_each_compares_what_it_writes() {
    let mut world = World::with_nodes(3, 10);
    world.add_group("web", 20);
    world.run();
    world.all_ready();
    world.group("web", |it| it.spec.count = 15);
    world.admin("n1", |it| {
        it.drain = Some(crate::fleet::object::Drain {
            delete_local: false,
        })
    });
    let plan = world.plan();
    let names: BTreeSet<_> = plan.steps.iter().map(|it| &it.name).collect();
    assert_eq!(names.len(), plan.steps.len());
    for step in &plan.steps {
        let uid = world.vm(step.name.as_str()).meta.uid;
        let key = crate::fleet::keys::Key::Vm(uid);
        assert!(
            step.compares
                .iter()
                .any(|it| it.key == key && it.revision > 0)
        );
    }
}

#[test]
fn no_step_uses_what_another_step_frees() {
    let mut world = World::with_nodes(1, 4);
    world.add_group("a", 1);
    world.group("a", |it| it.spec.template.vcpu = 3);
    world.run();
    world.all_ready();
    world.group("a", |it| it.spec.template.vcpu = 1);
    world.add_group("b", 2);
    let vms = actions(&world.run()).len();
    let bound = ["b-1", "b-2"].map(|it| world.node_of(it).is_some());
    assert_eq!((vms, bound), (3, [true, false]));
    world.run();
    assert_eq!(world.node_of("b-2"), Some("n1"));
}
