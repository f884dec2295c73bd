//! Each transition of the machine, by tables of variants.
//! Out of scope: many nodes (`fleet::node::simulation`).

use super::*;

mod changed_cluster;

const A: u64 = 0xa;
const B: u64 = 0xb;
const STOP_AFTER: Duration = Duration::from_secs(300);

fn at(secs: u64) -> Boottime {
    Boottime(Duration::from_secs(secs))
}

fn header(cluster_id: u64, revision: u64) -> Header {
    Header {
        cluster_id,
        revision,
    }
}

impl Contact {
    /// A renewal that is sent and confirmed at these times.
    fn renewed_at(&mut self, sent: u64, confirmed: u64, header: Header) {
        let ticket = self.send(at(sent));
        let alive = true;
        let event = Event::Renewed {
            ticket,
            header,
            alive,
        };
        self.handle(event, at(confirmed));
    }

    fn listed_at(&mut self, sent: u64, completed: u64, header: Header) {
        let ticket = self.send(at(sent));
        self.handle(Event::Listed { ticket, header }, at(completed));
    }

    fn due(&self) -> Boottime {
        self.stop_due(STOP_AFTER)
    }
}

/// In contact with cluster A at revision 100: renewed at 10, listed at 11.
fn connected() -> Contact {
    let mut contact = Contact::new(None, Some(at(5)), at(9));
    contact.renewed_at(10, 10, header(A, 100));
    contact.listed_at(11, 11, header(A, 100));
    assert_eq!(contact.state(at(11)), State::InContact);
    contact
}

fn reason(contact: &Contact, now: u64) -> ContactReason {
    contact.condition(at(now)).reason
}

#[test]
fn the_first_contact_ever_accepts_the_cluster_that_it_finds() {
    let mut contact = Contact::new(None, None, at(0));
    assert_eq!(contact.facts(), None);
    assert_eq!(reason(&contact, 1), ContactReason::NotConnectedYet);
    contact.renewed_at(1, 1, header(A, 7));
    let facts = contact.facts().unwrap();
    assert_eq!((facts.cluster_id, facts.revision), (A, 7));
    assert_eq!(facts.unaccepted, None);
}

#[test]
fn a_node_has_contact_when_it_has_renewed_and_then_listed() {
    let mut contact = Contact::new(None, None, at(0));
    contact.listed_at(1, 1, header(A, 7));
    assert!(!contact.may_act(at(1)), "listed, not renewed");
    let before = contact.send(at(1));
    contact.renewed_at(2, 2, header(A, 7));
    assert!(!contact.may_act(at(2)), "renewed, not listed");
    assert_eq!(reason(&contact, 2), ContactReason::NotListed);
    assert!(contact.needs_list());
    let header = header(A, 9);
    contact.handle(
        Event::Listed {
            ticket: before,
            header,
        },
        at(3),
    );
    assert!(
        !contact.may_act(at(3)),
        "the list was requested before the renewal was confirmed"
    );
    contact.listed_at(4, 4, header);
    assert!(contact.may_act(at(4)));
    assert_eq!(reason(&contact, 4), ContactReason::Connected);
}

#[test]
fn what_ends_contact_and_what_does_not() {
    type Act = fn(&mut Contact);
    let variants: [(&str, Act, Option<ContactReason>); 9] = [
        (
            "a tick",
            |contact| _ = contact.handle(Event::Tick, at(39)),
            None,
        ),
        (
            "a renewal that fails",
            |contact| _ = contact.handle(Event::RenewalFailed, at(20)),
            None,
        ),
        (
            "a renewal that is confirmed",
            |contact| contact.renewed_at(20, 25, header(A, 100)),
            None,
        ),
        (
            "another list",
            |contact| contact.listed_at(20, 21, header(A, 120)),
            None,
        ),
        (
            "no confirmed renewal for the limit",
            |contact| _ = contact.handle(Event::Tick, at(40)),
            Some(ContactReason::Unreachable),
        ),
        (
            "a lease that is gone",
            |contact| {
                let (ticket, header) = (contact.send(at(20)), header(A, 101));
                let alive = false;
                let event = Event::Renewed {
                    ticket,
                    header,
                    alive,
                };
                contact.handle(event, at(20));
            },
            Some(ContactReason::LeaseGone),
        ),
        (
            "a gap of the watch",
            |contact| _ = contact.handle(Event::WatchBroken, at(20)),
            Some(ContactReason::NotListed),
        ),
        (
            "another cluster",
            |contact| contact.renewed_at(20, 20, header(B, 500)),
            Some(ContactReason::WrongCluster),
        ),
        (
            "a revision that decreases",
            |contact| contact.listed_at(20, 20, header(A, 99)),
            Some(ContactReason::Rewound),
        ),
    ];
    for (name, act, expected) in variants {
        let mut contact = connected();
        act(&mut contact);
        let now = if expected == Some(ContactReason::Unreachable) {
            40
        } else {
            39
        };
        assert_eq!(contact.may_act(at(now)), expected.is_none(), "{name}");
        let expected = expected.unwrap_or(ContactReason::Connected);
        let condition = contact.condition(at(now));
        assert_eq!(condition.reason, expected, "{name}");
        let connected = expected == ContactReason::Connected;
        assert_eq!(condition.status == Status::True, connected, "{name}");
        assert_eq!(condition.message.is_empty(), connected, "{name}");
    }
}

