//! Interprets a CNI result for a guest: its address, its MAC, its TAP. Pure.
//! Out of scope: whether the result describes existing links.
//!
//! A chain may create the TAP itself, as `tc-redirect-tap` does: then the result has two more interfaces of the same name. One is the TAP
//! in the namespace. The other one is the guest's, and its "sandbox" is the container id; it has the guest's MAC, and the guest's addresses
//! refer to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};

use super::routes::{GuestRoutes, MAX_ROUTES, Route, guest_routes};
use super::state::{DataPath, Eth, Inside, IntentSeen, Observed};
use crate::api::network::{Connection, Mac};
use crate::cni::{Attachment, CniResult, Interface, Ip};
use crate::owner::TAP;

impl Observed {
    /// How the guest is connected. `None` until the plan is empty.
    pub fn connection(&self) -> Option<Connection> {
        let eth = self.inside.as_ref()?.eth.as_ref()?;
        let added = self.recorded()?;
        let created = match &self.intent {
            IntentSeen::Written(intent) => intent.routes.as_deref(),
            IntentSeen::Absent | IntentSeen::Damaged => None,
        };
        connection(&added.result, &added.attachment, eth, created)
    }

    /// The same for a guest that keeps its MAC while it keeps its address. Some plugins (ptp) do not support a requested MAC; on a veth the
    /// guest's MAC may differ from the interface's, because the guest answers ARP requests for the address.
    pub fn connection_for(&self, data_path: &DataPath) -> Option<Connection> {
        let eth = self.inside.as_ref()?.eth.as_ref()?;
        let mut connection = self.connection()?;
        if let Some(keep) = data_path.identity
            && data_path.requested.mac.is_none()
            && eth.veth
            && keep.ip == connection.ip
            && !self.chain_created_tap()
        {
            connection.mac = keep.mac;
        }
        Some(connection)
    }

    /// Whether the chain created the TAP itself and connected it to its interface: then no redirect is needed.
    pub fn chain_created_tap(&self) -> bool {
        self.recorded()
            .is_some_and(|added| chain_tap(&added.result, &added.attachment).is_some())
    }
}

/// The maximum number of entries of a list of a result, routes excepted. A result is bounded to 1 MiB only.
const MAX_LISTED: usize = 64;

/// The maximum length of a plugin's text in a warning, in characters.
const MAX_TEXT: usize = 80;

/// The main table (`RT_TABLE_MAIN`), or a table that the result does not specify.
const MAIN: [u32; 2] = [0, 254];

/// What is expected of the plugins' interface in the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Its MAC, if the result contains it.
    pub mac: Option<Mac>,
    /// Addresses that it must have.
    pub addresses: BTreeSet<Ipv4Network>,
}

/// Returns why a guest cannot use a result.
pub(super) fn invalid_reason(result: &CniResult, attachment: &Attachment) -> Option<String> {
    let dns = &result.dns;
    let counts = [
        ("interfaces", result.interfaces.len(), MAX_LISTED),
        ("addresses", result.ips.len(), MAX_LISTED),
        ("routes", result.routes.len(), MAX_ROUTES),
        ("name servers", dns.nameservers.len(), MAX_LISTED),
        ("DNS search domains", dns.search.len(), MAX_LISTED),
        ("DNS options", dns.options.len(), MAX_LISTED),
    ];
    if let Some((what, found, most)) = counts.into_iter().find(|(_, found, most)| found > most) {
        return Some(format!(
            "the result has {found} {what}, the maximum is {most}"
        ));
    }
    let addresses = addresses(result, attachment);
    let is_host_address =
        |ip: Ipv4Addr| !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast());
    if let Some((address, _)) = addresses
        .iter()
        .find(|(address, _)| !is_host_address(address.ip()))
    {
        return Some(format!(
            "the result assigns {address}, which is not the address of a host"
        ));
    }
    match addresses.is_empty() {
        true => Some(format!(
            "the result assigns no IPv4 address to {}, and guests have IPv4 addresses only",
            attachment.ifname
        )),
        false => None,
    }
}

/// The TAP that the chain created itself.
pub(super) fn chain_tap<'r>(result: &'r CniResult, attachment: &Attachment) -> Option<&'r str> {
    let guest = guest_interface(result, attachment)?.1;
    let tap = |found: &&Interface| found.name == guest.name && is_inside(found, attachment);
    let tap = result.interfaces.iter().find(tap)?;
    Some(&tap.name)
}

/// The TAP, whether the chain or sliced creates it.
pub(super) fn tap<'r>(result: &'r CniResult, attachment: &Attachment) -> &'r str {
    chain_tap(result, attachment).unwrap_or(TAP)
}

/// What the result requires of the plugins' interface in the namespace.
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

