//! A cluster that was wiped, restored, or replaced by another, until an administrator accepts it.
//! Out of scope: how contact is lost otherwise.

use super::*;

#[test]
fn nothing_but_an_administrator_restores_contact_with_a_cluster_that_changed() {
    let changed = [
        ("another cluster", header(B, 500)),
        ("another cluster at an earlier revision", header(B, 1)),
        ("a wiped cluster", header(A, 1)),
        ("a restored cluster", header(A, 99)),
    ];
    let later = [
        ("more of it", 600, None),
        ("the cluster of the fleet", 700, Some(A)),
    ];
    for (name, found) in changed {
        for (then, revision, cluster) in later {
            let mut contact = connected();
            contact.renewed_at(20, 20, found);
            let state = contact.state(at(20));
            let expected = match found.cluster_id {
                A => State::Rewound {
                    seen: 100,
                    found: found.revision,
                },
                _ => State::WrongCluster {
                    expected: A,
                    found: B,
                },
            };
            assert_eq!(state, expected, "{name}");
            let next = header(cluster.unwrap_or(found.cluster_id), revision);
            contact.renewed_at(30, 30, next);
            contact.listed_at(31, 31, next);
            assert!(!contact.may_act(at(31)), "{name}, then {then}");
            assert!(!contact.needs_list(), "{name}, then {then}");
            let restarted = Contact::new(contact.facts(), contact.renewed(), at(32));
            for mut contact in [contact, restarted] {
                contact.renewed_at(33, 33, next);
                contact.listed_at(34, 34, next);
                assert!(!contact.may_act(at(34)), "{name}, then {then}, stored");
            }
        }
    }
}

#[test]
fn an_accepted_cluster_is_renewed_and_listed_before_it_is_acted_upon() {
    let variants = [
        ("another cluster", header(B, 50), B, Some((B, 50))),
        ("a restored cluster", header(A, 50), A, Some((A, 50))),
        (
            "endpoints that are corrected",
            header(B, 50),
            A,
            Some((A, 100)),
        ),
        ("a cluster that was not found", header(B, 50), 0xc, None),
    ];
    for (name, found, cluster_id, expected) in variants {
        let mut contact = connected();
        let earlier = contact.send(at(19));
        contact.renewed_at(20, 20, found);
        contact.handle(Event::Accepted { cluster_id }, at(21));
        let Some(expected) = expected else {
            assert!(contact.facts().unwrap().unaccepted.is_some(), "{name}");
            continue;
        };
        let facts = contact.facts().unwrap();
        assert_eq!((facts.cluster_id, facts.revision), expected, "{name}");
        assert_eq!(facts.unaccepted, None, "{name}");
        assert!(!contact.may_act(at(21)), "{name}");
        // A response that was under way.
        let event = Event::Listed {
            ticket: earlier,
            header: header(A, 7),
        };
        contact.handle(event, at(22));
        assert_eq!(contact.facts().unwrap().unaccepted, None, "{name}");
        assert_eq!(
            contact.due(),
            at(310),
            "{name}: an acceptance is no renewal"
        );
        let next = header(expected.0, expected.1 + 1);
        contact.renewed_at(23, 23, next);
        assert!(!contact.may_act(at(23)), "{name}");
        contact.listed_at(24, 24, next);
        assert!(contact.may_act(at(24)), "{name}");
    }
}

#[test]
fn an_acceptance_without_a_cause_changes_nothing() {
    let mut contact = connected();
    contact.handle(Event::Accepted { cluster_id: A }, at(12));
    assert_eq!(contact.state(at(12)), State::InContact);
}

#[test]
fn a_response_of_another_cluster_or_history_is_discarded() {
    for (name, found, is_used) in [
        ("a later revision", header(A, 101), true),
        ("the same revision", header(A, 100), true),
        ("another cluster", header(B, 101), false),
        ("an earlier revision", header(A, 99), false),
    ] {
        let mut contact = connected();
        let ticket = contact.send(at(12));
        let event = Event::Listed {
            ticket,
            header: found,
        };
        assert_eq!(contact.handle(event, at(12)), is_used, "{name}");
        let later = Event::Listed {
            ticket: contact.send(at(13)),
            header: header(A, 200),
        };
        assert_eq!(contact.handle(later, at(13)), is_used, "{name}, then");
        let accepted = Event::Accepted {
            cluster_id: found.cluster_id,
        };
        contact.handle(accepted, at(14));
        let next = header(found.cluster_id, 201);
        assert_eq!(
            contact.handle(
                Event::Listed {
                    ticket,
                    header: next
                },
                at(15)
            ),
            is_used,
            "{name}: requested before the acceptance"
        );
    }
}

#[test]
fn a_cluster_that_was_restored_to_before_what_was_watched_is_noticed() {
    let mut contact = connected();
    let watched = |header| Event::Watched { header };
    assert!(contact.handle(watched(header(A, 120)), at(15)));
    assert!(!contact.handle(watched(header(B, 900)), at(15)));
    contact.renewed_at(20, 20, header(A, 110));
    let state = State::Rewound {
        seen: 120,
        found: 110,
    };
    assert_eq!(contact.state(at(20)), state);
    // A watch of before.
    assert!(!contact.handle(watched(header(A, 130)), at(21)));
    assert_eq!(contact.state(at(21)), state);
}
