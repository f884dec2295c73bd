//! Chooses the addresses of a group: as specified, or derived from its name and then kept.
//! Out of scope: the arithmetic of the address plan (`api::pool`), blocks of single VMs (the Lease stage).

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::api::network::{Block, NetworkSpec};
use crate::api::pool;
use crate::host::netlink::Handle;
use crate::host::{self, addr, link, route};
use crate::owner::Instance;
use crate::store::{Pool, World};

use super::claim::Claim;
use super::claims::Claims;
use super::range_error::RangeError;
use super::subnet;

/// Observes what the host itself uses of 169.254.0.0/16.
pub struct HostUse<'a> {
    /// A socket in the host namespace.
    pub netlink: &'a Handle,
    /// Links of this instance are ignored.
    pub instance: &'a Instance,
}

impl HostUse<'_> {
    /// Addresses and routes of links that are not ours, with prefixes longer than /16. One observation for a whole group.
    ///
    /// The links themselves are not listed: beside 1,000 slots that takes several times as long as the rest of an order for a VM. Each
    /// of our links has an address, and routes that remain without it are in use.
    async fn used_networks(&self) -> Result<Vec<Ipv4Network>, host::Error> {
        let prefix = self.instance.link_prefix();
        let addresses = addr::list_by_link(self.netlink).await?;
        let (ours, others): (Vec<_>, Vec<_>) = addresses
            .into_iter()
            .partition(|(link, _)| link.starts_with(&prefix));
        let ours: BTreeSet<u32> = ours.into_iter().map(|(_, addr)| addr.index).collect();
        let routes = route::list(self.netlink).await?;
        let addresses = others
            .into_iter()
            .map(|(_, addr)| Ipv4Network::from(addr.net.ip()));
        let routes = routes
            .into_iter()
            .filter(|route| route.link.is_none_or(|link| !ours.contains(&link)))
            .map(|route| route.dst);
        let plan = pool::link_local();
        Ok(addresses
            .chain(routes)
            .filter(|used| used.prefix() > plan.prefix() && used.is_subnet_of(plan))
            .collect())
    }
}

/// Observations that a choice is based on.
#[derive(Default)]
pub(super) struct Observation {
    host: HostObservation,
    /// The claims of other daemons.
    foreign: Vec<Claim>,
}

/// Networks that the host uses.
#[derive(Default)]
enum HostObservation {
    /// The host was not observed.
    #[default]
    Nothing,
    /// Parts of 169.254.0.0/16.
    Isolated(Vec<Ipv4Network>),
    /// Networks outside the bridge with this name.
    Bridge(String, subnet::HostObservation),
}

/// The decision of a transaction about the addresses of a group.
pub(super) enum Choice {
    /// The stored choice is kept.
    Keep,
    /// This choice is stored.
    Take(Pool),
    /// The stored choice is removed: CNI plugins assign the addresses.
    Forget,
    /// The host must be observed before a choice can be made.
    ObserveFirst,
}

/// Observes the host and the claims of other daemons for a group's choice. Runs before the transaction, because it takes too long for one.
pub(super) async fn observe(
    claims: &Claims,
    host_use: &HostUse<'_>,
    group: &HostGroup,
) -> Result<Observation, super::Error> {
    claims.reap(host_use.netlink).await?;
    observe_only(claims, host_use, group).await
}

/// The same for a preview: the claims of daemons that cannot return are not removed.
pub(super) async fn observe_only(
    claims: &Claims,
    host_use: &HostUse<'_>,
    group: &HostGroup,
) -> Result<Observation, super::Error> {
    let host = match &group.spec.template.network {
        NetworkSpec::Isolated(_) => HostObservation::Isolated(host_use.used_networks().await?),
        NetworkSpec::Bridge(bridge) => {
            let name = bridge.bridge.clone();
            let links = link::list(host_use.netlink).await?;
            let observation =
                subnet::HostObservation::observe(host_use.netlink, &links, &name).await?;
            HostObservation::Bridge(name, observation)
        }
        NetworkSpec::Cni(_) => HostObservation::Nothing,
    };
    let foreign = claims.foreign()?;
    Ok(Observation { host, foreign })
}

