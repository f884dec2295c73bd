//! Lost and fenced nodes: replacement, return, release.
//! Out of scope: the node's side of `stop_after`.

use std::time::Duration;

use super::super::step::Action::*;
use super::super::step::Compare;
use super::world::*;
use crate::api::network::{Addresses, BridgeSpec, NetworkSpec};
use crate::fleet::keys::Key;
use crate::fleet::object::*;

fn settings(reconcile: Reconcile) -> Option<Replacement> {
    Some(Replacement {
        replace_after: Duration::from_secs(300),
        stop_after: Duration::from_secs(60),
        reconcile,
    })
}

/// VM `web-1`, Ready on `n1`, and an empty node `n2`.
fn web(change: impl FnOnce(&mut Group)) -> World {
    let mut world = World::with_nodes(2, 10);
    for node in ["n1", "n2"] {
        world.file(node, "/d", true);
    }
    world.add_group("web", 1);
    world.group("web", |it| {
        it.replacement = settings(Reconcile::KeepReplacement);
        change(it);
    });
    world.run();
    world.all_ready();
    assert!(world.plan().steps.is_empty());
    world
}

#[test]
fn replace_after_must_cover_the_stop_of_the_copy() {
    let grace = Duration::from_secs(10);
    let check = |replace, stop| {
        let settings = Replacement {
            replace_after: Duration::from_secs(replace),
            stop_after: Duration::from_secs(stop),
            reconcile: Reconcile::KeepReplacement,
        };
        settings.check(grace).map_err(|error| error.to_string())
    };
    assert_eq!(check(100, 60), Ok(()));
    let error = "replace_after is 99s, expected at least 100s: stop_after (60s), the time to stop a VM (10s) and a margin of 30s";
    assert_eq!(check(99, 60), Err(error.to_owned()));
}

#[test]
fn a_vm_is_replaced_after_its_node_was_lost_for_long_enough() {
    let mut world = web(|_| ());
    world.lose("n1", 299);
    let plan = world.plan();
    assert_eq!(
        (plan.steps.len(), plan.wake_after),
        (0, Some(Duration::from_secs(1)))
    );
    world.lose("n1", 300);
    let plan = world.plan();
    assert_eq!(actions(&plan), [(Replace, "web-1")]);
    let key = Key::Alive(name("n1"));
    assert!(
        plan.steps[0]
            .compares
            .contains(&Compare { key, revision: 0 })
    );
    let key = Key::Vm(world.vm("web-1").meta.uid);
    assert!(
        plan.steps[0]
            .compares
            .iter()
            .any(|it| it.key == key && it.revision > 0)
    );
    world.regain("n1");
    assert!(!world.holds(&plan.steps[0]));
    world.lose("n1", 300);
    world.apply(&plan);
    let vm = world.vm("web-1");
    assert_eq!((world.node_of("web-1"), vm.epoch), (Some("n2"), 2));
    assert_eq!(
        (vm.previous[0].node.as_str(), vm.previous[0].epoch),
        ("n1", 1)
    );
    assert!(world.plan().steps.is_empty());
}

#[test]
fn what_a_group_does_not_permit_is_not_replaced() {
    let changes: [fn(&mut Group); 5] = [
        |it| it.replacement = None,
        |it| it.replacement.as_mut().unwrap().stop_after = Duration::from_secs(280),
        |it| it.spec.template.storage.persistent = true,
        |it| {
            let disk = crate::api::storage::AdditionalDisk {
                path: "/d".into(),
                read_only: false,
            };
            it.spec.template.storage.disks = vec![disk];
        },
        |it| {
            it.spec.template.network = NetworkSpec::Bridge(BridgeSpec {
                bridge: "br0".into(),
                tap_prefix: "tap".into(),
                gateway: None,
                addresses: Addresses::Listed(vec!["10.0.0.2".parse().unwrap()]),
                antispoof: true,
                isolate_ports: false,
                max_connections: None,
                tap_owner: Default::default(),
            });
        },
    ];
    for (row, change) in changes.into_iter().enumerate() {
        let mut world = web(change);
        world.lose("n1", 1_000_000);
        let plan = world.plan();
        assert_eq!((plan.steps.len(), plan.wake_after), (0, None), "row {row}");
    }
}

