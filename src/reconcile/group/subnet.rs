//! Chooses the subnet of a bridge group: as specified, or derived from the group's name and then kept.
//! Out of scope: ranges of isolated groups (`range`), the addresses of the VMs (the store).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::claim::Claim;
use super::range_error::RangeError;
use crate::api::host_group::HostGroup;
use crate::api::lease::{Address, subnet};
use crate::api::meta::Name;
use crate::api::network::{BridgeSpec, NetworkSpec};
use crate::api::pool;
use crate::host::link::Link;
use crate::host::netlink::Handle;
use crate::host::{self, addr, neigh, route};
use crate::store::{Pool, World};

/// The gateway of another group.
struct Other {
    group: Name,
    bridge: String,
    gateway: Ipv4Network,
}

/// Whether the stored gateway meets the spec, and `wanted` VMs have an address in its subnet.
pub(super) fn is_available(
    world: &World,
    group: &HostGroup,
    spec: &BridgeSpec,
    count: usize,
) -> bool {
    let name = &group.meta.name;
    let Some(kept) = kept(world, name, spec) else {
        return false;
    };
    let on_bridge = world.leases_of(name).filter(
        |lease| matches!(&lease.address, Address::Bridge { gateway, .. } if *gateway == kept),
    );
    on_bridge.count() >= count
}

fn kept(world: &World, name: &Name, spec: &BridgeSpec) -> Option<Ipv4Network> {
    let stored = world.pool(name).and_then(network_of)?;
    Some(stored).filter(|kept| spec.gateway.is_none_or(|required| required == *kept))
}

/// Chooses a group's gateway. The result includes the addresses of its subnet that the host, its neighbours, or other daemons on the same
/// bridge use.
pub(super) fn choose(
    world: &World,
    foreign: &[Claim],
    seen: &HostObservation,
    group: &HostGroup,
    spec: &BridgeSpec,
) -> Result<Pool, RangeError> {
    let name = &group.meta.name;
    let others = others(world, name);
    // Groups that share a bridge share its gateway.
    let shared = others.iter().find(|other| other.bridge == spec.bridge);
    let gateway = match (kept(world, name, spec).or(spec.gateway), shared) {
        (Some(gateway), _) => {
            check(gateway, spec, &others, seen)?;
            gateway
        }
        (None, Some(other)) => other.gateway,
        (None, None) => derive(foreign, name, &others, seen)?,
    };
    let range = subnet(gateway);
    let theirs = foreign.iter().filter_map(|claim| match claim {
        Claim::Address { bridge, ip } => Some(*ip).filter(|_| *bridge == spec.bridge),
        Claim::Gateway { bridge, gateway } => Some(gateway.ip()).filter(|_| *bridge == spec.bridge),
        Claim::Range(_) => None,
    });
    let ours: BTreeSet<Ipv4Addr> = world.leases().map(|lease| lease.address.ip()).collect();
    let in_use = seen
        .hosts
        .iter()
        .copied()
        .filter(|ip| !ours.contains(ip))
        .chain(theirs)
        .filter(|ip| range.contains(*ip) && *ip != gateway.ip())
        .map(Ipv4Network::from)
        .collect();
    Ok(Pool {
        range,
        gateway: Some(gateway.ip()),
        in_use,
    })
}

fn network_of(pool: &Pool) -> Option<Ipv4Network> {
    Ipv4Network::new(pool.gateway?, pool.range.prefix()).ok()
}

fn others(world: &World, name: &Name) -> Vec<Other> {
    let groups = world.groups().filter(|group| group.meta.name != *name);
    let bridge_gateways = groups.filter_map(|group| {
        let NetworkSpec::Bridge(spec) = &group.spec.template.network else {
            return None;
        };
        Some(Other {
            group: group.meta.name.clone(),
            bridge: spec.bridge.clone(),
            gateway: network_of(world.pool(&group.meta.name)?)?,
        })
    });
    bridge_gateways.collect()
}