/// Describes the first difference between the result and the interface that affects the guest; `None` if they agree.
pub(super) fn disagreement(
    result: &CniResult,
    attachment: &Attachment,
    inside: &Inside,
) -> Option<String> {
    let ifname = &attachment.ifname;
    let Some(eth) = &inside.eth else {
        return Some(format!("the result lists {ifname}, which does not exist"));
    };
    let expected = expected(result, attachment);
    if let Some(mac) = expected.mac.filter(|mac| *mac != eth.mac) {
        return Some(format!(
            "the result assigns the MAC {mac} to {ifname}, which has {}",
            eth.mac
        ));
    }
    let list = |addresses: Vec<&Ipv4Network>| match addresses.as_slice() {
        [] => "none".to_owned(),
        some => some
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let missing: Vec<&Ipv4Network> = expected.addresses.difference(&eth.addresses).collect();
    if !missing.is_empty() {
        return Some(format!(
            "the result assigns {} to {ifname}, which has {}",
            list(missing),
            list(eth.addresses.iter().collect())
        ));
    }
    let tap = chain_tap(result, attachment).filter(|_| inside.tap.is_none());
    tap.map(|tap| format!("the result lists {tap}, which does not exist"))
}

/// Returns how the guest is connected; `None` if [`invalid_reason`] has one for the result. `created_routes` contains the routes that the
/// plugins created, which the result need not list; it is `None` if they are not known.
pub(super) fn connection(
    result: &CniResult,
    attachment: &Attachment,
    eth: &Eth,
    created_routes: Option<&[Route]>,
) -> Option<Connection> {
    let mut assigned = addresses(result, attachment);
    let (ip, gateway) = *assigned.first()?;
    let further = assigned
        .split_off(1)
        .into_iter()
        .map(|(address, _)| address);
    let addresses: Vec<Ipv4Network> = further.filter(|further| further.ip() != ip.ip()).collect();
    let all = [&[ip], addresses.as_slice()].concat();
    let routes = match created_routes {
        Some(made) if eth.addresses.contains(&ip) && !made.is_empty() => {
            with_default_route(made.to_vec(), gateway)
        }
        Some(_) | None => with_default_route(result_routes(result, gateway), gateway),
    };
    let GuestRoutes { gateway, routes } = guest_routes(&all, &routes);
    let guest_mac = guest_interface(result, attachment).and_then(|(_, guest)| mac(guest));
    Some(Connection {
        netns: attachment.netns.clone(),
        tap: tap(result, attachment).to_owned(),
        host_link: host_link(result),
        mac: guest_mac.unwrap_or(eth.mac),
        ip: ip.ip(),
        prefix_len: ip.prefix(),
        warnings: warnings(result, attachment, ip, gateway, &routes),
        addresses,
        gateway,
        routes,
        mtu: eth.mtu,
        dns: name_servers(result),
    })
}

/// Returns the guest's MAC if the result contains it.
pub(super) fn mac_of(result: &CniResult, attachment: &Attachment) -> Option<Mac> {
    let guest = guest_interface(result, attachment).or_else(|| eth(result, attachment));
    guest.and_then(|(_, guest)| mac(guest))
}

/// Returns the host's end of the link. In a result a bridge precedes the port that was created for the VM, and the links that later
/// plugins of the chain created follow the interface inside. The bandwidth plugin's IFB, for one, does not carry the VM's packets out.
fn host_link(result: &CniResult) -> Option<String> {
    host_interface(result).map(|found| found.name.clone())
}

/// The name and the MAC of the host's end, if the result has both.
pub(super) fn host_end(result: &CniResult) -> Option<(String, Mac)> {
    let found = host_interface(result)?;
    Some((found.name.clone(), mac(found)?))
}

fn host_interface(result: &CniResult) -> Option<&Interface> {
    let is_inside = |found: &Interface| found.sandbox.is_some();
    let all = &result.interfaces;
    let first_inside = all.iter().position(is_inside).unwrap_or(all.len());
    let (before, after) = all.split_at(first_inside);
    let host_side = |found: &&Interface| !is_inside(found);
    before.last().or_else(|| after.iter().find(host_side))
}

/// Returns the routes of the result as plugins add them: a route without a next hop uses the gateway (spec, section 5).
fn result_routes(result: &CniResult, gateway: Option<Ipv4Addr>) -> Vec<Route> {
    let in_main = result.routes.iter().filter(|route| is_in_main_table(route));
    in_main
        .filter_map(|route| {
            let dst = v4(route.dst)?;
            let dst = Ipv4Network::new(dst.network(), dst.prefix()).ok()?;
            Some((dst, route.gw.and_then(v4_address).or(gateway)))
        })
        .collect()
}

/// Adds a default route through the result's gateway if there is no default route: some plugins do not add it themselves.
fn with_default_route(mut routes: Vec<Route>, gateway: Option<Ipv4Addr>) -> Vec<Route> {
    let is_default = |(dst, _): &Route| dst.prefix() == 0;
    let everywhere = Ipv4Network::new(Ipv4Addr::UNSPECIFIED, 0).ok();
    if let (Some(gateway), Some(everywhere), false) =
        (gateway, everywhere, routes.iter().any(is_default))
    {
        routes.push((everywhere, Some(gateway)));
    }
    routes
}

fn is_in_main_table(route: &crate::cni::Route) -> bool {
    route.table.is_none_or(|table| MAIN.contains(&table))
}

/// Parts of the result that are not passed to the guest, and what the guest lacks.
fn warnings(
    result: &CniResult,
    attachment: &Attachment,
    ip: Ipv4Network,
    gateway: Option<Ipv4Addr>,
    routes: &[Route],
) -> Vec<String> {
    let left_out = addresses_left_out(result, attachment)
        .chain(result.routes.iter().flat_map(left_out_of_route))
        .chain(dns_left_out(&result.dns));
    let mut warnings: Vec<String> = left_out
        .map(|what| format!("the CNI network provides {what}, which is not passed to the guest"))
        .collect();
    if ip.prefix() == 32 && gateway.is_none() && routes.is_empty() {
        warnings.push(format!(
            "the CNI network provides {ip} without a gateway or a route: the guest cannot reach any other address"
        ));
    }
    warnings
}

fn addresses_left_out<'r>(
    result: &'r CniResult,
    attachment: &Attachment,
) -> impl Iterator<Item = String> + 'r {
    let eth = eth(result, attachment);
    let guest = guest_interface(result, attachment).or(eth);
    let own = [guest, eth].map(|its| its.map(|(at, _)| at));
    result.ips.iter().filter_map(move |found| {
        let on = found
            .interface
            .and_then(|at| Some((at, result.interfaces.get(at)?)));
        match (found.address, on) {
            (IpNetwork::V6(address), _) => Some(format!("the IPv6 address {address}")),
            (IpNetwork::V4(address), Some((at, on)))
                if on.sandbox.is_some() && !own.contains(&Some(at)) =>
            {
                Some(format!(
                    "the address {address} of {}",
                    abbreviated(&on.name)
                ))
            }
            (IpNetwork::V4(_), _) => None,
        }
    })
}

