//! What an object requests, with contact.
//! Out of scope: status keys.

use super::*;

/// From `from` to `to`, which has the epoch 5.
fn moving(from: &str, to: &str, delete_disk: bool) -> Binding {
    Binding {
        moving_from: Some(MovingFrom {
            node: name(from),
            epoch: 4,
            resources: Resources::default(),
            delete_disk,
        }),
        ..binding(to, 5)
    }
}

/// Bound to `n2`, and `n1` may have a copy.
fn previous(keep: bool) -> Vm {
    let mut vm = object(1, Some(binding("n2", 5)));
    vm.previous.push(PreviousCopy {
        node: name("n1"),
        epoch: 4,
        resources: Resources::default(),
        keep,
    });
    vm
}

fn deleting(mut vm: Vm) -> Vm {
    vm.meta.deleting = true;
    vm
}

#[test]
fn a_vm_that_is_bound_here_is_added_with_its_group() {
    let fixture = Fixture::new().object(object(1, Some(binding("n1", 4))));
    assert_eq!(fixture.changes(), ["put group web 1", "add 1 4"]);
    let plan = fixture.plan();
    let Step::PutGroup { spec, .. } = &plan.steps[0] else {
        panic!("{plan:?}");
    };
    assert_eq!((spec.count, spec.update), (0, UpdatePolicy::OnDelete));
    let Step::AddVm { vm } = &plan.steps[1] else {
        panic!("{plan:?}");
    };
    assert_eq!(
        **vm,
        LocalVm {
            run: Run::NotReady,
            ..local(1, 4)
        }
    );
}

#[test]
fn a_group_is_copied_once_for_all_its_vms() {
    let fixture = Fixture::new()
        .object(object(1, Some(binding("n1", 1))))
        .object(object(2, Some(binding("n1", 1))));
    assert_eq!(fixture.changes(), ["put group web 1", "add 1 1", "add 2 1"]);
}

#[test]
fn what_an_object_requests_of_a_vm_that_exists() {
    use ReportReason::{StaleEpoch, Unbound};
    let unbound = |epoch| Vm {
        epoch,
        ..object(1, None)
    };
    type Variant = (
        &'static str,
        Vm,
        &'static [&'static str],
        Option<ReportReason>,
    );
    let bound = |node, epoch| object(1, Some(binding(node, epoch)));
    let variants: [Variant; 18] = [
        ("bound here", bound("n1", 4), &[], None),
        (
            "a greater epoch here",
            bound("n1", 5),
            &["update 1 5 1"],
            None,
        ),
        ("a lower epoch here", bound("n1", 3), &[], Some(StaleEpoch)),
        (
            "a greater epoch elsewhere",
            bound("n2", 5),
            &["remove 1 for 5"],
            None,
        ),
        (
            "the same epoch elsewhere",
            bound("n2", 4),
            &[],
            Some(StaleEpoch),
        ),
        (
            "a lower epoch elsewhere",
            bound("n2", 3),
            &[],
            Some(StaleEpoch),
        ),
        ("unbound", unbound(4), &[], Some(Unbound)),
        (
            "unbound with a greater epoch",
            unbound(5),
            &["remove 1 for 5"],
            None,
        ),
        (
            "moved from here",
            object(1, Some(moving("n1", "n2", false))),
            &["remove 1 for 5"],
            None,
        ),
        (
            "moved with its disk",
            object(1, Some(moving("n1", "n2", true))),
            &["remove 1 for 5 with its disk"],
            None,
        ),
        (
            "moved to here",
            object(1, Some(moving("n2", "n1", false))),
            &["update 1 5 1"],
            None,
        ),
        (
            "a previous copy",
            previous(false),
            &["remove 1 for 5"],
            None,
        ),
        (
            "a previous copy that is kept",
            previous(true),
            &["stop 1 Kept"],
            None,
        ),
        ("deleting", deleting(bound("n1", 4)), &["remove 1"], None),
        (
            "deleting, a lower epoch",
            deleting(bound("n1", 3)),
            &["remove 1"],
            None,
        ),
        (
            "deleting, elsewhere",
            deleting(bound("n2", 5)),
            &["remove 1"],
            None,
        ),
        (
            "deleting, a lower epoch elsewhere",
            deleting(bound("n2", 3)),
            &["remove 1"],
            None,
        ),
        (
            "deleting, unbound",
            deleting(unbound(4)),
            &["remove 1"],
            None,
        ),
    ];
    for (name, vm, changes, report) in variants {
        let fixture = Fixture::new().object(vm.clone()).local(local(1, 4));
        assert_eq!(fixture.changes(), changes, "{name}");
        assert_eq!(fixture.reports(), Vec::from_iter(report), "{name}");

        // A VM that was stopped is started only for its own epoch or a greater one, here.
        let mut stopped = local(1, 4);
        stopped.run = Run::Stopped;
        let fixture = Fixture::new().object(vm.clone()).local(stopped);
        let starts = fixture.changes().contains(&"start 1".to_owned());
        let expected = matches!(name, "bound here" | "a greater epoch here");
        assert_eq!(starts, expected, "{name}, stopped");

        let mut leaving = local(1, 4);
        leaving.run = Run::Deleting;
        let fixture = Fixture::new().object(vm).local(leaving);
        assert!(fixture.changes().is_empty(), "{name}, being deleted");
        assert!(!fixture.may_restart(1), "{name}, being deleted");
    }
}

