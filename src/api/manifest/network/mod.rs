//! A group's `network:` section, and `network_name` and `cni:`, which select CNI mode without one.
//! Out of scope: the rest of the group; whether groups are at peace with each other.
//!
//! # Which mode
//! | `network:` | `network_name` of the group | of `config:` | mode |
//! |---|---|---|---|
//! | with `mode` | | | that one; `cni` takes the name from the group, else from `config:` |
//! | without `mode` | no | | bridge |
//! | `isolated` or `bridge`, said or not | yes | | refused: the group says two things |
//! | none | yes, or no | or yes | CNI |
//! | none | no | no | bridge, all of it derived: every field of it is optional, so `network: {}` and no section are one |

mod bridge;
mod cni;
mod cni_options;
mod isolated;

use super::super::meta::Name;
use super::super::network::{NetworkSpec, TapOwner};
use super::section::{Field, Reader, Section};
use super::yaml::Value;

pub use cni::read_name as read_network_name;
pub use isolated::{entry_objection, list_objection};

const KEYS: [&str; 14] = [
    "mode",
    "range",
    "allow",
    "drop",
    "on_deny",
    "allow_metadata",
    "tap_owner",
    "bridge",
    "tap_prefix",
    "gateway",
    "addresses",
    "antispoof",
    "isolate_ports",
    "max_connections",
];
/// Words of bridge mode alone.
const BRIDGE_KEYS: [&str; 6] = [
    "bridge",
    "tap_prefix",
    "gateway",
    "addresses",
    "antispoof",
    "isolate_ports",
];
/// Words of isolated mode alone.
const LIST_KEYS: [&str; 4] = ["allow", "drop", "on_deny", "allow_metadata"];

/// What a network section makes of a group.
pub struct Network {
    pub spec: NetworkSpec,
    pub warnings: Vec<String>,
}

/// Whose network it is.
pub struct Whose<'a> {
    /// None when it was refused.
    pub name: Option<&'a Name>,
    pub count: u32,
}

/// How many VMs a network has room for.
pub struct Room {
    pub vms: u32,
    /// `169.254.100.0/22 has 256 blocks of a /30`.
    pub why: String,
}

#[derive(Clone, Copy)]
enum Mode {
    Isolated,
    Bridge,
    Cni,
}

/// The network of a group, `default_name` being the `network_name` of `config:`. `None` when it was refused.
pub fn read(
    reader: &mut Reader,
    group: &Section,
    whose: &Whose,
    default_name: Option<&str>,
) -> Option<Network> {
    let own = group.get("network_name");
    let own_name = own.map(|field| read_network_name(reader, field));
    let name = own_name.as_deref().or(default_name);
    let asked = group.get("cni");
    let Some(field) = group.get("network") else {
        // An empty section, standing where the group stands.
        let nothing = group.nested("network");
        return match name {
            Some(name) => Some(cni::read(reader, &nothing, asked, whose, name)),
            None => {
                refuse_options(reader, asked);
                bridge::read(reader, &nothing, whose)
            }
        };
    };
    let network = reader.section(field, &KEYS)?;
    let mode = read_mode(reader, field, &network)?;
    if let (Mode::Isolated | Mode::Bridge, Some(own)) = (mode, own) {
        let message = "belongs to CNI mode, and network: says another; remove one of the two, or write network: {mode: cni}";
        reader.refuse(own, message);
    }
    if let Mode::Isolated | Mode::Bridge = mode {
        refuse_options(reader, asked);
    }
    match (mode, name) {
        (Mode::Isolated, _) => Some(isolated::read(reader, &network)),
        (Mode::Bridge, _) => bridge::read(reader, &network, whose),
        (Mode::Cni, Some(name)) => Some(cni::read(reader, &network, asked, whose, name)),
        (Mode::Cni, None) => {
            let path = format!("{}.network_name", group.path);
            let message = "is missing, mode cni needs it; set it here or under config";
            reader.refuse_at(field.node.at, &path, message);
            None
        }
    }
}

fn read_mode(reader: &mut Reader, field: &Field, network: &Section) -> Option<Mode> {
    const WORDS: [(&str, Mode); 3] = [
        ("isolated", Mode::Isolated),
        ("bridge", Mode::Bridge),
        ("cni", Mode::Cni),
    ];
    let Some(mode) = network.get("mode") else {
        // With misspelt keys only, `mode` is likely one of them and has been named.
        return match &field.node.value {
            Value::Map(members) if members.iter().any(|m| !KEYS.contains(&m.key.as_str())) => None,
            _ => Some(Mode::Bridge),
        };
    };
    reader.word(mode, &WORDS)
}

/// How many VMs have room; none when only the group's own bounds count.
pub fn room(spec: &NetworkSpec) -> Option<Room> {
    match spec {
        NetworkSpec::Isolated(isolated) => Some(isolated::room(isolated.range)),
        NetworkSpec::Bridge(bridge) => Some(bridge::room(bridge)),
        NetworkSpec::Cni(spec) => cni::room(&spec.cni),
    }
}

/// Refuses `cni:` of a group that is not in CNI mode.
fn refuse_options(reader: &mut Reader, asked: Option<&Field>) {
    if let Some(field) = asked {
        let message = "is valid in CNI mode only: set network_name, here or under config, and no other mode in network:";
        reader.refuse(field, message);
    }
}

/// Refuses what only isolated mode has.
fn refuse_lists(reader: &mut Reader, network: &Section, mode: &str) {
    for field in LIST_KEYS.iter().filter_map(|key| network.get(key)) {
        let message = format!("only isolated mode has lists of destinations, mode {mode} has none");
        reader.refuse(field, message);
    }
}

/// Fewer than 16 connections serve no guest; more than the kernel's default for the largest host are no limit.
const MAX_CONNECTIONS: std::ops::RangeInclusive<u64> = 16..=262_144;

/// `max_connections`; none: a share of the host's table.
fn read_max_connections(reader: &mut Reader, network: &Section) -> Option<u32> {
    let field = network.get("max_connections")?;
    let count = reader.whole(field, MAX_CONNECTIONS)?;
    u32::try_from(count).ok()
}

/// `tap_owner`, root when there is none.
fn read_tap_owner(reader: &mut Reader, network: &Section) -> TapOwner {
    let Some(field) = network.get("tap_owner") else {
        return TapOwner::default();
    };
    // -1 means "leave as it is" to the kernel, so it is nobody's id.
    let id = |text: &str| match text.parse::<u32>() {
        Ok(id) if id != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()) => Some(id),
        _ => None,
    };
    let owner = match &field.node.value {
        Value::Int(uid) => id(&uid.to_string()).map(|uid| TapOwner { uid, gid: None }),
        Value::Text(text) => match text.split_once(':') {
            None => id(text).map(|uid| TapOwner { uid, gid: None }),
            Some((uid, gid)) => id(uid).zip(id(gid)).map(|(uid, gid)| TapOwner {
                uid,
                gid: Some(gid),
            }),
        },
        _ => None,
    };
    if owner.is_none() {
        reader.unexpected(field, "UID or \"UID:GID\" in numbers");
    }
    owner.unwrap_or_default()
}