fn check(
    gateway: Ipv4Network,
    spec: &BridgeSpec,
    others: &[Other],
    seen: &HostObservation,
) -> Result<(), RangeError> {
    let range = subnet(gateway);
    for other in others {
        let theirs = other.gateway;
        if other.bridge == spec.bridge && theirs != gateway {
            return Err(RangeError::OtherGateway {
                bridge: spec.bridge.clone(),
                theirs,
                other: other.group.clone(),
            });
        }
        if other.bridge != spec.bridge && pool::overlaps(range, subnet(theirs)) {
            return Err(RangeError::Taken {
                range,
                theirs: subnet(theirs),
                other: other.group.clone(),
            });
        }
    }
    match seen
        .elsewhere
        .iter()
        .find(|(net, _)| pool::overlaps(range, *net))
    {
        None => Ok(()),
        Some((theirs, link)) => Err(RangeError::OfTheHost {
            range,
            theirs: *theirs,
            link: link.clone(),
        }),
    }
}

/// Derives a gateway from the group's name: 192.168.100.1/24 to 192.168.250.1/24 (RFC 1918), starting with the hash of the name, the first
/// one that is free. Home routers and bridges of other programs use lower numbers.
fn derive(
    foreign: &[Claim],
    name: &Name,
    others: &[Other],
    seen: &HostObservation,
) -> Result<Ipv4Network, RangeError> {
    const FIRST: u8 = 100;
    const LAST: u8 = 250;
    let digest = blake3::derive_key("slicectl subnet of a host group", name.as_str().as_bytes());
    let first =
        usize::from(u16::from_le_bytes([digest[0], digest[1]]) % u16::from(LAST - FIRST + 1));
    let taken = |net: Ipv4Network| {
        let by_others = others.iter().map(|other| subnet(other.gateway));
        let by_host = seen.elsewhere.iter().map(|(net, _)| *net);
        by_others
            .chain(by_host)
            .chain(seen.routes.iter().copied())
            .chain(foreign.iter().map(Claim::network))
            .any(|taken| pool::overlaps(taken, subnet(net)))
    };
    (FIRST..=LAST)
        .cycle()
        .skip(first)
        .take(usize::from(LAST - FIRST) + 1)
        .filter_map(|third| Ipv4Network::new(Ipv4Addr::new(192, 168, third, 1), 24).ok())
        .find(|net| !taken(*net))
        .ok_or(RangeError::NoneLeft)
}

/// IPv4 networks and addresses of the host.
pub(super) struct HostObservation {
    /// Subnets of links other than the bridge.
    elsewhere: Vec<(Ipv4Network, String)>,
    /// Destinations of the host's routes, except the default route.
    routes: Vec<Ipv4Network>,
    /// Addresses of the host and of its neighbours.
    hosts: Vec<Ipv4Addr>,
}

impl HostObservation {
    pub(super) async fn observe(
        netlink: &Handle,
        links: &[Link],
        bridge: &str,
    ) -> Result<Self, host::Error> {
        let name_of = |index: u32| links.iter().find(|link| link.index == index);
        let addresses = addr::list(netlink, addr::Of::All).await?;
        let own = links.iter().find(|link| link.name == bridge);
        let own = own.map(|link| link.index);
        let routes = route::list(netlink).await?;
        let neighbours = neigh::list_resolved(netlink).await?;
        let elsewhere = addresses
            .iter()
            .filter(|addr| Some(addr.index) != own)
            .filter_map(|addr| Some((subnet(addr.net), name_of(addr.index)?.name.clone())));
        Ok(Self {
            elsewhere: elsewhere.collect(),
            routes: routes
                .iter()
                .filter(|route| route.dst.prefix() > 0 && (own.is_none() || route.link != own))
                .map(|route| route.dst)
                .collect(),
            hosts: addresses
                .iter()
                .map(|addr| addr.net.ip())
                .chain(neighbours.iter().map(|neighbour| neighbour.ip))
                .collect(),
        })
    }
}
