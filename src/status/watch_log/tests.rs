//! The log with a host, a disk and clients, with their steps interleaved at random, and its bounds one by one.
//! Out of scope: HTTP, and what a change of the store concerns.

mod simulation;

use super::*;
use crate::api::event::{EventReason, EventType};
use crate::api::meta::Timestamp;
use crate::api::view::{WatchFilter, WatchRequest};

/// A lease with the number of its last change as its address.
fn lease(name: &str, uid: u64, revision: u32) -> Object {
    let ip = std::net::Ipv4Addr::from(revision);
    let uid = uuid::Uuid::from_u64_pair(uid, 0);
    let lease = serde_json::json!({
        "kind": "Lease",
        "metadata": {"name": name, "uid": uid, "created_at": "2026-01-01T00:00:00Z"},
        "block": null, "ip": ip, "range": "10.0.0.0/24",
    });
    serde_json::from_value(lease).unwrap()
}

fn event(number: u64) -> Event {
    Event {
        time: Timestamp::UNIX_EPOCH,
        object: ObjectRef::Host,
        uid: None,
        reason: EventReason::Ready,
        message: number.to_string(),
        count: 1,
        kind: EventType::Normal,
    }
}

fn request(since: Option<ResourceVersion>, events: bool) -> WatchRequest {
    WatchRequest {
        since,
        filter: WatchFilter {
            kinds: vec![Kind::Lease],
            events,
            object: None,
        },
        versions: true,
    }
}

fn small() -> WatchLog {
    let bounds = Bounds {
        entries: 8,
        bytes: 1 << 20,
        chunk: 1 << 10,
    };
    WatchLog::new(1, bounds, 0)
}

fn decode(lines: &[u8]) -> Vec<WatchLine> {
    let lines = lines.split_inclusive(|byte| *byte == b'\n');
    let line = |line| serde_json::from_slice(line).unwrap();
    lines.map(line).collect()
}

/// All lines that can be read now.
fn read(log: &WatchLog, cursor: &mut Cursor) -> Result<Vec<WatchLine>, Expired> {
    let mut all = Vec::new();
    while let Some(lines) = log.read(cursor, |_, _| Vec::new())? {
        all.extend(decode(&lines));
    }
    Ok(all)
}

fn added(log: &WatchLog, number: u64, object: &Object) -> WatchLine {
    WatchLine::Added {
        resource_version: Some(log.version_of(number)),
        object: object.clone(),
    }
}

#[test]
fn a_watch_without_a_version_begins_with_the_objects_and_continues_with_changes() {
    let mut log = small();
    let (one, two) = (lease("a-1", 1, 1), lease("a-2", 2, 1));
    log.replace(Kind::Lease, std::slice::from_ref(&one));
    let mut cursor = log.start(request(None, false)).unwrap();
    // Nothing is on the disk yet.
    assert_eq!(read(&log, &mut cursor), Ok(vec![]));
    log.publish(1);
    let listed = WatchLine::Added {
        resource_version: None,
        object: one.clone(),
    };
    let synced = WatchLine::Synced {
        resource_version: log.version(),
    };
    assert_eq!(read(&log, &mut cursor), Ok(vec![listed, synced]));
    log.put(&two);
    log.put(&two);
    assert_eq!(read(&log, &mut cursor), Ok(vec![]));
    log.publish(2);
    assert_eq!(read(&log, &mut cursor), Ok(vec![added(&log, 2, &two)]));
    // Another VM with the same name.
    let other = lease("a-2", 3, 1);
    log.replace(Kind::Lease, std::slice::from_ref(&other));
    log.publish(5);
    let deleted = |number, object| WatchLine::Deleted {
        resource_version: log.version_of(number),
        object,
    };
    let expected = vec![deleted(3, one), deleted(4, two), added(&log, 5, &other)];
    assert_eq!(read(&log, &mut cursor), Ok(expected));
}

#[test]
fn a_version_of_another_run_or_before_the_changes_that_are_kept_is_refused() {
    let mut log = small();
    for revision in 1..=10 {
        log.put(&lease("a-1", 1, revision));
    }
    log.publish(10);
    let start = |incarnation, number| {
        let version = ResourceVersion {
            incarnation,
            number,
        };
        log.start(request(Some(version), false)).map(|_| ())
    };
    assert_eq!(start(1, 10), Ok(()));
    assert_eq!(start(1, 2), Ok(()), "the changes 3 to 10 are kept");
    assert_eq!(start(1, 1), Err(Expired::TooOld));
    assert_eq!(start(1, 11), Err(Expired::OtherRun));
    assert_eq!(start(2, 10), Err(Expired::OtherRun));
    assert_eq!(start(0, 0), Err(Expired::OtherRun));
    let error = serde_json::from_slice::<WatchLine>(&expired_line(Expired::TooOld)).unwrap();
    let problem = Expired::TooOld.problem();
    assert_eq!(error, WatchLine::Error { code: 410, problem });
}

