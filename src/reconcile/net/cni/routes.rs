//! The routes that a guest needs in addition to those implied by its address and its gateway. Pure.
//! Out of scope: passing them to the guest.
//!
//! # Why
//! A result need not list the routes that a plugin has added: `ptp` replaces the on-link route to the subnet by a route through the
//! gateway; Calico and Cilium assign a /32 and a gateway outside of every subnet. The guest gets the routes of the namespace, because
//! the plugins configured the network for these.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

/// A destination and its next hop; `None` if the destination is on the link.
pub(super) type Route = (Ipv4Network, Option<Ipv4Addr>);

/// The maximum number of routes of a result, and of the plugins' interface. A kernel command line has space for about 55.
pub(super) const MAX_ROUTES: usize = 256;

const DEFAULT_DESTINATION: Ipv4Network =
    Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// The gateway and the additional routes of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GuestRoutes {
    pub gateway: Option<Ipv4Addr>,
    /// In the order in which they can be added: a next hop is on the link before it is used.
    pub routes: Vec<Route>,
}

/// Computes the routes from the guest's `addresses`, the first of which is in `ip=`, and from the routes that the plugins created.
pub(super) fn guest_routes(addresses: &[Ipv4Network], created: &[Route]) -> GuestRoutes {
    let first = addresses.first().copied().and_then(subnet);
    let connected: Vec<Ipv4Network> = addresses.iter().copied().filter_map(subnet).collect();
    let default = created.iter().find(|(dst, _)| dst.prefix() == 0);
    let gateway = default.and_then(|(_, next_hop)| *next_hop);
    let other_routes = created.iter().filter(|(dst, _)| dst.prefix() > 0);
    let on_link = other_routes
        .clone()
        .filter(|(dst, next_hop)| next_hop.is_none() && !connected.contains(dst));
    let mut routes: Vec<Route> = on_link.copied().collect();
    let via_gateway: Vec<Route> = other_routes
        .filter(|(_, next_hop)| next_hop.is_some())
        .copied()
        .collect();
    let is_reached = |hop: Ipv4Addr, routes: &[Route]| {
        let on_link = routes.iter().filter(|(_, via)| via.is_none());
        let mut nets = on_link.map(|(dst, _)| dst).chain(&connected);
        nets.any(|net| net.contains(hop))
    };
    let hops = via_gateway
        .iter()
        .filter_map(|(_, hop)| *hop)
        .chain(gateway);
    for hop in hops {
        if !is_reached(hop, &routes) {
            routes.push((host(hop), None));
        }
    }
    // If the route to the subnet itself has a next hop, that hop needs an on-link route of its own.
    for (dst, hop) in &via_gateway {
        let hop = hop.filter(|hop| connected.contains(dst) && dst.contains(*hop));
        if let Some(hop) = hop
            .map(|hop| (host(hop), None))
            .filter(|hop| !routes.contains(hop))
        {
            routes.push(hop);
        }
    }
    routes.extend(via_gateway);
    match default {
        // `ip=` adds this route.
        Some((_, Some(gateway))) if first.is_some_and(|net| net.contains(*gateway)) => {}
        Some((_, next_hop)) => routes.push((DEFAULT_DESTINATION, *next_hop)),
        None => {}
    }
    // The kernel lists the route with the lowest metric first. A later route to the same destination would replace it in the guest.
    let mut seen = BTreeSet::new();
    routes.retain(|(dst, _)| seen.insert(*dst));
    GuestRoutes { gateway, routes }
}

/// Returns the subnet to which the kernel adds a route for an address.
fn subnet(address: Ipv4Network) -> Option<Ipv4Network> {
    let net = Ipv4Network::new(address.network(), address.prefix()).ok()?;
    (net.prefix() < 32).then_some(net)
}

fn host(ip: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(ip)
}
