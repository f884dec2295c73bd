//! The keys of `network:` and `cni:`.
//! Out of scope: `network_name`, which is a key of groups.

use super::super::super::cni::{BURSTS, MAX_REQUESTED, RATES};
use super::super::super::entry_problem::MAX_ENTRIES;
use super::Mapping::{Bandwidth, Cni, Network, PortMapping};
use super::limits::{MAX_CONNECTIONS, MODES, ON_DENY, PORTS, TRANSPORTS};
use super::{Change, Default, Format, Key, Mapping, Mode, Value, names};

const ISOLATED: &[Mode] = &[Mode::Isolated];
const BRIDGE: &[Mode] = &[Mode::Bridge];
const CNI: &[Mapping] = &[Cni];
const PORT: &[Mapping] = &[PortMapping];

/// Values that other keys do not share.
const KEY: Key = Key {
    name: "",
    mappings: &[Network],
    value: Value::Flag,
    default: Default::Text("none"),
    modes: &[],
    change: Change::Replaces,
    property: None,
    about: "",
    example: "null",
};

/// A limit of `bandwidth:`.
const BANDWIDTH: Key = Key {
    mappings: &[Bandwidth],
    value: Value::NumberOrText(Format::Bits),
    default: Default::Text("no limit"),
    example: "\"10M\"",
    ..KEY
};

// The texts of `bandwidth:` name these bounds.
const _: () = assert!(*RATES.start() == 1_000 && *RATES.end() == 1_000_000_000_000);
const _: () = assert!(*BURSTS.start() == 16_000 && *BURSTS.end() == 34_359_738_360);

