//! The status keys: written on change, final before the object is removed, removed after it.
//! Out of scope: what the scheduler makes of them.

use super::*;

fn bound(epoch: u64) -> Vm {
    object(1, Some(binding("n1", epoch)))
}

fn deleting(vm: Vm) -> Vm {
    let mut vm = vm;
    vm.meta.deleting = true;
    vm
}

/// The one status that is written.
fn written(fixture: &Fixture) -> VmStatus {
    let steps = fixture.plan().steps;
    let status = |step: &Step| match step {
        Step::PutStatus { status, .. } => Some((**status).clone()),
        _ => None,
    };
    steps.iter().find_map(status).expect("a status")
}

#[test]
fn a_status_is_written_when_it_differs_and_not_again() {
    let stopped = "it was stopped, since contact was lost or another node has it";
    for (run, phase, message) in [
        (Run::Ready, Phase::Ready, None),
        (Run::NotReady, Phase::NotReady, Some("no such kernel")),
        (Run::Deleting, Phase::NotReady, Some("it is being deleted")),
        (Run::Stopped, Phase::Stopped, Some(stopped)),
    ] {
        let vm = LocalVm {
            run,
            message: Some("no such kernel".into()),
            address: Some([10, 0, 0, 2].into()),
            ..local(1, 4)
        };
        let fixture = Fixture::new().object(bound(4)).local(vm);
        let found = written(&fixture);
        let expected = VmStatus {
            address: Some([10, 0, 0, 2].into()),
            message: message.map(str::to_owned),
            ..status(4, phase)
        };
        assert_eq!(found, expected, "{run:?}");
        let fixture = fixture.status(1, found);
        assert_eq!(fixture.phases(), [], "{run:?}");
    }
}

#[test]
fn a_status_that_cannot_be_read_is_written_again() {
    let mut fixture = Fixture::new().object(bound(4)).local(local(1, 4));
    fixture.objects.statuses.insert(uid(1), undecodable());
    assert_eq!(fixture.phases(), [Some(Phase::Ready)]);
}

#[test]
fn the_reason_why_nothing_is_done_is_in_the_status() {
    for (fixture, expected) in [
        (Fixture::new(), "its object is not in the fleet"),
        (Fixture::new().undecodable(1), "its object cannot be read"),
        (
            Fixture::new().object(bound(3)),
            "its object has the epoch 3",
        ),
    ] {
        let status = written(&fixture.local(local(1, 4)));
        let message = status.message.unwrap_or_default();
        assert!(message.starts_with(expected), "{message}");
        assert_eq!((status.epoch, status.phase), (4, Phase::Ready));
    }
}

#[test]
fn a_deletion_ends_with_a_final_status_then_without_the_object_then_without_the_status() {
    let existing = Fixture::new().object(deleting(bound(4))).local(local(1, 4));
    assert_eq!(existing.changes(), ["remove 1"]);
    assert!(!existing.phases().contains(&Some(Phase::Deleted)));

    let gone = Fixture::new()
        .object(deleting(bound(4)))
        .status(1, status(4, Phase::NotReady));
    assert_eq!(written(&gone), status(4, Phase::Deleted));

    let reported = gone.status(1, status(4, Phase::Deleted));
    assert_eq!(reported.plan().steps, [], "the object exists");

    let mut removed = reported;
    removed.objects.vms.clear();
    assert_eq!(removed.plan().steps, [Step::DeleteStatus { uid: uid(1) }]);
    removed.contact = contact(false);
    assert_eq!(removed.plan().steps, [], "without contact");
}

#[test]
fn a_status_is_not_removed_while_the_vm_or_its_object_exists() {
    let mut fixtures = vec![
        ("the VM", Fixture::new().local(local(1, 4))),
        ("an object", Fixture::new().object(deleting(bound(4)))),
        ("an undecodable object", Fixture::new().undecodable(1)),
    ];
    let leaving = LocalVm {
        run: Run::Deleting,
        ..local(1, 4)
    };
    fixtures.push(("a VM that is being deleted", Fixture::new().local(leaving)));
    for (name, fixture) in fixtures {
        let fixture = fixture.status(1, status(4, Phase::Deleted));
        assert!(!fixture.phases().contains(&None), "{name}");
    }
}

