//! What depends on the guard of the node, and what waits after a start of the daemon or of the host.
//! Out of scope: the file of the guard (`fleet::agent`).

use super::*;
use crate::api::fleet::HOLD_AFTER_BOOT;

fn replaceable() -> Fixture {
    let vm = LocalVm {
        stop: Some(stop(STOP_AFTER)),
        ..local(1, 4)
    };
    Fixture::new()
        .group(Ok(group("web", 1000, Some(STOP_AFTER))))
        .local(vm)
        .object(object(1, Some(binding("n1", 4))))
}

fn reported(fixture: &Fixture) -> Option<Duration> {
    let steps = fixture.plan().steps;
    let status = steps.into_iter().find_map(|step| match step {
        Step::PutStatus { status, .. } => Some(status),
        _ => None,
    });
    status.expect("a status").stops_within
}

#[test]
fn the_scheduler_may_count_on_the_end_of_a_vm_only_if_the_guard_stops_it() {
    type Variant = (&'static str, fn(&mut GuardState), bool);
    let variants: [Variant; 4] = [
        ("it is in the file of a guard that runs", |_| {}, true),
        ("no guard runs", |guard| guard.runs = false, false),
        ("it is not in the file", |guard| guard.vms.clear(), false),
        (
            "another one is in the file",
            |guard| guard.vms = [uid(2)].into(),
            false,
        ),
    ];
    for (name, change, expected) in variants {
        for run in [Run::Ready, Run::NotReady, Run::Stopped] {
            let mut fixture = replaceable();
            fixture.local[0].run = run;
            change(&mut fixture.guard);
            assert_eq!(reported(&fixture).is_some(), expected, "{name}, {run:?}");
        }
    }
}

#[test]
fn a_vm_that_becomes_replaceable_is_reported_as_such_when_the_guard_has_it() {
    let mut fixture = replaceable();
    fixture.local[0].stop = None;
    fixture.guard.vms.clear();
    assert_eq!(reported(&fixture), None);
    assert_eq!(
        fixture.changes(),
        ["update 1 4 1"],
        "its time is stored first"
    );
    fixture.local[0].stop = Some(stop(STOP_AFTER));
    assert_eq!(reported(&fixture), None);
    fixture.guard.vms.insert(uid(1));
    assert_eq!(reported(&fixture), Some(STOP_AFTER + GRACE));
}

#[test]
fn a_vm_whose_vmm_runs_without_being_stored_is_neither_added_nor_reported_as_deleted() {
    let mut deleting = object(1, Some(binding("n1", 4)));
    deleting.meta.deleting = true;
    let mut previous = object(1, Some(binding("n2", 5)));
    previous.previous = vec![PreviousCopy {
        node: name("n1"),
        epoch: 4,
        resources: Resources::default(),
        keep: false,
    }];
    for vm in [object(1, Some(binding("n1", 4))), deleting, previous] {
        let mut fixture = Fixture::new().object(vm);
        assert!(!fixture.plan().steps.is_empty());
        fixture.guard.vms.insert(uid(1));
        assert_eq!(fixture.plan().steps, []);
        assert_eq!(fixture.reports(), [ReportReason::Waiting]);
    }
}

#[test]
fn before_the_node_knows_what_it_has_it_refuses_nothing() {
    let mut fixture = Fixture::new().object(object(1, Some(binding("n1", 4))));
    fixture.available = Available::default();
    assert_eq!(fixture.plan().steps, []);
    assert_eq!(fixture.reports(), [ReportReason::Waiting]);
    fixture.available.is_known = true;
    assert_eq!(fixture.changes(), ["refuse 1 4"]);
}

#[test]
fn directly_after_a_boot_vms_that_are_never_replaced_wait_for_contact() {
    let hold = HOLD_AFTER_BOOT.as_secs();
    for (now, has_contact, expected) in [
        (1, false, false),
        (hold - 1, false, false),
        (hold, false, true),
        (5, true, true),
    ] {
        let mut fixture = Fixture::new()
            .local(local(1, 4))
            .object(object(1, Some(binding("n1", 4))));
        fixture.local[0].run = Run::NotReady;
        fixture.now = at(now);
        fixture.contact = match has_contact {
            true => contact_at(now),
            false => Contact::new(None, None, at(now)),
        };
        assert_eq!(fixture.may_restart(1), expected, "{now} s, {has_contact}");
        let moved = object(1, Some(binding("n2", 5)));
        let fixture = fixture.object(moved);
        assert_eq!(fixture.may_restart(1), expected && !has_contact, "{now} s");
    }
}

/// Renewed and listed one second before.
fn contact_at(now: u64) -> Contact {
    let before = at(now - 1);
    let mut contact = Contact::new(None, Some(before), before);
    let header = Header {
        cluster_id: 1,
        revision: 10,
    };
    let (ticket, alive) = (contact.send(before), true);
    let renewed = Event::Renewed {
        ticket,
        header,
        alive,
    };
    contact.handle(renewed, before);
    let ticket = contact.send(before);
    contact.handle(Event::Listed { ticket, header }, before);
    contact
}