/// All of them.
pub const KEYS: &[Key] = &[
    Key {
        name: "mode",
        value: Value::Choice(|| names(&MODES)),
        default: Default::Text("`bridge`"),
        about: "`isolated`: a network namespace and a /30 for each VM; `bridge`: a bridge shared by the VMs, the host and the LAN; `cni`: a network of CNI plugins",
        example: "\"isolated\"",
        ..KEY
    },
    Key {
        name: "range",
        modes: ISOLATED,
        value: Value::Text(Format::IsolatedRange),
        default: Default::Text("derived from the name, and kept"),
        about: "One /30 of it for each VM; not a [reserved /22](#reserved-ranges); not that of another group",
        example: "\"169.254.100.0/22\"",
        ..KEY
    },
    Key {
        name: "allow",
        modes: ISOLATED,
        value: Value::List(&Value::Text(Format::Entry), Some(MAX_ENTRIES)),
        change: Change::Live,
        about: "Destinations that VMs may reach; evaluated before `drop`",
        example: "[\"192.168.222.1:3128\", \"1.1.1.1:53/udp\"]",
        ..KEY
    },
    Key {
        name: "drop",
        modes: ISOLATED,
        value: Value::List(&Value::Text(Format::Entry), Some(MAX_ENTRIES)),
        change: Change::Live,
        about: "Destinations that VMs may not reach",
        example: "[\"192.168.1.0/24\"]",
        ..KEY
    },
    Key {
        name: "on_deny",
        modes: ISOLATED,
        value: Value::Choice(|| names(&ON_DENY)),
        default: Default::Word("drop"),
        change: Change::Live,
        about: "Response to denied packets; `drop`: none; `reject`: TCP reset, or ICMP administratively prohibited",
        example: "\"reject\"",
        ..KEY
    },
    Key {
        name: "allow_metadata",
        modes: ISOLATED,
        value: Value::Flag,
        default: Default::Flag(false),
        change: Change::Live,
        about: "`true`: the lists apply to the cloud metadata addresses, too",
        example: "true",
        ..KEY
    },
    Key {
        name: "bridge",
        modes: BRIDGE,
        value: Value::Text(Format::Link),
        default: Default::Text("derived from the name"),
        about: "The bridge; created if absent; an existing one is used unchanged, and groups may share it",
        example: "\"brvm0\"",
        ..KEY
    },
    Key {
        name: "tap_prefix",
        modes: BRIDGE,
        value: Value::Text(Format::LinkPrefix),
        default: Default::Text("derived from the name"),
        about: "TAPs are `<tap_prefix>0`, `<tap_prefix>1`, ...",
        example: "\"vmtap\"",
        ..KEY
    },
    Key {
        name: "gateway",
        modes: BRIDGE,
        value: Value::Text(Format::Gateway),
        default: Default::Text("derived from the name, and kept"),
        about: "The host's address on the bridge",
        example: "\"192.168.137.1/24\"",
        ..KEY
    },
    Key {
        name: "addresses",
        modes: BRIDGE,
        value: Value::List(&Value::Text(Format::AddressOrNetwork), None),
        default: Default::Text("any free one"),
        change: Change::ReplacesReaddressed,
        about: "One for each VM, of the gateway's subnet; needs `gateway`",
        example: "[\"192.168.137.2/24\", \"192.168.137.3/24\"]",
        ..KEY
    },
    Key {
        name: "range",
        modes: BRIDGE,
        value: Value::Text(Format::AddressRange),
        default: Default::Text("the whole subnet"),
        change: Change::ReplacesReaddressed,
        about: "Addresses of the VMs, of the gateway's subnet; needs `gateway`; not with `addresses`",
        example: "\"192.168.137.20-192.168.137.80\"",
        ..KEY
    },
    Key {
        name: "antispoof",
        modes: BRIDGE,
        value: Value::Flag,
        default: Default::Flag(true),
        change: Change::Live,
        about: "`false`: a VM may send with any MAC and address, but cannot configure the host or, on a bridge that `sliced` did not create, other machines",
        example: "false",
        ..KEY
    },
    Key {
        name: "isolate_ports",
        modes: BRIDGE,
        value: Value::Flag,
        default: Default::Flag(false),
        change: Change::Live,
        about: "`true`: VMs of the group cannot reach each other, also not through the host, which does not route their IPv6",
        example: "true",
        ..KEY
    },
    Key {
        name: "max_connections",
        modes: &[Mode::Isolated, Mode::Bridge],
        value: Value::Whole(MAX_CONNECTIONS, 1),
        default: Default::Text("1/512 of the host's `nf_conntrack_max`: 512 of 262,144"),
        change: Change::Live,
        about: "Concurrent connections of one VM; the smallest value applies to all groups on a bridge's subnet; see [security](../security.md)",
        example: "1024",
        ..KEY
    },
    Key {
        name: "tap_owner",
        value: Value::NumberOrText(Format::Owner),
        default: Default::Whole(0),
        about: "User and group that may open the TAP, with `hypervisor: none`; a VMM that `sliced` starts has a user of its own",
        example: "\"1000:1000\"",
        ..KEY
    },
    Key {
        name: "port_mappings",
        mappings: CNI,
        value: Value::List(&Value::One(PortMapping), Some(MAX_REQUESTED)),
        about: "Ports of the host that are forwarded to the VM; `count` at most 1; a plugin must declare `portMappings`",
        example: "[{\"host_port\": 8080, \"guest_port\": 80}]",
        ..KEY
    },
    Key {
        name: "bandwidth",
        mappings: CNI,
        value: Value::One(Bandwidth),
        about: "Limits on the traffic of each VM; a plugin must declare `bandwidth`",
        example: "{\"ingress_rate\": \"100M\", \"ingress_burst\": \"10M\"}",
        ..KEY
    },
    Key {
        name: "aliases",
        mappings: CNI,
        value: Value::List(&Value::Text(Format::Name), Some(MAX_REQUESTED)),
        about: "Further names of the VM; a plugin must declare `aliases`",
        example: "[\"www\"]",
        ..KEY
    },
    Key {
        name: "args",
        mappings: CNI,
        value: Value::Arguments,
        about: "`CNI_ARGS`, which every plugin receives",
        example: "{\"K8S_POD_NAME\": \"web\"}",
        ..KEY
    },
    Key {
        name: "ips",
        mappings: CNI,
        value: Value::List(&Value::Text(Format::AddressOrNetwork), None),
        default: Default::Text("a free one; the previous address of the VM name is preferred"),
        change: Change::ReplacesReaddressed,
        about: "One for each VM; the attachment fails without it",
        example: "[\"10.88.64.20\"]",
        ..KEY
    },
    Key {
        name: "mac",
        mappings: CNI,
        value: Value::Text(Format::Mac),
        default: Default::Text("from the plugins; the previous MAC of the VM name is preferred"),
        about: "MAC of the VM's interface; `count` at most 1; the attachment fails without it",
        example: "\"02:00:00:00:00:20\"",
        ..KEY
    },
    Key {
        name: "host_port",
        mappings: PORT,
        value: Value::Whole(PORTS, 1),
        default: Default::Required,
        about: "Port of the host",
        example: "8080",
        ..KEY
    },
    Key {
        name: "guest_port",
        mappings: PORT,
        value: Value::Whole(PORTS, 1),
        default: Default::Required,
        about: "Port of the VM",
        example: "80",
        ..KEY
    },
    Key {
        name: "protocol",
        mappings: PORT,
        value: Value::Choice(|| names(&TRANSPORTS)),
        default: Default::Word("tcp"),
        about: "Transport protocol",
        example: "\"udp\"",
        ..KEY
    },
    Key {
        name: "host_ip",
        mappings: PORT,
        value: Value::Text(Format::Address),
        default: Default::Text("all addresses"),
        about: "Address of the host that the mapping applies to",
        example: "\"192.0.2.1\"",
        ..KEY
    },
    Key {
        name: "ingress_rate",
        about: "Bits per second to the VM, 1k to 1000G; with `ingress_burst`",
        ..BANDWIDTH
    },
    Key {
        name: "ingress_burst",
        about: "Burst to the VM in bits, 16k to 34359738360",
        ..BANDWIDTH
    },
    Key {
        name: "egress_rate",
        about: "Bits per second from the VM, 1k to 1000G; with `egress_burst`",
        ..BANDWIDTH
    },
    Key {
        name: "egress_burst",
        about: "Burst from the VM in bits, 16k to 34359738360",
        ..BANDWIDTH
    },
];
