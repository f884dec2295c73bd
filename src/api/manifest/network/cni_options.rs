//! Reads `cni:` of a group: what its VMs request from the plugins of their network.
//! Out of scope: which options exist; whether their values are valid ([`CniOptions::objections`]).

use std::collections::{BTreeMap, HashMap};

use super::super::super::cni::{Bandwidth, CniOptions, PortMapping, RequestedIp, parse_bits};
use super::super::super::meta::Name;
use super::super::super::network::Mac;
use super::super::keys::Mapping;
use super::super::keys::limits::{PORTS, TRANSPORTS};
use super::super::problem::Position;
use super::super::section::{Field, Reader, Section};
use super::super::yaml::{Node, Value};

/// Reads `cni:`. `count` is the number of VMs of the group: with more than one, host ports and a MAC are refused.
pub fn read(reader: &mut Reader, field: &Field, count: u32) -> CniOptions {
    let before = reader.problem_count();
    let Some(section) = reader.section(field, Mapping::Cni) else {
        return CniOptions::default();
    };
    let options = CniOptions {
        port_mappings: read_all(
            reader,
            &section,
            "port_mappings",
            "a list of port mappings",
            read_port,
        ),
        bandwidth: section
            .get("bandwidth")
            .and_then(|field| read_bandwidth(reader, field)),
        aliases: read_all(reader, &section, "aliases", "a list of names", read_alias),
        args: section
            .get("args")
            .map(|field| read_args(reader, field))
            .unwrap_or_default(),
        ips: read_all(
            reader,
            &section,
            "ips",
            "a list of IPv4 addresses, one for each VM",
            read_ip,
        ),
        mac: section.get("mac").and_then(|field| read_mac(reader, field)),
    };
    for key in ["port_mappings", "mac"] {
        if let Some(field) = section.get(key).filter(|_| count > 1) {
            let message = format!(
                "applies to one VM, and count is {count}; a VM made on demand can have its own"
            );
            reader.refuse(field, message);
        }
    }
    // A field that could not be read is reported already, and is missing in `options`.
    if reader.problem_count() == before {
        refuse(reader, field, &options);
    }
    options
}

fn refuse(reader: &mut Reader, field: &Field, options: &CniOptions) {
    let mut positions = HashMap::new();
    collect_positions("", field.node, &mut positions);
    for (path, message) in options.objections() {
        // The location of a missing field is the section that lacks it.
        let around = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        let position = positions.get(&path).or_else(|| positions.get(around));
        let at = position.copied().unwrap_or(field.node.at);
        reader.refuse_at(at, &format!("{}.{path}", field.path), message);
    }
}

/// Collects the location of every node below this one, by its relative path.
fn collect_positions(path: &str, node: &Node, positions: &mut HashMap<String, Position>) {
    positions.insert(path.to_owned(), node.at);
    match &node.value {
        Value::Map(members) => {
            for member in members {
                let path = match path.is_empty() {
                    true => member.key.clone(),
                    false => format!("{path}.{}", member.key),
                };
                collect_positions(&path, &member.value, positions);
            }
        }
        Value::List(items) => {
            for (at, item) in items.iter().enumerate() {
                collect_positions(&format!("{path}[{at}]"), item, positions);
            }
        }
        _ => {}
    }
}

fn read_all<T>(
    reader: &mut Reader,
    section: &Section,
    key: &str,
    expected: &str,
    read: impl Fn(&mut Reader, &Field) -> Option<T>,
) -> Vec<T> {
    let Some(field) = section.get(key) else {
        return Vec::new();
    };
    let items = reader.list(field, expected);
    items.iter().filter_map(|item| read(reader, item)).collect()
}

fn read_port(reader: &mut Reader, field: &Field) -> Option<PortMapping> {
    let section = reader.section(field, Mapping::PortMapping)?;
    let mut port = |key: &str| match section.get(key) {
        Some(field) => reader
            .whole(field, PORTS)
            .and_then(|port| u16::try_from(port).ok()),
        None => {
            reader.refuse_at(section.at, &format!("{}.{key}", section.path), "is missing");
            None
        }
    };
    let (host_port, guest_port) = (port("host_port"), port("guest_port"));
    let protocol = section
        .get("protocol")
        .map(|field| reader.one_of(field, &TRANSPORTS));
    let host_ip = section.get("host_ip").and_then(|field| {
        const EXPECTED: &str = "an IPv4 address of the host";
        let text = reader.text(field, EXPECTED)?;
        let ip = text.parse().ok();
        if ip.is_none() {
            reader.unexpected(field, EXPECTED);
        }
        ip
    });
    Some(PortMapping {
        host_port: host_port?,
        guest_port: guest_port?,
        protocol: protocol.flatten().unwrap_or_default(),
        host_ip,
    })
}

fn read_bandwidth(reader: &mut Reader, field: &Field) -> Option<Bandwidth> {
    let section = reader.section(field, Mapping::Bandwidth)?;
    let mut bits = |key: &str| {
        let field = section.get(key)?;
        let bits = match &field.node.value {
            Value::Int(number) => u64::try_from(*number).ok(),
            Value::Text(text) => parse_bits(text).ok(),
            _ => None,
        };
        if bits.is_none() {
            reader.unexpected(field, "a number of bits, such as 512k, 10M or 1G");
        }
        bits
    };
    Some(Bandwidth {
        ingress_rate: bits("ingress_rate"),
        ingress_burst: bits("ingress_burst"),
        egress_rate: bits("egress_rate"),
        egress_burst: bits("egress_burst"),
    })
}

fn read_alias(reader: &mut Reader, field: &Field) -> Option<Name> {
    const EXPECTED: &str = "an RFC 1123 label (a-z, 0-9 and -, at most 63)";
    let text = reader.text(field, EXPECTED)?;
    match Name::new(text) {
        Ok(name) => Some(name),
        Err(error) => {
            reader.invalid_name(field, error.why());
            None
        }
    }
}

fn read_args(reader: &mut Reader, field: &Field) -> BTreeMap<String, String> {
    let Value::Map(members) = &field.node.value else {
        reader.unexpected(field, "a mapping of arguments to their values");
        return BTreeMap::new();
    };
    let mut args = BTreeMap::new();
    for member in members {
        let argument = Field {
            path: format!("{}.{}", field.path, member.key),
            node: &member.value,
        };
        let Some(value) = reader.text(&argument, "a string; a number needs quotes") else {
            continue;
        };
        if args.insert(member.key.clone(), value.to_owned()).is_some() {
            reader.refuse_at(member.key_position, &argument.path, "duplicate key");
        }
    }
    args
}

fn read_ip(reader: &mut Reader, field: &Field) -> Option<RequestedIp> {
    let text = reader.text(field, "a unicast IPv4 address, A.B.C.D or A.B.C.D/LEN")?;
    match text.parse() {
        Ok(ip) => Some(ip),
        Err(message) => {
            reader.refuse(field, message);
            None
        }
    }
}

fn read_mac(reader: &mut Reader, field: &Field) -> Option<Mac> {
    const EXPECTED: &str = "a MAC in quotes, such as \"02:00:00:00:00:01\"";
    let text = reader.text(field, EXPECTED)?;
    let mac = Mac::try_from(text.to_owned()).ok();
    if mac.is_none() {
        reader.unexpected(field, EXPECTED);
    }
    mac
}