#[test]
fn a_vm_without_an_object_that_can_be_read_is_kept_and_reported() {
    let missing = Fixture::new().local(local(1, 4));
    assert_eq!(missing.changes(), Vec::<String>::new());
    assert_eq!(missing.reports(), [ReportReason::NotInFleet]);

    let unreadable = Fixture::new().undecodable(1).local(local(1, 4));
    assert_eq!(unreadable.changes(), Vec::<String>::new());
    assert_eq!(unreadable.reports(), [ReportReason::Undecodable]);
    let message = &unreadable.plan().reports[0].message;
    assert!(message.contains("format 9"), "{message}");

    let mut empty = Fixture::new().local(local(1, 4)).local(local(2, 4));
    empty.objects = Objects::default();
    assert_eq!(empty.changes(), Vec::<String>::new());
    assert_eq!(empty.reports(), [ReportReason::NotInFleet; 2]);
}

#[test]
fn a_stopped_vm_without_an_object_that_can_be_read_is_not_started() {
    let stopped = || LocalVm {
        run: Run::Stopped,
        ..local(1, 4)
    };
    for fixture in [
        Fixture::new().local(stopped()),
        Fixture::new().undecodable(1).local(stopped()),
    ] {
        assert_eq!(fixture.changes(), Vec::<String>::new());
    }
}

#[test]
fn an_update_of_the_group_reaches_a_vm_when_its_own_generation_is_raised() {
    let mut newer = group("web", 1000, None);
    newer.meta.generation = 2;
    newer.template_generation = 2;
    for (generation, changes) in [(1, vec![]), (2, vec!["put group web 2", "update 1 4 2"])] {
        let mut vm = object(1, Some(binding("n1", 4)));
        vm.group_generation = generation;
        let fixture = Fixture::new()
            .group(Ok(newer.clone()))
            .object(vm)
            .local(local(1, 4));
        assert_eq!(fixture.changes(), changes, "{generation}");
    }
}

#[test]
fn a_group_that_cannot_be_used_changes_nothing_of_its_vms() {
    let other = group("web", 1001, Some(STOP_AFTER));
    for (name, group) in [
        ("undecodable", Some(undecodable())),
        ("missing", None),
        ("another with the same name", Some(Ok(other))),
    ] {
        let mut vm = object(1, Some(binding("n1", 5)));
        vm.group_generation = 2;
        let is_missing = group.is_none();
        let mut fixture = Fixture::new()
            .group(group.unwrap_or_else(undecodable))
            .object(vm)
            .local(local(1, 4));
        if is_missing {
            fixture.objects.groups.clear();
        }
        assert_eq!(fixture.changes(), ["update 1 5 1"], "{name}");
        let Step::UpdateVm { stop, .. } = fixture.plan().steps[0] else {
            panic!("{name}");
        };
        assert_eq!(stop, None, "{name}");
    }
}

#[test]
fn a_local_group_without_vms_is_removed_unless_a_vm_cannot_be_read() {
    let mut fixture = Fixture::new().local(local(1, 4));
    fixture.local.clear();
    assert_eq!(fixture.changes(), ["remove group web"]);
    let fixture = fixture.undecodable(7);
    assert_eq!(fixture.changes(), Vec::<String>::new());

    let waiting = Fixture::new().local(local(1, 4));
    assert_eq!(waiting.changes(), Vec::<String>::new());
}

#[test]
fn steps_make_room_before_they_use_it() {
    let fixture = Fixture::new()
        .object(object(1, Some(binding("n1", 1))))
        .object(object(2, Some(binding("n2", 5))))
        .local(local(2, 4));
    assert_eq!(fixture.changes(), ["remove 2 for 5", "add 1 1"]);
}

#[test]
fn a_vm_that_is_moved_here_waits_for_the_deletion_of_the_other_copy() {
    let fixture = Fixture::new().object(object(1, Some(moving("n2", "n1", false))));
    assert_eq!(fixture.changes(), Vec::<String>::new());
    assert_eq!(fixture.reports(), [ReportReason::Waiting]);
}

#[test]
fn a_vm_waits_for_the_generation_of_its_group() {
    let mut vm = object(1, Some(binding("n1", 4)));
    vm.group_generation = 2;
    let fixture = Fixture::new().object(vm);
    assert_eq!(fixture.changes(), Vec::<String>::new());
    assert_eq!(fixture.reports(), [ReportReason::NoGroup]);
}
