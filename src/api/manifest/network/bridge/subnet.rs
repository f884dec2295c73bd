//! Reads the gateway of a bridge, and lists and ranges of addresses in its subnet.
//! Out of scope: names; which addresses are free.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::super::super::super::lease::subnet;
use super::super::super::super::network::Addresses;
use super::super::super::keys::limits::GATEWAY_PREFIXES;
use super::super::super::section::{Field, Reader};

/// Ranges without unicast addresses for a gateway: RFC 1122 section 3.2.1.3, RFC 3927, RFC 5771, RFC 1112 section 4.
const NON_UNICAST: [(Ipv4Addr, u8, &str); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "\"this network\""),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Reads `A.B.C.D/LEN`: the host's address on the bridge.
pub fn read_gateway(reader: &mut Reader, field: &Field) -> Option<Ipv4Network> {
    const EXPECTED: &str =
        "the host's address on the bridge and its prefix length, such as 192.168.137.1/24";
    let text = reader.text(field, EXPECTED)?;
    let Some(gateway) = parse_network(text) else {
        reader.unexpected(field, EXPECTED);
        return None;
    };
    if !GATEWAY_PREFIXES.contains(&gateway.prefix()) {
        let (least, most) = (GATEWAY_PREFIXES.start(), GATEWAY_PREFIXES.end());
        reader.unexpected(field, &format!("a prefix length from /{least} to /{most}"));
        return None;
    }
    let non_unicast = NON_UNICAST.iter().find(|(address, prefix, _)| {
        Ipv4Network::new(*address, *prefix).is_ok_and(|net| net.contains(gateway.ip()))
    });
    if let Some((.., kind)) = non_unicast {
        reader.unexpected(field, &format!("a unicast address, not a {kind} address"));
        return None;
    }
    if let Some(what) = reserved_address(gateway.ip(), gateway) {
        reader.unexpected(
            field,
            &format!(
                "the address of a host, {} is the {what} of the subnet",
                gateway.ip()
            ),
        );
        return None;
    }
    Some(gateway)
}

/// Reads a list of addresses, in the order of the VMs.
pub fn read_list(reader: &mut Reader, field: &Field, gateway: Ipv4Network) -> Addresses {
    let before = reader.problem_count();
    let mut listed = Vec::new();
    let mut seen: HashMap<Ipv4Addr, String> = HashMap::new();
    for item in reader.list(field, "a list of addresses, such as [192.168.137.2/24]") {
        let Some(ip) = read_address(reader, &item, gateway) else {
            continue;
        };
        match seen.insert(ip, item.path.clone()) {
            None => listed.push(ip),
            Some(first) => {
                reader.refuse(&item, format!("duplicate address {ip}, first in {first}"))
            }
        }
    }
    // A list with refused addresses must not be reported as too short as well.
    match reader.problem_count() > before {
        true => Addresses::Any,
        false => Addresses::Listed(listed),
    }
}

fn read_address(reader: &mut Reader, item: &Field, gateway: Ipv4Network) -> Option<Ipv4Addr> {
    let prefix = gateway.prefix();
    let expected =
        format!("an IPv4 address with the gateway's prefix length /{prefix} or without one");
    let text = reader.text(item, &expected)?;
    let ip = match text.contains('/') {
        true => parse_network(text)
            .filter(|net| net.prefix() == prefix)
            .map(|net| net.ip()),
        false => text.parse().ok(),
    };
    let Some(ip) = ip else {
        reader.unexpected(item, &expected);
        return None;
    };
    match address_problem(ip, gateway) {
        None => Some(ip),
        Some(message) => {
            reader.refuse(item, message);
            None
        }
    }
}

/// Reads `FIRST-LAST`.
pub fn read_range(reader: &mut Reader, field: &Field, gateway: Ipv4Network) -> Addresses {
    const EXPECTED: &str = "FIRST-LAST, two IPv4 addresses such as 192.168.137.20-192.168.137.80 (a CIDR needs mode: isolated)";
    let Some(text) = reader.text(field, EXPECTED) else {
        return Addresses::Any;
    };
    let ends = text.split_once('-').and_then(|(first, last)| {
        let address = |text: &str| text.trim().parse::<Ipv4Addr>().ok();
        Some((address(first)?, address(last)?))
    });
    let Some((first, last)) = ends else {
        reader.unexpected(field, EXPECTED);
        return Addresses::Any;
    };
    // The range may contain the gateway, which is never assigned to a VM.
    let problem = [first, last]
        .into_iter()
        .filter(|end| *end != gateway.ip())
        .find_map(|end| address_problem(end, gateway));
    match problem {
        Some(message) => reader.refuse(field, message),
        None if first > last => reader.unexpected(field, "the lower address first"),
        None => {}
    }
    // A refused range is never used, but it is ordered so that subtractions cannot overflow.
    Addresses::Range(first.min(last), first.max(last))
}

/// The reason why no VM can have this address with this gateway, if there is one.
fn address_problem(ip: Ipv4Addr, gateway: Ipv4Network) -> Option<String> {
    let net = subnet(gateway);
    if !net.contains(ip) {
        return Some(format!("{ip} is outside {net}, the gateway's subnet"));
    }
    if ip == gateway.ip() {
        return Some(format!("{ip} is the address of the gateway"));
    }
    reserved_address(ip, net).map(|kind| format!("{ip} is the {kind} of {net}"))
}

fn reserved_address(ip: Ipv4Addr, net: Ipv4Network) -> Option<&'static str> {
    if ip == net.network() {
        Some("network address")
    } else if ip == net.broadcast() {
        Some("broadcast address")
    } else {
        None
    }
}

/// Parses `A.B.C.D/LEN` only: the library also accepts netmasks and plain addresses.
fn parse_network(text: &str) -> Option<Ipv4Network> {
    let (ip, prefix) = text.split_once('/')?;
    let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix = prefix.parse().ok().filter(|_| digits)?;
    Ipv4Network::new(ip.parse().ok()?, prefix).ok()
}
