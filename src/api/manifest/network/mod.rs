//! Reads a group's `network:` section, and `network_name` and `cni:`, which select CNI mode without one.
//! Out of scope: the rest of the group; conflicts between groups.
//!
//! # Which mode
//! | `network:` | `network_name` of the group | of `config:` | mode |
//! |---|---|---|---|
//! | with `mode` | | | this mode; `cni` uses the name of the group, else that of `config:` |
//! | without `mode` | no | | bridge |
//! | `isolated` or `bridge`, set or by default | yes | | refused: the group specifies two modes |
//! | none | yes, or no | or yes | CNI |
//! | none | no | no | bridge with derived values: all its fields are optional, so a missing section equals `network: {}` |

mod bridge;
mod cni;
mod cni_options;
mod isolated;

use super::super::meta::Name;
use super::super::network::{NetworkSpec, TapOwner};
use super::keys::limits::{MAX_CONNECTIONS, MODES};
use super::keys::{Mapping, Mode, exclusive_to};
use super::section::{Field, Reader, Section};
use super::yaml::Value;

pub use cni::read_name as read_network_name;

/// The result of reading a network section.
pub struct Network {
    pub spec: NetworkSpec,
    pub warnings: Vec<String>,
}

/// The group that owns the network.
pub struct GroupInfo<'a> {
    /// The name of the group; `None` if it was refused.
    pub name: Option<&'a Name>,
    pub count: u32,
}

/// The maximum number of VMs of a network.
pub struct Capacity {
    pub vms: u32,
    /// The reason for the limit, such as `169.254.100.0/22 has 256 /30 blocks`.
    pub why: String,
}

/// The network of a group. `default_name` is the `network_name` of `config:`. `None` if the network was refused.
pub fn read(
    reader: &mut Reader,
    group: &Section,
    info: &GroupInfo,
    default_name: Option<&str>,
) -> Option<Network> {
    let own = group.get("network_name");
    let own_name = own.map(|field| read_network_name(reader, field));
    let name = own_name.as_deref().or(default_name);
    let options = group.get("cni");
    let Some(field) = group.get("network") else {
        // An empty section with the position of the group.
        let empty = group.empty_subsection("network");
        return match name {
            Some(name) => Some(cni::read(reader, &empty, options, info, name)),
            None => {
                refuse_options(reader, options);
                bridge::read(reader, &empty, info)
            }
        };
    };
    let network = reader.section(field, Mapping::Network)?;
    let mode = read_mode(reader, field, &network)?;
    if let (Mode::Isolated | Mode::Bridge, Some(own)) = (mode, own) {
        let message = "needs mode: cni, but network: specifies another mode; remove one of the two, or set network: {mode: cni}";
        reader.refuse(own, message);
    }
    if let Mode::Isolated | Mode::Bridge = mode {
        refuse_options(reader, options);
    }
    match (mode, name) {
        (Mode::Isolated, _) => Some(isolated::read(reader, &network)),
        (Mode::Bridge, _) => bridge::read(reader, &network, info),
        (Mode::Cni, Some(name)) => Some(cni::read(reader, &network, options, info, name)),
        (Mode::Cni, None) => {
            let path = format!("{}.network_name", group.path);
            let message = "is missing: mode cni requires it; set it here or under config";
            reader.refuse_at(field.node.at, &path, message);
            None
        }
    }
}

fn read_mode(reader: &mut Reader, field: &Field, network: &Section) -> Option<Mode> {
    let Some(mode) = network.get("mode") else {
        // An unknown key is reported already, and is probably a misspelt `mode`.
        return match &field.node.value {
            Value::Map(members) if members.iter().any(|m| !Mapping::Network.has(&m.key)) => None,
            _ => Some(Mode::Bridge),
        };
    };
    reader.one_of(mode, &MODES)
}

/// The maximum number of VMs of the network; `None` if only the limits of the group apply.
pub fn capacity(spec: &NetworkSpec) -> Option<Capacity> {
    match spec {
        NetworkSpec::Isolated(isolated) => Some(isolated::capacity(isolated.range)),
        NetworkSpec::Bridge(bridge) => Some(bridge::capacity(bridge)),
        NetworkSpec::Cni(spec) => cni::capacity(&spec.cni),
    }
}

/// Refuses `cni:` of a group that is not in CNI mode.
fn refuse_options(reader: &mut Reader, options: Option<&Field>) {
    if let Some(field) = options {
        let message = "is valid in CNI mode only: set network_name, here or under config, and no other mode in network:";
        reader.refuse(field, message);
    }
}

/// Refuses the fields of isolated mode in a group with another mode.
fn refuse_lists(reader: &mut Reader, network: &Section, mode: &str) {
    let default = match mode == "bridge" && !network.has("mode") {
        true => ", the default",
        false => "",
    };
    for field in exclusive_to(Mode::Isolated).filter_map(|key| network.get(key)) {
        let message = format!("needs mode: isolated (this group is {mode}{default})");
        reader.refuse(field, message);
    }
}

/// Reads `max_connections`; `None` for a share of the host's table.
fn read_max_connections(reader: &mut Reader, network: &Section) -> Option<u32> {
    let field = network.get("max_connections")?;
    let count = reader.whole(field, MAX_CONNECTIONS)?;
    u32::try_from(count).ok()
}

/// Reads `tap_owner`; the default is root.
fn read_tap_owner(reader: &mut Reader, network: &Section) -> TapOwner {
    let Some(field) = network.get("tap_owner") else {
        return TapOwner::default();
    };
    // For the kernel, -1 means "unchanged", so it is not a valid id.
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
        reader.unexpected(field, "a numeric UID or \"UID:GID\"");
    }
    owner.unwrap_or_default()
}
