//! Reads `network:` of a bridge group: names, the gateway, the addresses of its VMs.
//! Out of scope: objects that exist on the host; other groups on the bridge.

mod subnet;

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::super::super::lease::subnet;
use super::super::super::link_name::{self, MAX_PORTS, MAX_TAP_LEN};
use super::super::super::network::{Addresses, BridgeSpec, NetworkSpec};
use super::super::section::{Field, Reader, Section};
use super::{Capacity, GroupInfo, Network, read_max_connections, read_tap_owner, refuse_lists};

pub fn read(reader: &mut Reader, network: &Section, info: &GroupInfo) -> Option<Network> {
    refuse_lists(reader, network, "bridge");
    let bridge = network
        .get("bridge")
        .map(|field| read_link_name(reader, field, "the name of a bridge, such as brvm0"));
    let prefix = network
        .get("tap_prefix")
        .map(|field| read_tap_prefix(reader, field, info.count));
    let gateway = network
        .get("gateway")
        .map(|field| subnet::read_gateway(reader, field));
    let addresses = read_addresses(reader, network, gateway);
    let mut flag = |key, default| {
        let value = network.get(key).and_then(|field| reader.flag(field));
        value.unwrap_or(default)
    };
    let (antispoof, isolate_ports) = (flag("antispoof", true), flag("isolate_ports", false));
    let tap_owner = read_tap_owner(reader, network);
    let max_connections = read_max_connections(reader, network);
    // Nothing can be derived without a name; the missing name has been reported.
    let group = info.name?;
    let spec = BridgeSpec {
        bridge: bridge.map_or_else(|| link_name::bridge_of(group), str::to_owned),
        tap_prefix: prefix.map_or_else(|| link_name::tap_prefix_of(group), str::to_owned),
        gateway: gateway.flatten(),
        addresses,
        antispoof,
        isolate_ports,
        max_connections,
        tap_owner,
    };
    check_not_a_tap(reader, network, &spec, info.count);
    Some(Network {
        warnings: Vec::new(),
        spec: NetworkSpec::Bridge(spec),
    })
}

/// Returns the name even if it is refused: the field is set, so no name is derived.
fn read_link_name<'n>(reader: &mut Reader, field: &Field<'n>, expected: &str) -> &'n str {
    let Some(text) = reader.text(field, expected) else {
        return "";
    };
    if let Err(reason) = link_name::check(text) {
        reader.unexpected(field, &format!("{expected} ({reason})"));
    }
    text
}

fn read_tap_prefix<'n>(reader: &mut Reader, field: &Field<'n>, count: u32) -> &'n str {
    let prefix = read_link_name(reader, field, "a prefix of TAP names, such as vmtap");
    let last = format!("{prefix}{}", count.saturating_sub(1));
    if last.len() > MAX_TAP_LEN {
        let message = format!(
            "the name of the last TAP, \"{last}\", would have {} characters, expected at most {MAX_TAP_LEN}",
            last.len()
        );
        // A prefix that is invalid by itself has been refused already.
        if link_name::check(prefix).is_ok() {
            reader.refuse(field, message);
        }
    }
    prefix
}

/// Refuses a bridge that has the name of a TAP of its group.
fn check_not_a_tap(reader: &mut Reader, network: &Section, spec: &BridgeSpec, count: u32) {
    let number = link_name::tap_number(&spec.tap_prefix, &spec.bridge);
    // Two derived names never collide, so at least one field is set.
    let field = network.get("bridge").or(network.get("tap_prefix"));
    if let (Some(number), Some(field)) = (number.filter(|number| *number < count), field) {
        let message = format!(
            "the bridge and the TAP of VM {} would both have the name \"{}\"",
            number + 1,
            spec.bridge
        );
        reader.refuse(field, message);
    }
}

/// `gateway` is `None` if the field is missing, and `Some(None)` if it was refused.
fn read_addresses(
    reader: &mut Reader,
    network: &Section,
    gateway: Option<Option<Ipv4Network>>,
) -> Addresses {
    let (field, range) = match (network.get("addresses"), network.get("range")) {
        (None, None) => return Addresses::Any,
        (Some(_), Some(range)) => {
            reader.refuse(range, "only one of addresses and range may be given");
            return Addresses::Any;
        }
        (Some(listed), None) => (listed, None),
        (None, Some(range)) => (range, Some(range)),
    };
    let gateway = match gateway {
        None => {
            let message = "needs gateway: without it, sliced chooses the subnet, which may not contain these addresses";
            reader.refuse(field, message);
            return Addresses::Any;
        }
        Some(None) => return Addresses::Any,
        Some(Some(gateway)) => gateway,
    };
    match range {
        Some(range) => subnet::read_range(reader, range, gateway),
        None => subnet::read_list(reader, field, gateway),
    }
}

/// The maximum number of VMs of the group.
pub fn capacity(spec: &BridgeSpec) -> Capacity {
    let gateway = spec.gateway;
    let (vms, reason) = match &spec.addresses {
        Addresses::Listed(listed) => (listed.len(), format!("addresses lists {}", listed.len())),
        Addresses::Range(first, last) => {
            let vms = in_range(*first, *last, gateway);
            (vms, format!("{first}-{last} has {vms} usable addresses"))
        }
        Addresses::Any => {
            let vms = in_subnet(gateway.map_or(24, |gateway| gateway.prefix()));
            let net = match gateway {
                Some(gateway) => subnet(gateway).to_string(),
                None => "the derived subnet, a /24,".to_owned(),
            };
            (vms, format!("{net} has {vms} usable addresses"))
        }
    };
    match vms > MAX_PORTS as usize {
        true => Capacity {
            vms: MAX_PORTS,
            why: format!("a bridge has at most {MAX_PORTS} ports"),
        },
        false => Capacity {
            vms: vms as u32,
            why: reason,
        },
    }
}

fn in_range(first: Ipv4Addr, last: Ipv4Addr, gateway: Option<Ipv4Network>) -> usize {
    let all = (u32::from(last) - u32::from(first)) as usize + 1;
    let contains_gateway = gateway.is_some_and(|gateway| (first..=last).contains(&gateway.ip()));
    all - usize::from(contains_gateway)
}

/// The number of addresses without network, broadcast and gateway; a prefix is 8 to 30.
fn in_subnet(prefix: u8) -> usize {
    (1usize << (32 - prefix)) - 3
}