/// Whether the stored choice meets the spec, and `wanted` VMs have an address from it.
fn is_available(world: &World, group: &HostGroup, count: usize) -> bool {
    match &group.spec.template.network {
        NetworkSpec::Isolated(isolated) => {
            let name = &group.meta.name;
            kept(world, name, isolated.range).is_some() && world.leases_of(name).count() >= count
        }
        NetworkSpec::Bridge(bridge) => subnet::is_available(world, group, bridge, count),
        NetworkSpec::Cni(_) => world.pool(&group.meta.name).is_none(),
    }
}

/// The stored range of an isolated group, if its spec does not specify another one.
fn kept(world: &World, name: &Name, spec: Option<Ipv4Network>) -> Option<Ipv4Network> {
    let pool = world.pool(name).filter(|pool| pool.gateway.is_none())?;
    Some(pool.range).filter(|range| spec.is_none_or(|spec| spec == *range))
}

/// Chooses a group's addresses if it has none, or if its spec now specifies others. Runs inside the transaction that stores the choice:
/// between the two no other group can choose, and nothing is released.
pub(super) fn choose(
    world: &World,
    observation: &Observation,
    group: &HostGroup,
    count: usize,
) -> Result<Choice, RangeError> {
    if is_available(world, group, count) {
        return Ok(Choice::Keep);
    }
    match (&group.spec.template.network, &observation.host) {
        (NetworkSpec::Cni(_), _) => Ok(Choice::Forget),
        (NetworkSpec::Isolated(isolated), HostObservation::Isolated(used)) => {
            let foreign = &observation.foreign;
            let range = isolated_range(world, foreign, used, &group.meta.name, isolated.range)?;
            let in_use = used
                .iter()
                .filter(|used| pool::overlaps(range, **used))
                .flat_map(|used| blocks_of(range, *used))
                .map(Block::network)
                .collect();
            Ok(Choice::Take(Pool {
                range,
                gateway: None,
                in_use,
            }))
        }
        (NetworkSpec::Bridge(bridge), HostObservation::Bridge(name, host))
            if *name == bridge.bridge =>
        {
            subnet::choose(world, &observation.foreign, host, group, bridge).map(Choice::Take)
        }
        (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => Ok(Choice::ObserveFirst),
    }
}

/// The range of an isolated group.
fn isolated_range(
    world: &World,
    foreign: &[Claim],
    used: &[Ipv4Network],
    name: &Name,
    spec: Option<Ipv4Network>,
) -> Result<Ipv4Network, RangeError> {
    let pools = world.pools().map(|(name, pool)| (name, pool.range));
    let leases = world
        .leases()
        .map(|lease| (&lease.group, lease.address.range()));
    let others: Vec<(&Name, Ipv4Network)> = pools
        .chain(leases)
        .filter(|(other, _)| *other != name)
        .collect();
    if let Some(range) = kept(world, name, spec).or(spec) {
        return match others.iter().find(|(_, o)| pool::overlaps(range, *o)) {
            None => Ok(range),
            Some((other, theirs)) => Err(RangeError::Taken {
                range,
                theirs: *theirs,
                other: (*other).clone(),
            }),
        };
    }
    let written = world
        .groups()
        .filter_map(|group| match &group.spec.template.network {
            NetworkSpec::Isolated(isolated) => isolated.range,
            NetworkSpec::Bridge(_) | NetworkSpec::Cni(_) => None,
        });
    let taken: BTreeSet<Ipv4Network> = others
        .iter()
        .map(|(_, other)| *other)
        .chain(written)
        .chain(used.iter().copied())
        .chain(foreign.iter().map(Claim::network))
        .collect();
    let is_taken = |range| taken.iter().any(|other| pool::overlaps(range, *other));
    pool::derive(name, is_taken).ok_or(RangeError::NoneLeft)
}

/// The blocks of `range` that `used` overlaps.
fn blocks_of(range: Ipv4Network, used: Ipv4Network) -> Vec<Block> {
    let first = u32::from(range.network()).max(u32::from(used.network()) & !3);
    let last = u32::from(range.broadcast()).min(u32::from(used.broadcast()));
    (first..=last)
        .step_by(4)
        .map(|address| Block::around(address.into()))
        .collect()
}
