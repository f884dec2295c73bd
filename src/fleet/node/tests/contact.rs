//! What is done without contact, and which VMs may be restarted.
//! Out of scope: how contact is lost (`fleet::contact`).

use super::*;

/// A VM that may be replaced, in the group that says so.
fn replaceable() -> Fixture {
    let vm = LocalVm {
        stop: Some(stop(STOP_AFTER)),
        ..local(1, 4)
    };
    Fixture::new()
        .group(Ok(group("web", 1000, Some(STOP_AFTER))))
        .local(vm)
        .status(
            1,
            VmStatus {
                stops_within: Some(STOP_AFTER + GRACE),
                ..status(4, Phase::Ready)
            },
        )
}

fn bound(fixture: Fixture, node: &str, epoch: u64) -> Fixture {
    fixture.object(object(1, Some(binding(node, epoch))))
}

/// The same fixture in each state in which the node may not act; renewed last at 100.
fn without_contact(make: impl Fn() -> Fixture) -> Vec<(&'static str, Fixture)> {
    let with = |contact| Fixture { contact, ..make() };
    let late = Fixture {
        now: at(140),
        ..make()
    };
    let mut broken = contact(true);
    broken.handle(Event::WatchBroken, at(101));
    let mut changed = Vec::new();
    for (name, cluster_id, revision) in [("another cluster", 2, 500), ("rewound", 1, 9)] {
        let mut contact = contact(true);
        let ticket = contact.send(at(101));
        let header = Header {
            cluster_id,
            revision,
        };
        contact.handle(Event::Listed { ticket, header }, at(102));
        changed.push((name, with(contact)));
    }
    let mut all = vec![
        ("unreachable", late),
        ("never", with(Contact::new(None, Some(at(100)), at(100)))),
        ("renewed and not listed", with(contact(false))),
        ("a broken watch", with(broken)),
    ];
    all.extend(changed);
    all
}

#[test]
fn without_contact_nothing_that_is_bound_changes_and_nothing_is_written() {
    let objects = || {
        let mut deleting = object(1, Some(binding("n1", 4)));
        deleting.meta.deleting = true;
        Fixture::new()
            .object(deleting)
            .object(object(2, Some(binding("n2", 9))))
            .object(object(3, Some(binding("n1", 1))))
            .local(local(1, 4))
            .local(local(2, 4))
            .local(local(5, 4))
            .status(9, status(1, Phase::Deleted))
    };
    assert_eq!(
        objects().changes(),
        ["remove 1", "remove 2 for 9", "add 3 1"]
    );
    for (name, fixture) in without_contact(objects) {
        assert_eq!(fixture.plan().steps, [], "{name}");
        assert_eq!(fixture.plan().reports, [], "{name}");
    }
}

#[test]
fn a_vm_that_may_be_replaced_is_stopped_at_its_time_and_others_never() {
    for (now, stops) in [(102, false), (159, false), (160, true), (9999, true)] {
        let mut fixture = bound(replaceable(), "n1", 4).local(local(2, 4));
        fixture.now = at(now);
        let expected: &[&str] = if stops { &["stop 1 NoContact"] } else { &[] };
        assert_eq!(fixture.changes(), expected, "{now}");
    }
}

#[test]
fn a_vm_that_is_stopped_or_being_deleted_is_not_stopped_again() {
    for run in [Run::Stopped, Run::Deleting] {
        let mut fixture = replaceable();
        fixture.local[0].run = run;
        fixture.now = at(9999);
        assert_eq!(fixture.changes(), Vec::<String>::new(), "{run:?}");
    }
}

#[test]
fn every_state_without_contact_stops_what_may_be_replaced() {
    for (name, mut fixture) in without_contact(|| bound(replaceable(), "n1", 4)) {
        fixture.now = at(160);
        assert_eq!(fixture.changes(), ["stop 1 NoContact"], "{name}");
    }
}

#[test]
fn the_local_copy_decides_when_a_vm_is_stopped() {
    // The group in etcd has no replacement any more, and the node has no contact.
    let mut fixture = bound(replaceable(), "n1", 4).group(Ok(group("web", 1000, None)));
    fixture.now = at(160);
    assert_eq!(fixture.changes(), ["stop 1 NoContact"]);
}