#[test]
fn what_the_node_has_confirmed_decides_when_its_copy_has_ended() {
    let mut world = web(|it| it.replacement = None);
    world.lose("n1", 0);
    world.group("web", |it| {
        it.replacement = settings(Reconcile::KeepReplacement)
    });
    world.lose("n1", 1_000_000);
    assert!(
        world.plan().steps.is_empty(),
        "the node does not stop its copy"
    );

    let mut world =
        web(|it| it.replacement.as_mut().unwrap().stop_after = Duration::from_secs(200));
    world.group("web", |it| {
        it.replacement = Some(Replacement {
            replace_after: Duration::from_secs(100),
            stop_after: Duration::from_secs(60),
            reconcile: Reconcile::KeepReplacement,
        })
    });
    // 200 s, a grace period of 3 s, 30 s.
    world.lose("n1", 232);
    assert!(world.plan().steps.is_empty());
    world.lose("n1", 233);
    assert_eq!(actions(&world.plan()), [(Replace, "web-1")]);
}

#[test]
fn a_binding_that_the_node_has_not_reported_is_replaced_under_the_terms_of_its_generation() {
    let mut world = web(|_| ());
    world.view.statuses.clear();
    world.lose("n1", 300);
    assert_eq!(actions(&world.plan()), [(Replace, "web-1")]);
    world.group("web", |it| {
        it.replacement = settings(Reconcile::KeepReplacement)
    });
    assert!(world.plan().steps.is_empty());
}

#[test]
fn without_another_node_the_vm_stays_bound() {
    let mut world = web(|_| ());
    world.admin("n2", |it| it.unschedulable = true);
    world.lose("n1", 300);
    let plan = world.plan();
    assert!(plan.steps.is_empty());
    let reason = "it is not replaced: 0/2 nodes are available: 1 unschedulable, 1 no contact.";
    assert_eq!(plan.blocked[0].reason, reason);
}

#[test]
fn a_previous_copy_is_forgotten_when_its_node_has_deleted_it_and_the_object_stays_until_then() {
    let mut world = web(|_| ());
    world.lose("n1", 300);
    world.run();
    world.report("web-1", "n2", 2, Phase::Ready);
    assert!(world.plan().steps.is_empty());
    let mut deleted = web(|_| ());
    deleted.view = world.view.clone();
    world.regain("n1");
    world.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    assert_eq!(world.vm("web-1").previous, []);
    assert!(world.plan().steps.is_empty());

    deleted.group("web", |it| it.meta.deleting = true);
    deleted.run();
    deleted.report("web-1", "n2", 2, Phase::Deleted);
    assert!(deleted.plan().steps.is_empty(), "n1 may have a copy");
    deleted.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&deleted.run()), [(Remove, "web-1")]);
}

