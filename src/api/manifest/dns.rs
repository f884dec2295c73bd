//! Reads `dns_servers:`, and checks whether the policy lets a VM reach them.
//! Out of scope: whether a name server answers.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::super::network::NetworkSpec;
use super::super::policy::{self, METADATA, Origin, Packet, Policy, Protocol, Verdict};
use super::keys::limits::MAX_DNS_SERVERS;
use super::section::{Field, Reader, Section};

/// The addresses, each with its field.
pub fn read<'n>(reader: &mut Reader, group: &Section<'n>) -> Vec<(Field<'n>, Ipv4Addr)> {
    const EXPECTED: &str = "a list of IPv4 addresses";
    let Some(field) = group.get("dns_servers") else {
        return Vec::new();
    };
    let items = reader.list(field, EXPECTED);
    if let Some(excess) = items.get(MAX_DNS_SERVERS) {
        let message = format!(
            "found {} servers, expected at most {MAX_DNS_SERVERS}: the kernel parameter ip= supports no more",
            items.len()
        );
        reader.refuse(excess, message);
    }
    items
        .into_iter()
        .filter_map(|item| {
            let address = reader.text(&item, "an IPv4 address")?.parse().ok();
            if address.is_none() {
                reader.unexpected(&item, "an IPv4 address");
            }
            Some((item, address?))
        })
        .collect()
}

/// Refuses addresses that no VM can reach, and warns of addresses that the group's lists deny.
pub fn check(
    reader: &mut Reader,
    group: &Section,
    servers: &[(Field, Ipv4Addr)],
    network: &NetworkSpec,
) -> Vec<String> {
    let policy = network.policy();
    let mut warnings = Vec::new();
    for (field, address) in servers {
        if let Some(range) = unreachable_range(*address, policy) {
            let remedy = match policy.is_some() && METADATA.contains(address) {
                true => "allow_metadata: true allows it".to_owned(),
                false => "use a server outside that range".to_owned(),
            };
            let message =
                format!("\"{address}\": the VM cannot reach it: {range} is reserved; {remedy}");
            reader.refuse(field, message);
        } else if let Some(why) = policy.and_then(|policy| closed(*address, policy)) {
            let at = reader.location(field.node.at);
            let network_path = format!("{}.network", group.path);
            warnings.push(format!(
                "{at}: {}: the VM cannot reach \"{address}\": {network_path}.{why}",
                field.path
            ));
        }
    }
    warnings
}

/// The reserved range that contains an unusable server. Link-local addresses and those of metadata services are denied by the policy
/// of isolated mode only; the other ranges are loopback, multicast or unassigned in every mode.
fn unreachable_range(address: Ipv4Addr, policy: Option<&Policy>) -> Option<Ipv4Network> {
    if let Some(policy) = policy {
        return policy.reserved(address);
    }
    let is_never_routed = |range: &Ipv4Network| {
        let first = range.network();
        range.contains(address)
            && (first.is_loopback() || first.is_multicast() || matches!(first.octets()[0], 0 | 240))
    };
    policy::reserved().find(is_never_routed)
}

/// The reason why the policy denies DNS queries to `address` over UDP or TCP, if it does.
fn closed(address: Ipv4Addr, policy: &Policy) -> Option<String> {
    const DNS: u16 = 53;
    [(Protocol::Udp, "udp"), (Protocol::Tcp, "tcp")]
        .into_iter()
        .find_map(|(protocol, word)| {
            let packet = Packet {
                destination: address,
                transport: Some((protocol, Some(DNS))),
            };
            let (Verdict::Deny, origin) = policy.evaluate(&packet) else {
                return None;
            };
            Some(match origin {
                Origin::Drop(index, entry) => {
                    format!("drop[{index}] \"{entry}\" denies {DNS}/{word}")
                }
                Origin::Allow(..) | Origin::Reserved(_) | Origin::Default => {
                    format!("allow has no entry for {address}:{DNS}/{word}")
                }
            })
        })
}