#[test]
fn contact_ends_without_an_event() {
    let contact = connected();
    assert!(contact.may_act(at(39)));
    assert!(!contact.may_act(at(40)));
    assert_eq!(contact.state(at(40)), State::Lost { since: at(10) });
}

#[test]
fn a_watch_that_broke_needs_a_list_that_was_requested_after_it() {
    let mut contact = connected();
    let ticket = contact.send(at(19));
    contact.handle(Event::WatchBroken, at(20));
    let header = header(A, 110);
    contact.handle(Event::Listed { ticket, header }, at(21));
    assert!(!contact.may_act(at(21)));
    contact.listed_at(22, 22, header);
    assert!(contact.may_act(at(22)), "the last renewal is recent");
    assert_eq!(contact.due(), at(310), "renewals go on counting");
}

#[test]
fn vms_are_stopped_after_the_sending_of_the_last_confirmed_renewal() {
    let variants: [(&str, u64, u64, u64); 4] = [
        ("at once", 20, 20, 320),
        ("after a slow response", 20, 29, 320),
        ("a response after contact was lost", 20, 60, 320),
        ("a response in the wrong order", 7, 20, 310),
    ];
    for (name, sent, confirmed, due) in variants {
        let mut contact = connected();
        contact.renewed_at(sent, confirmed, header(A, 100));
        assert_eq!(contact.due(), at(due), "{name}");
    }
}

#[test]
fn what_is_no_confirmation_leaves_the_time_to_stop() {
    type Act = fn(&mut Contact);
    let variants: [(&str, Act); 7] = [
        ("a tick", |contact| {
            contact.handle(Event::Tick, at(20));
        }),
        ("a failure", |contact| {
            contact.handle(Event::RenewalFailed, at(20));
        }),
        ("a list", |contact| {
            contact.listed_at(20, 20, header(A, 100))
        }),
        ("a lease that is gone", |contact| {
            let (ticket, header) = (contact.send(at(20)), header(A, 101));
            let alive = false;
            contact.handle(
                Event::Renewed {
                    ticket,
                    header,
                    alive,
                },
                at(20),
            );
        }),
        ("another cluster", |contact| {
            contact.renewed_at(20, 20, header(B, 100))
        }),
        ("a restored cluster", |contact| {
            contact.renewed_at(20, 20, header(A, 9));
            contact.renewed_at(30, 30, header(A, 1000));
        }),
        ("a request of the future", |contact| {
            contact.renewed_at(25, 20, header(A, 100))
        }),
    ];
    for (name, act) in variants {
        let mut contact = connected();
        act(&mut contact);
        assert_eq!(contact.due(), at(310), "{name}");
    }
}

#[test]
fn a_time_to_stop_that_has_passed_remains_past_until_contact_is_restored() {
    let mut contact = connected();
    contact.renewed_at(311, 311, header(A, 130));
    assert_eq!(contact.due(), at(0));
    assert_eq!(
        contact.stop_due(Duration::from_secs(600)),
        at(911),
        "a longer one has not passed"
    );
    contact.renewed_at(321, 321, header(A, 130));
    assert_eq!(contact.due(), at(0));
    contact.listed_at(322, 322, header(A, 131));
    assert_eq!(contact.due(), at(621));
}

#[test]
fn a_daemon_that_does_not_know_the_last_renewal_stops_vms_at_once_until_it_has_contact() {
    let mut contact = Contact::new(None, None, at(1000));
    assert_eq!(contact.due(), at(0));
    contact.renewed_at(1001, 1001, header(A, 1));
    assert_eq!(contact.due(), at(0));
    contact.listed_at(1002, 1002, header(A, 1));
    assert_eq!(contact.due(), at(1301));
    let restarted = Contact::new(contact.facts(), contact.renewed(), at(1100));
    assert_eq!(restarted.due(), at(1301));
    assert!(!restarted.may_act(at(1100)));
}

#[test]
fn responses_in_the_wrong_order_are_no_restored_cluster() {
    let mut contact = connected();
    let earlier = contact.send(at(12));
    contact.renewed_at(13, 14, header(A, 105));
    let event = Event::Listed {
        ticket: earlier,
        header: header(A, 102),
    };
    contact.handle(event, at(15));
    assert_eq!(contact.state(at(15)), State::InContact);
    assert_eq!(contact.facts().unwrap().revision, 105);
}

#[test]
fn contact_that_was_lost_is_restored_by_a_renewal_and_a_list() {
    let mut contact = connected();
    contact.handle(Event::Tick, at(200));
    assert_eq!(contact.state(at(200)), State::Lost { since: at(10) });
    contact.listed_at(200, 200, header(A, 150));
    assert!(!contact.may_act(at(200)));
    contact.renewed_at(201, 201, header(A, 150));
    contact.listed_at(202, 202, header(A, 151));
    assert_eq!(contact.state(at(202)), State::InContact);
    assert_eq!(contact.due(), at(501));
}