#[test]
fn keep_original_returns_the_vm_after_the_replacement_is_deleted() {
    let mut world = web(|it| it.replacement = settings(Reconcile::KeepOriginal));
    world.lose("n1", 300);
    world.run();
    world.report("web-1", "n2", 2, Phase::Ready);
    assert!(world.vm("web-1").previous[0].keep);
    world.regain("n1");
    assert!(
        world.plan().steps.is_empty(),
        "n1 has not reported that it has stopped its copy"
    );
    world.report("web-1", "n1", 1, Phase::Stopped);
    assert_eq!(actions(&world.run()), [(Return, "web-1")]);
    let vm = world.vm("web-1");
    let binding = vm.binding.clone().unwrap();
    assert_eq!(
        (binding.node.as_str(), binding.epoch, vm.previous.len()),
        ("n1", 3, 0)
    );
    assert_eq!(binding.moving_from.unwrap().node.as_str(), "n2");
    assert!(world.plan().steps.is_empty());
    world.report("web-1", "n2", 2, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    world.report("web-1", "n1", 3, Phase::Ready);
    assert!(world.plan().steps.is_empty());
}

#[test]
fn keep_original_that_is_withdrawn_lets_the_node_delete_its_copy() {
    let mut world = web(|it| it.replacement = settings(Reconcile::KeepOriginal));
    world.lose("n1", 300);
    world.run();
    world.group("web", |it| it.replacement = None);
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    assert!(!world.vm("web-1").previous[0].keep);
}

#[test]
fn the_original_is_the_first_of_several_copies() {
    let mut world = web(|it| it.replacement = settings(Reconcile::KeepOriginal));
    world.add_node("n3", node_status(10, 10));
    for (node, epoch) in [("n1", 1), ("n2", 2)] {
        world.report("web-1", node, epoch, Phase::Ready);
        world.lose(node, 300);
        assert_eq!(actions(&world.run()), [(Replace, "web-1")]);
    }
    let kept = world.vm("web-1").previous.iter().map(|it| it.keep);
    assert_eq!(kept.collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_fenced_node_releases_its_vms_also_persistent_ones() {
    for nodes in [1, 2] {
        let mut world = web(|it| it.spec.template.storage.persistent = true);
        if nodes == 1 {
            world.admin("n2", |it| it.unschedulable = true);
        }
        world.lose("n1", 0);
        world.gone("n1");
        let plan = world.plan();
        assert_eq!(actions(&plan), [(Release, "web-1")]);
        let keys = plan.steps[0].compares.iter().map(|it| it.key.to_string());
        let prefixes = ["nodes/n1", "nodestatus/n1", "alive/n1", "groups/web"];
        let keys: Vec<String> = keys.collect();
        assert!(
            prefixes
                .iter()
                .all(|it| keys.contains(&format!("/slice/v1/{it}"))),
            "{keys:?}"
        );
        world.apply(&plan);
        let vm = world.vm("web-1");
        assert_eq!((vm.epoch, vm.previous.len()), (2, 0));
        assert_eq!(world.node_of("web-1"), (nodes == 2).then_some("n2"));
        assert!(world.plan().steps.is_empty());
    }
}

#[test]
fn a_node_that_has_contact_or_has_started_again_is_not_fenced() {
    let mut world = web(|_| ());
    world.gone("n1");
    assert!(world.plan().steps.is_empty());
    world.lose("n1", 0);
    world.node_status("n1", |it| it.boot_id = "second".into());
    assert!(world.plan().steps.is_empty());
}

#[test]
fn a_moved_vm_of_a_group_with_replacement_does_not_wait_for_a_lost_node() {
    let mut world = web(|_| ());
    world.admin("n1", |it| {
        it.drain = Some(Drain {
            delete_local: false,
        })
    });
    world.run();
    world.lose("n1", 299);
    let plan = world.plan();
    assert_eq!(
        (plan.steps.len(), plan.wake_after),
        (0, Some(Duration::from_secs(1)))
    );
    world.lose("n1", 300);
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    let vm = world.vm("web-1");
    assert_eq!(vm.binding.as_ref().unwrap().moving_from, None);
    assert_eq!(
        (vm.previous[0].node.as_str(), vm.previous[0].keep),
        ("n1", false)
    );
}

#[test]
fn a_node_that_is_drained_keeps_no_original_copy() {
    let mut world = web(|it| it.replacement = settings(Reconcile::KeepOriginal));
    world.lose("n1", 300);
    world.run();
    world.report("web-1", "n2", 2, Phase::Ready);
    assert!(world.vm("web-1").previous[0].keep);
    let drain = Drain {
        delete_local: false,
    };
    world.admin("n1", |it| it.drain = Some(drain));
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    assert!(!world.vm("web-1").previous[0].keep);
    world.regain("n1");
    world.report("web-1", "n1", 1, Phase::Deleted);
    assert_eq!(actions(&world.run()), [(Confirm, "web-1")]);
    assert!(world.vm("web-1").previous.is_empty());
    assert!(world.plan().steps.is_empty());
}

#[test]
fn a_plan_reports_that_it_depends_on_the_time_without_contact() {
    let mut world = web(|_| ());
    world.lose("n1", 299);
    assert!(!world.plan().depends_on_time);
    world.lose("n1", 300);
    assert!(world.plan().depends_on_time);
    world.regain("n1");
    assert!(!world.plan().depends_on_time);
    // The first node of a move is lost before it has confirmed.
    let drain = Drain {
        delete_local: false,
    };
    world.admin("n1", |it| it.drain = Some(drain));
    assert_eq!(actions(&world.run()), [(Move, "web-1")]);
    assert!(!world.plan().depends_on_time);
    world.lose("n1", 300);
    let plan = world.plan();
    assert_eq!(actions(&plan), [(Confirm, "web-1")]);
    assert!(plan.depends_on_time);
    // The statement of an administrator does not depend on time.
    let mut world = web(|_| ());
    world.lose("n1", 1);
    world.gone("n1");
    let plan = world.plan();
    assert_eq!(
        (actions(&plan), plan.depends_on_time),
        (vec![(Release, "web-1")], false)
    );
}

#[test]
fn a_copy_that_is_not_reported_is_replaced_only_if_it_was_bound_with_the_present_settings() {
    for (change, expected) in [(false, vec![(Replace, "web-1")]), (true, vec![])] {
        let mut world = web(|_| ());
        let uid = world.vm("web-1").meta.uid;
        world.view.statuses.remove(&uid);
        if change {
            world.group("web", |it| it.placement.max_unavailable = 7);
        }
        world.lose("n1", 300);
        assert_eq!(actions(&world.plan()), expected);
    }
}
