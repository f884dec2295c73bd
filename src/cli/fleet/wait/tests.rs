//! What has reached a goal, for objects that exist, that do not, and that cannot be read; which reads are repeated.
//! Out of scope: the daemon (`tests/e2e/fleet`).

use super::*;
use crate::api::view::{Problem, Unreadable};

fn awaited(kind: FleetKind, uid: Option<Uid>) -> Awaited {
    let name = "web".parse().unwrap();
    let target = FleetTarget { kind, name };
    Awaited { target, uid }
}

fn vm(uid: Uid) -> FleetObject {
    let vm = serde_json::json!({
        "metadata": {"name": "web", "uid": uid, "generation": 1, "created_at": "2026-01-01T00:00:00Z", "deleting": false},
        "index": 1, "group_generation": 1, "epoch": 1, "state": "Ready"
    });
    FleetObject::Vm(Box::new(serde_json::from_value(vm).unwrap()))
}

fn lists(kind: FleetKind, items: Vec<FleetObject>, unreadable: &[&str]) -> Lists {
    let unreadable = unreadable.iter().map(|key| Unreadable {
        key: (*key).to_owned(),
        error: "invalid value".to_owned(),
    });
    let unreadable = unreadable.collect();
    Lists(vec![(kind, FleetList { items, unreadable })])
}

#[test]
fn nothing_is_deleted_while_a_vm_or_a_group_cannot_be_read() {
    for kind in [FleetKind::HostGroup, FleetKind::Vm] {
        let it = awaited(kind, None);
        for (key, is_known) in [
            ("/slice/v1/vms/6b29fc40", false),
            ("/slice/v1/vms/", false),
            ("/slice/v1/groups/web", false),
            ("/slice/v1/nodestatus/node-a", true),
            ("/slice/v1/status/node-a/6b29fc40", true),
        ] {
            let found = lists(kind, Vec::new(), &[key]).missing(&it, Goal::Deleted);
            match (found, is_known) {
                (Ok(None), true) => {}
                (Err(Failure::Failed(causes)), false) => {
                    let expected = format!("is deleted is not known: {key} cannot be read");
                    assert!(causes[0].contains(&expected), "{causes:?}");
                }
                (found, _) => panic!("{key}: {found:?}"),
            }
        }
    }
}

#[test]
fn an_object_is_deleted_when_another_one_has_its_name() {
    let (uid, other) = (Uid::random(), Uid::random());
    let missing = |items, uid| {
        let found = lists(FleetKind::Vm, items, &[]);
        let it = awaited(FleetKind::Vm, uid);
        found.missing(&it, Goal::Deleted).unwrap()
    };
    assert_eq!(missing(vec![], None), None);
    assert_eq!(missing(vec![vm(other)], Some(uid)), None);
    assert!(missing(vec![vm(uid)], Some(uid)).is_some());
    assert!(missing(vec![vm(uid)], None).is_some());
}

#[test]
fn a_read_is_repeated_only_if_it_may_succeed_without_a_change() {
    let refused = |status| ClientError::Refused {
        status,
        problem: Problem {
            error: String::new(),
            problems: Vec::new(),
        },
    };
    let broken = ClientError::ConnectionFailed {
        at: "unix:///run/x.sock".parse().unwrap(),
        why: "closed".to_owned(),
    };
    for (error, expected) in [
        (refused(500), true),
        (refused(503), true),
        (broken, true),
        (refused(404), false),
        (refused(409), false),
        (ClientError::AgentClosed, false),
    ] {
        assert_eq!(error.is_temporary(), expected, "{error}");
    }
}