#[test]
fn what_is_reported_of_a_vm_that_is_not_here() {
    use Phase::{Deleted, NotReady, Ready, Refused};
    let elsewhere = |epoch| object(1, Some(binding("n2", epoch)));
    let unbound = Vm {
        epoch: 4,
        ..object(1, None)
    };
    let mut moving = elsewhere(5);
    let from = MovingFrom {
        node: name("n1"),
        epoch: 4,
        resources: Resources::default(),
        delete_disk: false,
    };
    moving.binding.as_mut().unwrap().moving_from = Some(from);
    let mut previous = elsewhere(5);
    previous.previous.push(PreviousCopy {
        node: name("n1"),
        epoch: 4,
        resources: Resources::default(),
        keep: true,
    });
    type Reported = Option<(u64, Phase)>;
    type Variant = (&'static str, Vm, Reported, Option<Reported>);
    let deleted = |epoch| Some(Some((epoch, Deleted)));
    let removed = Some(None);
    let variants: [Variant; 14] = [
        ("never here", elsewhere(5), None, None),
        ("never here, deleting", deleting(elsewhere(5)), None, None),
        ("bound here, deleting", deleting(bound(4)), None, deleted(4)),
        (
            "moved from here",
            moving.clone(),
            Some((4, NotReady)),
            deleted(4),
        ),
        (
            "moved from here, deleting",
            deleting(moving),
            None,
            deleted(4),
        ),
        (
            "a previous copy",
            previous.clone(),
            Some((4, Ready)),
            deleted(4),
        ),
        (
            "a previous copy, deleting",
            deleting(previous.clone()),
            None,
            deleted(4),
        ),
        (
            "a previous copy, reported",
            previous,
            Some((4, Deleted)),
            None,
        ),
        ("not named", elsewhere(5), Some((4, Deleted)), removed),
        (
            "not named, refused",
            elsewhere(5),
            Some((4, Refused)),
            removed,
        ),
        ("not named, unbound", unbound, Some((4, Ready)), removed),
        (
            "refused, deleting",
            deleting(bound(4)),
            Some((4, Refused)),
            None,
        ),
        ("deleted for this epoch", bound(4), Some((4, Deleted)), None),
        (
            "an earlier epoch is deleted",
            deleting(bound(6)),
            Some((4, Deleted)),
            deleted(6),
        ),
    ];
    for (name, vm, before, expected) in variants {
        let mut fixture = Fixture::new().object(vm);
        if let Some((epoch, phase)) = before {
            fixture = fixture.status(1, status(epoch, phase));
        }
        let steps = fixture.plan().steps;
        let found: Vec<Reported> = steps
            .iter()
            .map(|step| match step {
                Step::PutStatus { status, .. } => Some((status.epoch, status.phase)),
                Step::DeleteStatus { .. } => None,
                other => panic!("{name}: {other:?}"),
            })
            .collect();
        assert_eq!(found, Vec::from_iter(expected), "{name}");
    }
}

#[test]
fn a_shorter_time_is_used_before_it_is_reported_and_a_longer_one_after() {
    let secs = |secs: Option<u64>| secs.map(Duration::from_secs);
    // The group, the local VM, what was reported; what is stored next, what is reported next.
    let variants = [
        ("the same", Some(60), Some(60), Some(60), Some(60), Some(60)),
        ("shorter", Some(40), Some(60), Some(60), Some(40), Some(60)),
        (
            "shorter, stored",
            Some(40),
            Some(40),
            Some(60),
            Some(40),
            Some(40),
        ),
        ("longer", Some(90), Some(60), Some(60), Some(60), Some(90)),
        (
            "longer, reported",
            Some(90),
            Some(60),
            Some(90),
            Some(90),
            Some(90),
        ),
        ("a first one", Some(60), None, None, Some(60), None),
        (
            "a first one, stored",
            Some(60),
            Some(60),
            None,
            Some(60),
            Some(60),
        ),
        ("none any more", None, Some(60), Some(60), Some(60), None),
        ("none any more, reported", None, Some(60), None, None, None),
    ];
    for (name, group_says, stored, reported, next, report) in variants {
        let vm = LocalVm {
            stop: secs(stored).map(stop),
            ..local(1, 4)
        };
        let fixture = Fixture::new()
            .group(Ok(group("web", 1000, secs(group_says))))
            .object(bound(4))
            .local(vm)
            .status(
                1,
                VmStatus {
                    stops_within: secs(reported).map(|after| after + GRACE),
                    ..status(4, Phase::Ready)
                },
            );
        let (mut found, mut found_report) = (secs(stored), secs(reported));
        let after = |within: Option<Duration>| within.map(|within| within - GRACE);
        for step in fixture.plan().steps {
            match step {
                Step::UpdateVm { stop, .. } => found = stop.map(|stop| stop.after),
                Step::PutStatus { status, .. } => found_report = after(status.stops_within),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert_eq!(found, secs(next), "{name}: stored");
        assert_eq!(found_report, secs(report), "{name}: reported");
    }
}