fn left_out_of_route(route: &crate::cni::Route) -> Vec<String> {
    let metrics = [
        ("mtu", route.mtu),
        ("advmss", route.advmss),
        ("priority", route.priority),
    ];
    match (route.dst, is_in_main_table(route)) {
        (IpNetwork::V6(dst), _) => vec![format!("the IPv6 route to {dst}")],
        (dst, false) => {
            let table = route.table.unwrap_or_default();
            vec![format!("the route to {dst} of table {table}")]
        }
        (dst, true) => metrics
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key} {} of the route to {dst}", value?)))
            .collect(),
    }
}

fn dns_left_out(dns: &crate::cni::Dns) -> impl Iterator<Item = String> + '_ {
    let is_v4 = |server: &&String| server.parse::<Ipv4Addr>().is_ok();
    let servers = dns.nameservers.iter().filter(move |server| !is_v4(server));
    let texts = [
        ("name server", servers.collect::<Vec<_>>()),
        ("DNS domain", dns.domain.iter().collect()),
        ("DNS search domain", dns.search.iter().collect()),
        ("DNS option", dns.options.iter().collect()),
    ];
    texts.into_iter().flat_map(|(what, all)| {
        all.into_iter()
            .map(move |text| format!("the {what} {}", abbreviated(text)))
    })
}

/// The beginning of a plugin's text, without control characters.
fn abbreviated(text: &str) -> String {
    let escaped: String = text
        .chars()
        .take(MAX_TEXT)
        .flat_map(char::escape_debug)
        .collect();
    match text.chars().nth(MAX_TEXT) {
        Some(_) => escaped + "…",
        None => escaped,
    }
}

/// The guest's IPv4 addresses, each with its gateway.
pub(super) fn addresses(
    result: &CniResult,
    attachment: &Attachment,
) -> Vec<(Ipv4Network, Option<Ipv4Addr>)> {
    let guest = guest_interface(result, attachment).or_else(|| eth(result, attachment));
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

/// Returns all IPv4 name servers of the result; `ip=` contains the first two.
fn name_servers(result: &CniResult) -> Vec<Ipv4Addr> {
    let servers = result.dns.nameservers.iter();
    servers.filter_map(|server| server.parse().ok()).collect()
}

/// The plugins' interface in the namespace, and its index in the result.
fn eth<'r>(result: &'r CniResult, attachment: &Attachment) -> Option<(usize, &'r Interface)> {
    let is_it = |found: &Interface| found.name == attachment.ifname && is_inside(found, attachment);
    let mut all = result.interfaces.iter().enumerate();
    all.find(|(_, found)| is_it(found))
}

/// The guest's own interface, if the chain created the TAP.
fn guest_interface<'r>(
    result: &'r CniResult,
    attachment: &Attachment,
) -> Option<(usize, &'r Interface)> {
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
