//! The stored form of objects.
//! Out of scope: keys.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;

/// Encodes and decodes a value with all its fields: none has the name of the version of the format.
#[track_caller]
fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: Value) {
    let value: T = serde_json::from_value(value).unwrap();
    let encoded = encode(&value).unwrap();
    assert_eq!(decode::<T>(&encoded).unwrap(), value);
    let fields: Value = serde_json::from_slice(&encoded).unwrap();
    assert_eq!(fields["version"], VERSION);
}

#[test]
fn each_kind_of_object_is_read_as_it_was_written() {
    let resources = json!({
        "vcpus": 1, "ram_bytes": 2, "disk_bytes": 3, "isolated": 4, "bridge_ports": 5
    });
    survives::<NodeStatus>(json!({
        "labels": {"a": "b"}, "architecture": "x86_64", "hypervisors": ["qemu"], "files": {"/a": true},
        "capacity": resources, "allocatable": resources, "daemon_version": "1.2", "format": 1,
        "api": "https://a", "boot_id": "b",
    }));
    survives::<VmStatus>(json!({
        "epoch": 1, "phase": "Ready", "group_generation": 2, "address": "10.0.0.1",
        "stops_within": {"secs": 1, "nanos": 0}, "message": "m",
    }));
    survives::<Node>(json!({
        "labels": {"a": "b"}, "unschedulable": true, "drain": {"delete_local": true},
        "gone": {"at": "2026-01-01T00:00:00Z", "boot_id": "b"},
    }));
    survives::<NodeSubnet>(json!({"subnet": "10.0.1.0/24", "gateway": "10.0.1.1"}));
    let meta = json!({
        "name": "g-1", "uid": "00000000-0000-0000-0000-000000000001", "generation": 1,
        "created_at": "2026-01-01T00:00:00Z", "deleting": false,
    });
    let copy = json!({"node": "a", "epoch": 1, "resources": resources, "keep": true});
    survives::<Vm>(json!({
        "meta": meta, "group": "g", "group_uid": meta["uid"], "index": 1, "group_generation": 1,
        "binding": {"node": "b", "epoch": 2, "resources": resources, "moving_from": copy},
        "epoch": 2, "previous": [copy], "pending": "p",
        "refusals": [{
            "node": "c", "reason": "r", "times": 1, "until": "2026-01-01T00:00:00Z",
        }],
    }));
}

#[test]
fn a_value_of_a_later_version_and_one_of_another_kind_are_errors() {
    let later = decode::<Node>(br#"{"version":2,"later":1}"#).unwrap_err();
    assert!(matches!(later, DecodeError::TooNew { found: 2 }), "{later}");
    for value in ["", "{}", "[]", r#"{"version":1,"labels":1}"#] {
        let error = decode::<Node>(value.as_bytes()).unwrap_err();
        assert!(matches!(error, DecodeError::Invalid(_)), "{error}");
    }
}
