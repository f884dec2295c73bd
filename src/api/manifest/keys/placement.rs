//! The keys of `placement:` and `replacement:`.
//! Out of scope: `fleet:` of the settings file.

use super::super::super::vm_index::MAX_COUNT;
use super::Mapping::{HostGroup, Placement, Replacement, Subnets};
use super::limits::{ARCHITECTURES, RECONCILES, STRATEGIES, SUBNET_PREFIXES};
use super::{Change, Default, Format, Key, Mapping, Value, names};

const PLACEMENT: &[Mapping] = &[Placement];
const SUBNETS: &[Mapping] = &[Subnets];
const REPLACEMENT: &[Mapping] = &[Replacement];

/// Values that other keys do not share.
const KEY: Key = Key {
    name: "",
    mappings: PLACEMENT,
    value: Value::Flag,
    default: Default::Text("none"),
    modes: &[],
    change: Change::Live,
    property: None,
    about: "",
    example: "null",
};

/// All of them.
pub const KEYS: &[Key] = &[
    Key {
        name: "placement",
        mappings: &[HostGroup],
        value: Value::One(Placement),
        default: Default::Text("any node"),
        about: "Where the VMs run; of a group of a [fleet](../fleet.md) only. A running VM is not moved by a change",
        example: "{\"strategy\": \"spread\"}",
        ..KEY
    },
    Key {
        name: "replacement",
        mappings: &[HostGroup],
        value: Value::One(Replacement),
        default: Default::Text("never"),
        about: "Whether VMs are started on another node when contact to theirs is lost; of a group of a [fleet](../fleet.md) only",
        example: "{\"replace_after\": \"5m\", \"stop_after\": \"1m\"}",
        ..KEY
    },
    Key {
        name: "strategy",
        value: Value::Choice(|| names(&STRATEGIES)),
        default: Default::Word("spread"),
        about: "`spread`: the node with the fewest VMs of the group; `pack`: the fullest node",
        example: "\"pack\"",
        ..KEY
    },
    Key {
        name: "node_selector",
        value: Value::Arguments,
        about: "Labels that a node must have",
        example: r#"{"zone": "a"}"#,
        ..KEY
    },
    Key {
        name: "architecture",
        value: Value::Choice(|| names(&ARCHITECTURES)),
        default: Default::Text("any"),
        about: "The architecture (`uname -m`) that a node must have",
        example: "\"x86_64\"",
        ..KEY
    },
    Key {
        name: "max_unavailable",
        value: Value::Whole(1..=MAX_COUNT as u64, 1),
        default: Default::Whole(1),
        about: "How many VMs of the group an update or a drain may make unavailable at once",
        example: "2",
        ..KEY
    },
    Key {
        name: "subnets",
        value: Value::One(Subnets),
        default: Default::Text("the same subnet on each node"),
        about: "A subnet for each node; in bridge mode",
        example: "{\"pool\": \"10.64.0.0/12\", \"prefix_len\": 24}",
        ..KEY
    },
    Key {
        name: "pool",
        mappings: SUBNETS,
        value: Value::Text(Format::Pool),
        default: Default::Required,
        about: "What the subnets are taken from; `slicectl fleet subnets` prints the routes to them",
        example: "\"10.64.0.0/12\"",
        ..KEY
    },
    Key {
        name: "prefix_len",
        mappings: SUBNETS,
        value: Value::Whole(
            *SUBNET_PREFIXES.start() as u64..=*SUBNET_PREFIXES.end() as u64,
            1,
        ),
        default: Default::Required,
        about: "The prefix length of each subnet; not less than that of the pool",
        example: "24",
        ..KEY
    },
    Key {
        name: "replace_after",
        mappings: REPLACEMENT,
        value: Value::Text(Format::ReplaceAfter),
        default: Default::Required,
        about: "How long a node must have been without contact before its VMs are started on other nodes",
        example: "\"5m\"",
        ..KEY
    },
    Key {
        name: "stop_after",
        mappings: REPLACEMENT,
        value: Value::Text(Format::StopAfter),
        default: Default::Required,
        about: "How long after the last confirmed renewal of its lease a node without contact stops its VMs",
        example: "\"1m\"",
        ..KEY
    },
    Key {
        name: "reconcile",
        mappings: REPLACEMENT,
        value: Value::Choice(|| names(&RECONCILES)),
        default: Default::Word("keep_replacement"),
        about: "Which VM remains when the node has contact again: `keep_replacement`: the one on the other node; `keep_original`: the one of the node",
        example: "\"keep_original\"",
        ..KEY
    },
];