#[test]
fn a_stopped_vm_is_started_when_contact_is_back_with_the_same_epoch() {
    let stopped = || {
        let mut fixture = replaceable();
        fixture.local[0].run = Run::Stopped;
        fixture
    };
    assert_eq!(bound(stopped(), "n1", 4).changes(), ["start 1"]);
    assert_eq!(bound(stopped(), "n2", 5).changes(), ["remove 1 for 5"]);
    for (name, fixture) in without_contact(|| bound(stopped(), "n1", 4)) {
        assert_eq!(fixture.changes(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_failed_vm_that_is_never_replaced_may_be_restarted_in_any_outage() {
    let failed = || {
        let mut fixture = bound(Fixture::new(), "n1", 4).local(local(1, 4));
        fixture.local[0].run = Run::NotReady;
        fixture
    };
    assert!(failed().may_restart(1));
    for (name, fixture) in without_contact(failed) {
        assert!(fixture.may_restart(1), "{name}");
    }
    let missing = Fixture::new().local(local(1, 4));
    assert!(missing.may_restart(1), "not in the fleet");
    let unreadable = Fixture::new().undecodable(1).local(local(1, 4));
    assert!(unreadable.may_restart(1), "undecodable");
}

#[test]
fn a_failed_vm_that_may_be_replaced_is_restarted_only_with_contact_and_its_epoch() {
    type Variant = (&'static str, fn() -> Fixture, bool);
    let variants: [Variant; 8] = [
        ("bound here", || bound(replaceable(), "n1", 4), true),
        (
            "a greater epoch here",
            || bound(replaceable(), "n1", 5),
            true,
        ),
        (
            "a lower epoch here",
            || bound(replaceable(), "n1", 3),
            false,
        ),
        ("elsewhere", || bound(replaceable(), "n2", 5), false),
        (
            "the same epoch elsewhere",
            || bound(replaceable(), "n2", 4),
            false,
        ),
        ("unbound", || replaceable().object(object(1, None)), false),
        ("missing", replaceable, false),
        ("undecodable", || replaceable().undecodable(1), false),
    ];
    for (name, make, expected) in variants {
        assert_eq!(make().may_restart(1), expected, "{name}");
        for (state, fixture) in without_contact(make) {
            assert!(!fixture.may_restart(1), "{name}, {state}");
        }
    }
}

#[test]
fn a_vm_that_may_be_replaced_is_started_after_it_was_reported() {
    let reported = |epoch, stops_within| VmStatus {
        stops_within,
        ..status(epoch, Phase::NotReady)
    };
    let within = Some(STOP_AFTER + GRACE);
    for (name, status, expected) in [
        ("reported", Some(reported(4, within)), true),
        ("not reported", None, false),
        ("another epoch", Some(reported(3, within)), false),
        ("without its time", Some(reported(4, None)), false),
    ] {
        let mut fixture = bound(replaceable(), "n1", 4);
        fixture.objects.statuses.clear();
        let fixture = match status {
            Some(status) => fixture.status(1, status),
            None => fixture,
        };
        assert_eq!(fixture.may_restart(1), expected, "{name}");
    }
    let mut moving = binding("n1", 4);
    moving.moving_from = Some(from_n2());
    let fixture = replaceable().object(object(1, Some(moving)));
    assert!(!fixture.may_restart(1), "the other copy is deleted first");
}

fn from_n2() -> MovingFrom {
    MovingFrom {
        node: name("n2"),
        epoch: 3,
        resources: Resources::default(),
        delete_disk: false,
    }
}

#[test]
fn a_vm_that_is_removed_or_stopped_is_not_restarted() {
    let removed = bound(Fixture::new(), "n2", 5).local(local(1, 4));
    assert!(!removed.may_restart(1));
    let mut unbound = object(1, None);
    unbound.epoch = 5;
    assert!(
        !Fixture::new()
            .object(unbound)
            .local(local(1, 4))
            .may_restart(1)
    );
}
