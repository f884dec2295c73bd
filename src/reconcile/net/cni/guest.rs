//! What a CNI result means for a guest: its address, its MAC, its TAP. Pure.
//! Out of scope: whether what the result states exists.
//!
//! A chain may make the TAP itself, as `tc-redirect-tap` does: then the result has two more interfaces of one name. One is the
//! TAP, in the namespace. The other is the guest's own, whose "sandbox" is the container id; it bears the guest's MAC, and
//! the guest's addresses point to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};

use super::state::Eth;
use crate::api::network::{Connection, Mac};
use crate::cni::{Attachment, CniResult, Interface, Ip};
use crate::owner::TAP;

/// More than two name servers do not fit what a kernel is told on its command line.
const NAME_SERVERS: usize = 2;

/// What there must be of the plugins' interface inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Its MAC, when the result says it.
    pub mac: Option<Mac>,
    /// Among its addresses.
    pub addresses: BTreeSet<Ipv4Network>,
}

/// Why no guest can use a result.
pub(super) fn unfit(result: &CniResult, attachment: &Attachment) -> Option<String> {
    match addresses(result, attachment).is_empty() {
        true => Some(format!(
            "the result gives {} no IPv4 address, and guests have none but IPv4",
            attachment.ifname
        )),
        false => None,
    }
}

/// The TAP that the chain made itself.
pub(super) fn chains_tap<'r>(result: &'r CniResult, attachment: &Attachment) -> Option<&'r str> {
    let guest = pseudo(result, attachment)?.1;
    let tap = |found: &&Interface| found.name == guest.name && is_inside(found, attachment);
    let tap = result.interfaces.iter().find(tap)?;
    Some(&tap.name)
}

/// The TAP, whoever made it.
pub(super) fn tap<'r>(result: &'r CniResult, attachment: &Attachment) -> &'r str {
    chains_tap(result, attachment).unwrap_or(TAP)
}

/// The plugins' interface inside, as it is to be.
pub(super) fn expected(result: &CniResult, attachment: &Attachment) -> Expected {
    let eth = eth(result, attachment);
    let is_its = |ip: &&Ip| match (ip.interface, eth) {
        (Some(index), Some((its, _))) => index == its,
        (Some(_), None) => false,
        (None, _) => true,
    };
    Expected {
        mac: eth.and_then(|(_, eth)| mac(eth)),
        addresses: result
            .ips
            .iter()
            .filter(is_its)
            .filter_map(|ip| v4(ip.address))
            .collect(),
    }
}

/// How the guest is connected; `None` when the result is [`unfit`].
pub(super) fn connection(
    result: &CniResult,
    attachment: &Attachment,
    eth: &Eth,
) -> Option<Connection> {
    let (ip, gateway) = *addresses(result, attachment).first()?;
    let default_via = || {
        let defaults = result.routes.iter().filter(|r| r.dst.prefix() == 0);
        defaults.filter_map(|route| v4_address(route.gw?)).next()
    };
    let pseudo = pseudo(result, attachment).and_then(|(_, guest)| mac(guest));
    let host_side = |found: &&Interface| found.sandbox.is_none();
    Some(Connection {
        netns: attachment.netns.clone(),
        tap: tap(result, attachment).to_owned(),
        // A bridge comes before the port that was made for us.
        host_link: result
            .interfaces
            .iter()
            .rfind(host_side)
            .map(|found| found.name.clone()),
        mac: pseudo.unwrap_or(eth.mac),
        ip: ip.ip(),
        prefix_len: ip.prefix(),
        gateway: gateway.or_else(default_via),
        routes: routes(result),
        mtu: eth.mtu,
        dns: name_servers(result),
    })
}

/// The guest's IPv4 addresses, each with its gateway.
pub(super) fn addresses(
    result: &CniResult,
    attachment: &Attachment,
) -> Vec<(Ipv4Network, Option<Ipv4Addr>)> {
    let guest = pseudo(result, attachment).or_else(|| eth(result, attachment));
    let is_its = |ip: &&Ip| match (ip.interface, guest) {
        (Some(index), Some((its, _))) => index == its,
        (Some(_), None) => false,
        (None, _) => true,
    };
    let with_gateway = |ip: &Ip| Some((v4(ip.address)?, ip.gateway.and_then(v4_address)));
    result
        .ips
        .iter()
        .filter(is_its)
        .filter_map(with_gateway)
        .collect()
}

fn routes(result: &CniResult) -> Vec<(Ipv4Network, Option<Ipv4Addr>)> {
    let further = |route: &crate::cni::Route| {
        let dst = v4(route.dst).filter(|dst| dst.prefix() > 0)?;
        let dst = Ipv4Network::new(dst.network(), dst.prefix()).ok()?;
        Some((dst, route.gw.and_then(v4_address)))
    };
    result.routes.iter().filter_map(further).collect()
}

fn name_servers(result: &CniResult) -> Vec<Ipv4Addr> {
    let servers = result.dns.nameservers.iter();
    servers
        .filter_map(|server| server.parse().ok())
        .take(NAME_SERVERS)
        .collect()
}

/// The plugins' interface inside, and where it stands in the result.
fn eth<'r>(result: &'r CniResult, attachment: &Attachment) -> Option<(usize, &'r Interface)> {
    let is_it = |found: &Interface| found.name == attachment.ifname && is_inside(found, attachment);
    let mut all = result.interfaces.iter().enumerate();
    all.find(|(_, found)| is_it(found))
}

/// The guest's own interface of a chain that made the TAP.
fn pseudo<'r>(result: &'r CniResult, attachment: &Attachment) -> Option<(usize, &'r Interface)> {
    let is_it =
        |found: &Interface| found.sandbox.as_deref() == Some(attachment.container_id.as_str());
    let mut all = result.interfaces.iter().enumerate();
    all.find(|(_, found)| is_it(found))
}

fn is_inside(found: &Interface, attachment: &Attachment) -> bool {
    let netns = attachment.netns.as_deref().and_then(|path| path.to_str());
    found.sandbox.is_some() && found.sandbox.as_deref() == netns
}

fn mac(found: &Interface) -> Option<Mac> {
    Mac::try_from(found.mac.clone()?).ok()
}

fn v4(address: IpNetwork) -> Option<Ipv4Network> {
    match address {
        IpNetwork::V4(found) => Some(found),
        IpNetwork::V6(_) => None,
    }
}

fn v4_address(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(found) => Some(found),
        IpAddr::V6(_) => None,
    }
}