#[test]
fn a_watch_that_is_too_slow_ends_and_one_that_reads_continues() {
    let mut log = small();
    let mut fast = log.start(request(None, false)).unwrap();
    let mut slow = log.start(request(None, false)).unwrap();
    for revision in 1..=100 {
        log.put(&lease("a-1", 1, revision));
        log.publish(log.last);
        assert_ne!(read(&log, &mut fast), Ok(vec![]), "{revision}");
        assert!(log.entries.len() <= 8);
    }
    assert_eq!(read(&log, &mut slow), Err(Expired::TooOld));
}

#[test]
fn the_size_of_the_changes_is_bounded_and_the_last_one_is_kept() {
    let bounds = Bounds {
        entries: 1000,
        bytes: 1000,
        chunk: 1,
    };
    let mut log = WatchLog::new(1, bounds, 0);
    for revision in 1..=100 {
        log.put(&lease("a-1", 1, revision));
        assert!(log.bytes <= 1000, "{}", log.bytes);
        let bytes: usize = log.entries.iter().map(|entry| entry.line.len()).sum();
        assert_eq!(log.bytes, bytes);
    }
    let mut large = event(1);
    large.message = "x".repeat(5000);
    log.note(1, &large);
    assert_eq!((log.entries.len(), log.floor), (1, log.last - 1));
}

#[test]
fn a_watch_to_which_little_happens_is_told_newer_versions_and_can_continue() {
    let mut log = small();
    log.put(&lease("a-1", 1, 1));
    log.publish(1);
    let mut cursor = log.start(request(Some(log.version()), false)).unwrap();
    let mut version = None;
    for number in 1..=100 {
        log.note(number, &event(number));
        log.publish(log.last);
        for line in read(&log, &mut cursor).unwrap() {
            let WatchLine::Bookmark { resource_version } = line else {
                panic!("{line:?}");
            };
            version = Some(resource_version);
        }
    }
    assert!(log.start(request(version, false)).is_ok());
    // A client of an earlier version does not know these lines.
    let mut cursor = log
        .start(WatchRequest {
            versions: false,
            ..request(version, false)
        })
        .unwrap();
    for number in 101..=107 {
        log.note(number, &event(number));
        log.publish(log.last);
        assert_eq!(read(&log, &mut cursor), Ok(vec![]));
    }
}

#[test]
fn changes_that_the_disk_refuses_end_all_versions_and_are_never_sent() {
    let mut log = small();
    log.begin(0);
    log.put(&lease("a-1", 1, 1));
    log.publish(1);
    let mut cursor = log.start(request(None, false)).unwrap();
    assert_eq!(read(&log, &mut cursor).unwrap().len(), 2);
    log.put(&lease("a-1", 1, 2));
    let listed = log.version();
    log.begin(1);
    log.put(&lease("a-1", 1, 1));
    log.publish(log.last);
    assert_eq!(read(&log, &mut cursor), Err(Expired::TooOld));
    assert!(log.start(request(Some(listed), false)).is_err());
    // If nothing was waiting for the disk, no version ends.
    let version = log.version();
    log.begin(2);
    assert!(log.start(request(Some(version), false)).is_ok());
}

#[test]
fn a_watch_of_one_object_is_sent_that_object_and_its_events_only() {
    let mut log = small();
    let mine = "lease/a-1".parse().unwrap();
    let all = [lease("a-1", 1, 1), lease("a-2", 2, 1)];
    log.replace(Kind::Lease, &all);
    log.publish(log.last);
    let watch = |log: &WatchLog, object: ObjectRef| {
        let mut request = request(None, true);
        request.filter.object = Some(object);
        log.start(request).unwrap()
    };
    let mut cursor = watch(&log, mine);
    let mut host = watch(&log, ObjectRef::Host);
    assert_eq!(read(&log, &mut cursor).unwrap().len(), 2);
    assert_eq!(read(&log, &mut host).unwrap().len(), 1, "SYNCED");
    log.put(&lease("a-2", 2, 2));
    log.put(&lease("a-1", 1, 2));
    log.note(1, &event(1));
    log.publish(log.last);
    let lines = read(&log, &mut cursor).unwrap();
    let expected = WatchLine::Modified {
        resource_version: log.version_of(4),
        object: lease("a-1", 1, 2),
    };
    assert_eq!(lines, [expected]);
    let lines = read(&log, &mut host).unwrap();
    assert!(matches!(&lines[..], [WatchLine::Event { .. }]), "{lines:?}");
}
