//! The decision of the guard for each content of the file.
//! Out of scope: processes.

use super::*;
use crate::fleet::contact::{Event, Header};

fn at(secs: u64) -> Boottime {
    Boottime(Duration::from_secs(secs))
}

fn uid(number: u128) -> Uid {
    Uid(uuid::Uuid::from_u128(number))
}

fn guarded(number: u8, stop_after: u64) -> Guarded {
    Guarded {
        uid: uid(number.into()),
        user: VmmUser(1000 + u32::from(number)),
        stop: StopTimes {
            after: Duration::from_secs(stop_after),
            within: Duration::from_secs(stop_after + 10),
        },
        is_ending: false,
    }
}

/// A contact that was renewed at this time, after another one at 99.
fn contact(renewed: u64) -> Contact {
    let mut contact = Contact::new(None, Some(at(99)), at(99));
    let ticket = contact.send(at(renewed));
    let (alive, cluster_id, revision) = (true, 1, 1);
    let header = Header {
        cluster_id,
        revision,
    };
    let event = Event::Renewed {
        ticket,
        header,
        alive,
    };
    contact.handle(event, at(renewed));
    contact
}

/// Renewed at 100; VM 1 is stopped at 160, VM 2 at 410.
fn file() -> FenceFile {
    let vms = [guarded(1, 50), guarded(2, 300)];
    FenceFile::new(&contact(100), "boot-1".into(), vms, None)
}

fn stopped(decision: &Decision) -> Vec<u128> {
    let stop = decision.stop.iter();
    stop.map(|vm| vm.uid.0.as_u128()).collect()
}

#[test]
fn the_file_is_json_with_nanoseconds() {
    let content = String::from_utf8(file().encode().unwrap()).unwrap();
    let value: serde_json::Value = serde_json::from_str(&content).unwrap();
    let expected = serde_json::json!({
        "version": 1,
        "boot_id": "boot-1",
        "renewed": 100_000_000_000_u64,
        "vms": [
            {"uid": uid(1), "user": 1001, "kill_at": 160_000_000_000_u64},
            {"uid": uid(2), "user": 1002, "kill_at": 410_000_000_000_u64},
        ],
    });
    assert_eq!(value, expected);
    assert_eq!(FenceFile::decode(content.as_bytes()).unwrap(), file());
}

#[test]
fn a_vm_is_stopped_when_its_time_has_come_and_not_before() {
    for (now, expected) in [
        (0, vec![]),
        (159, vec![]),
        (160, vec![1]),
        (409, vec![1]),
        (410, vec![1, 2]),
    ] {
        let decision = Guard::default().decide(Ok(file().encode().unwrap()), "boot-1", at(now));
        assert_eq!(stopped(&decision), expected, "{now}");
        assert!(decision.error.is_none());
    }
}

#[test]
fn a_file_of_another_boot_stops_nothing() {
    let mut guard = Guard::new(Some(file()));
    let decision = guard.decide(Ok(file().encode().unwrap()), "boot-2", at(1000));
    assert!(decision.stop.is_empty() && decision.error.is_none());
    assert_eq!(guard.last(), None);
    let decision = Guard::new(Some(file())).decide(Ok(b"".to_vec()), "boot-2", at(1000));
    assert!(decision.stop.is_empty() && decision.error.is_some());
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_and_the_last_one_decides() {
    let missing = || Err(io::Error::from(io::ErrorKind::NotFound));
    let denied = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
    type Content = Result<Vec<u8>, io::Error>;
    let variants: [(&str, &dyn Fn() -> Content); 7] = [
        ("missing", &missing),
        ("denied", &denied),
        ("empty", &|| Ok(vec![])),
        ("cut off", &|| Ok(file().encode().unwrap()[..40].to_vec())),
        ("no object", &|| Ok(b"[]".to_vec())),
        ("no VMs", &|| {
            Ok(br#"{"version":1,"boot_id":"boot-1"}"#.to_vec())
        }),
        ("too new", &|| {
            Ok(br#"{"version":2,"boot_id":"boot-1","vms":[]}"#.to_vec())
        }),
    ];
    for (name, content) in variants {
        let mut guard = Guard::default();
        let decision = guard.decide(content(), "boot-1", at(1000));
        assert!(decision.stop.is_empty(), "{name}");
        // Nothing was started in this boot.
        assert_eq!(decision.error.is_none(), name == "missing", "{name}");

        guard.decide(Ok(file().encode().unwrap()), "boot-1", at(100));
        for (now, expected) in [(159, vec![]), (160, vec![1]), (1000, vec![1, 2])] {
            let decision = guard.decide(content(), "boot-1", at(now));
            assert_eq!(stopped(&decision), expected, "{name}");
            assert!(decision.error.is_some(), "{name}");
        }
    }
}

#[test]
fn a_later_file_replaces_the_earlier_one() {
    let mut guard = Guard::new(Some(file()));
    let later = FenceFile {
        vms: vec![],
        ..file()
    };
    let decision = guard.decide(Ok(later.encode().unwrap()), "boot-1", at(1000));
    assert!(decision.stop.is_empty() && decision.error.is_none());
}

#[test]
fn the_time_of_a_vm_that_is_being_stopped_is_not_postponed() {
    let ending = |vm| Guarded {
        is_ending: true,
        ..vm
    };
    let mut other = ending(guarded(1, 50));
    other.user.0 += 1;
    for (name, boot, vm, expected) in [
        ("runs", "boot-1", guarded(1, 50), 180),
        ("is stopped", "boot-1", ending(guarded(1, 50)), 160),
        ("is stopped, shorter", "boot-1", ending(guarded(1, 25)), 155),
        ("another user", "boot-1", other, 180),
        ("another boot", "boot-2", ending(guarded(1, 50)), 180),
    ] {
        let file = FenceFile::new(&contact(120), boot.into(), [vm], Some(&file()));
        assert_eq!(file.vms[0].kill_at, at(expected), "{name}");
    }
}
