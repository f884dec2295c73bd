//! A bridge's subnet: as written, or derived from the group's name and kept.
//! Not here: isolated mode's ranges (`range`), which VM has which address (the store).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::range::{HostUse, RangeError};
use crate::api::host_group::HostGroup;
use crate::api::lease::{Address, subnet};
use crate::api::meta::Name;
use crate::api::network::{BridgeSpec, NetworkSpec};
use crate::api::pool;
use crate::host::netlink::Handle;
use crate::host::{self, addr, link, neigh, route};
use crate::store::{Pool, Store};

/// A gateway on a bridge, and whose group it is.
struct Other {
    group: Name,
    bridge: String,
    gateway: Ipv4Network,
}

/// Chooses a group's gateway if it has none, or if its spec now says another, and looks who is on the subnet already.
/// `None`: what is stored stands.
pub(super) async fn choose(
    store: &Store,
    host_use: &HostUse<'_>,
    group: &HostGroup,
    spec: &BridgeSpec,
    wanted: usize,
) -> Result<Option<Pool>, super::Error> {
    let name = &group.meta.name;
    let stored = store.read(|world| world.pool(name).cloned());
    let stored = stored.and_then(|pool| network_of(&pool));
    let kept = stored.filter(|kept| spec.gateway.is_none_or(|wanted| wanted == *kept));
    if kept.is_some() {
        let leased = store.read(|world| {
            let on_bridge = world.leases_of(name).filter(|lease| {
                matches!(&lease.address, Address::Bridged { gateway, .. } if Some(*gateway) == kept)
            });
            on_bridge.count()
        });
        if leased >= wanted {
            return Ok(None);
        }
    }
    let others = others(store, name);
    let seen = Seen::look(host_use.netlink, &spec.bridge).await?;
    let gateway = match kept.or(spec.gateway) {
        Some(gateway) => {
            check(gateway, spec, &others, &seen)?;
            gateway
        }
        // Whoever shares a bridge shares its gateway.
        None => match others.iter().find(|other| other.bridge == spec.bridge) {
            Some(other) => other.gateway,
            None => derive(name, &others, &seen).ok_or(RangeError::NoneLeft)?,
        },
    };
    let ours: BTreeSet<Ipv4Addr> =
        store.read(|world| world.leases().map(|lease| lease.address.ip()).collect());
    let range = subnet(gateway);
    let in_use = seen
        .hosts
        .into_iter()
        .filter(|ip| range.contains(*ip) && *ip != gateway.ip() && !ours.contains(ip))
        .map(Ipv4Network::from)
        .collect();
    Ok(Some(Pool {
        range,
        gateway: Some(gateway.ip()),
        in_use,
    }))
}

fn network_of(pool: &Pool) -> Option<Ipv4Network> {
    Ipv4Network::new(pool.gateway?, pool.range.prefix()).ok()
}

fn others(store: &Store, name: &Name) -> Vec<Other> {
    store.read(|world| {
        let groups = world.groups().filter(|group| group.meta.name != *name);
        let bridged = groups.filter_map(|group| {
            let NetworkSpec::Bridge(spec) = &group.spec.template.network else {
                return None;
            };
            Some(Other {
                group: group.meta.name.clone(),
                bridge: spec.bridge.clone(),
                gateway: network_of(world.pool(&group.meta.name)?)?,
            })
        });
        bridged.collect()
    })
}

fn check(
    gateway: Ipv4Network,
    spec: &BridgeSpec,
    others: &[Other],
    seen: &Seen,
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

/// 192.168.100.1/24 to 192.168.250.1/24 (RFC 1918), the first by the hash of the group's name, then the next ones past what is
/// taken: home routers and other programs' bridges have lower numbers.
fn derive(name: &Name, others: &[Other], seen: &Seen) -> Option<Ipv4Network> {
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
            .any(|taken| pool::overlaps(taken, subnet(net)))
    };
    (FIRST..=LAST)
        .cycle()
        .skip(first)
        .take(usize::from(LAST - FIRST) + 1)
        .filter_map(|third| Ipv4Network::new(Ipv4Addr::new(192, 168, third, 1), 24).ok())
        .find(|net| !taken(*net))
}

/// What the host has of IPv4.
struct Seen {
    /// Subnets of links other than the bridge.
    elsewhere: Vec<(Ipv4Network, String)>,
    /// Where the host routes to, the default route apart.
    routes: Vec<Ipv4Network>,
    /// Addresses of the host, and those at which a neighbour was seen.
    hosts: Vec<Ipv4Addr>,
}

impl Seen {
    async fn look(netlink: &Handle, bridge: &str) -> Result<Self, host::Error> {
        let links = link::list(netlink).await?;
        let name_of = |index: u32| links.iter().find(|link| link.index == index);
        let addresses = addr::list(netlink, addr::Of::All).await?;
        let own = links.iter().find(|link| link.name == bridge);
        let own = own.map(|link| link.index);
        let routes = route::list(netlink).await?;
        let neighbours = neigh::list_seen(netlink).await?;
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
