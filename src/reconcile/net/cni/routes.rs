//! Which routes a guest needs beside those that its address and its gateway make. Pure.
//! Out of scope: how the guest is told.
//!
//! # Why
//! A result need not name what a plugin has made: `ptp` takes the subnet off the link and routes it through the gateway, Calico and
//! Cilium give a /32 and a gateway that lies in no subnet. What the namespace has is what works, so the guest gets the same.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// A destination, and the next hop; without one it is on the link.
pub(super) type Route = (Ipv4Network, Option<Ipv4Addr>);

const EVERYWHERE: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// What a guest is told of the ways out of its interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ways {
    pub gateway: Option<Ipv4Addr>,
    /// In the order in which they can be made: a next hop is on the link before it is used.
    pub routes: Vec<Route>,
}

/// Out of the guest's `addresses`, the first of which is what its kernel is told, and of the routes that the plugins made.
pub(super) fn ways(addresses: &[Ipv4Network], made: &[Route]) -> Ways {
    let first = addresses.first().copied().and_then(subnet);
    let connected: Vec<Ipv4Network> = addresses.iter().copied().filter_map(subnet).collect();
    let default = made.iter().find(|(dst, _)| dst.prefix() == 0);
    let gateway = default.and_then(|(_, next_hop)| *next_hop);
    let further = made.iter().filter(|(dst, _)| dst.prefix() > 0);
    let on_link = further
        .clone()
        .filter(|(dst, next_hop)| next_hop.is_none() && !connected.contains(dst));
    let mut routes: Vec<Route> = on_link.copied().collect();
    let beyond: Vec<Route> = further
        .filter(|(_, next_hop)| next_hop.is_some())
        .copied()
        .collect();
    let is_reached = |hop: Ipv4Addr, routes: &[Route]| {
        let on_link = routes.iter().filter(|(_, via)| via.is_none());
        let mut nets = on_link.map(|(dst, _)| dst).chain(&connected);
        nets.any(|net| net.contains(hop))
    };
    let hops = beyond.iter().filter_map(|(_, hop)| *hop).chain(gateway);
    for hop in hops {
        if !is_reached(hop, &routes) {
            routes.push((host(hop), None));
        }
    }
    // Where the subnet itself lies beyond a next hop, that hop must stay on the link.
    for (dst, hop) in &beyond {
        let hop = hop.filter(|hop| connected.contains(dst) && dst.contains(*hop));
        if let Some(hop) = hop
            .map(|hop| (host(hop), None))
            .filter(|hop| !routes.contains(hop))
        {
            routes.push(hop);
        }
    }
    routes.extend(beyond);
    match default {
        // The kernel's `ip=` makes it.
        Some((_, Some(gateway))) if first.is_some_and(|net| net.contains(*gateway)) => {}
        Some((_, next_hop)) => routes.push((EVERYWHERE, *next_hop)),
        None => {}
    }
    let mut seen = Vec::new();
    routes.retain(|route| {
        let is_new = !seen.contains(route);
        seen.push(*route);
        is_new
    });
    Ways { gateway, routes }
}

/// The subnet that an address makes a route to.
fn subnet(address: Ipv4Network) -> Option<Ipv4Network> {
    let net = Ipv4Network::new(address.network(), address.prefix()).ok()?;
    (net.prefix() < 32).then_some(net)
}

fn host(ip: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(ip)
}
