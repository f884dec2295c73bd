//! Where a group's addresses come from: as written, or derived from its name and kept.
//! Not here: the arithmetic of the address plan (`api::pool`), blocks of single VMs (the Lease rung).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ipnetwork::Ipv4Network;

use crate::api::host_group::HostGroup;
use crate::api::meta::Name;
use crate::api::network::{Block, NetworkSpec};
use crate::api::pool;
use crate::host::netlink::Handle;
use crate::host::{self, addr, link, private, route};
use crate::owner::Instance;
use crate::store::{Pool, Store};

use super::subnet;

/// Why a group has no range.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// Another daemon on this host has it.
    #[error(
        "range {range} is claimed by another sliced on this host ({path}); choose another `range`"
    )]
    Claimed {
        /// As wanted.
        range: Ipv4Network,
        /// Where the claim stands.
        path: String,
    },
    /// Another group has leases there.
    #[error(
        "range {range} overlaps {theirs}, which hostgroup/{other} has addresses from; choose another `range`"
    )]
    Taken {
        /// As wanted.
        range: Ipv4Network,
        /// What it overlaps.
        theirs: Ipv4Network,
        /// Whose that is.
        other: Name,
    },
    /// The host is at home there.
    #[error(
        "the subnet {range} of the gateway overlaps {theirs} on the host's {link}; choose another `gateway`"
    )]
    OfTheHost {
        /// As wanted.
        range: Ipv4Network,
        /// What it overlaps.
        theirs: Ipv4Network,
        /// The link that has it.
        link: String,
    },
    /// Two groups on one bridge must agree.
    #[error(
        "hostgroup/{other} has {theirs} as the gateway on bridge {bridge}; write the same `gateway`, or another `bridge`"
    )]
    OtherGateway {
        /// Both groups'.
        bridge: String,
        /// The other's.
        theirs: Ipv4Network,
        /// Whose that is.
        other: Name,
    },
    /// Every range that could be derived is in use.
    #[error("every range that could be derived from the group's name is in use; write a `range`")]
    NoneLeft,
}

/// What this host uses of 169.254.0.0/16 itself.
pub struct HostUse<'a> {
    /// A socket in the host namespace.
    pub netlink: &'a Handle,
    /// Our own links do not count.
    pub instance: &'a Instance,
}

impl HostUse<'_> {
    /// Addresses and routes of links that are not ours, longer than /16. One look for a whole group.
    async fn look(&self) -> Result<Vec<Ipv4Network>, host::Error> {
        let prefix = self.instance.link_prefix();
        let links = link::list(self.netlink).await?;
        let ours: BTreeSet<u32> = links
            .into_iter()
            .filter(|link| link.name.starts_with(&prefix))
            .map(|link| link.index)
            .collect();
        let addresses = addr::list(self.netlink, addr::Of::All).await?;
        let routes = route::list(self.netlink).await?;
        let addresses = addresses
            .into_iter()
            .filter(|addr| !ours.contains(&addr.index))
            .map(|addr| Ipv4Network::from(addr.net.ip()));
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

/// Chooses a group's range if it has none, or if its spec now says another; looks at what the host uses of it if fewer VMs
/// than `wanted` have an address. `None`: what is stored stands.
pub(super) async fn choose(
    store: &Store,
    claims: &Claims,
    host_use: &HostUse<'_>,
    group: &HostGroup,
    wanted: usize,
) -> Result<Option<Pool>, super::Error> {
    let name = &group.meta.name;
    let isolated = match &group.spec.template.network {
        NetworkSpec::Isolated(isolated) => isolated,
        NetworkSpec::Bridge(bridge) => {
            return subnet::choose(store, host_use, group, bridge, wanted).await;
        }
        NetworkSpec::Cni(_) => return Ok(None),
    };
    let stored = store.read(|world| {
        let pool = world.pool(name).filter(|pool| pool.gateway.is_none());
        pool.map(|pool| pool.range)
    });
    let kept = stored.filter(|range| isolated.range.is_none_or(|wanted| wanted == *range));
    if let Some(range) = kept {
        claims.hold(range)?;
        let leased = store.read(|world| world.leases_of(name).count());
        if leased >= wanted {
            return Ok(None);
        }
    }
    let used = host_use.look().await?;
    let others: Vec<(Name, Ipv4Network)> = store.read(|world| {
        let pools = world.pools().map(|(name, pool)| (name.clone(), pool.range));
        let leases = world
            .leases()
            .map(|lease| (lease.group.clone(), lease.address.range()));
        pools
            .chain(leases)
            .filter(|(other, _)| other != name)
            .collect()
    });
    let range = match kept.or(isolated.range) {
        Some(range) => {
            if let Some((other, theirs)) = others.iter().find(|(_, o)| pool::overlaps(range, *o)) {
                return Err(RangeError::Taken {
                    range,
                    theirs: *theirs,
                    other: other.clone(),
                }
                .into());
            }
            range
        }
        None => {
            let written: Vec<Ipv4Network> = store.read(|world| {
                world
                    .groups()
                    .filter_map(|group| match &group.spec.template.network {
                        NetworkSpec::Isolated(isolated) => isolated.range,
                        NetworkSpec::Bridge(_) | NetworkSpec::Cni(_) => None,
                    })
                    .collect()
            });
            let taken = |range: Ipv4Network| {
                let overlap = |other: &Ipv4Network| pool::overlaps(range, *other);
                others
                    .iter()
                    .map(|(_, other)| other)
                    .chain(&written)
                    .chain(&used)
                    .any(overlap)
                    || claims.is_foreign(range)
            };
            pool::derive(name, taken).ok_or(RangeError::NoneLeft)?
        }
    };
    claims.hold(range)?;
    let in_use = used
        .iter()
        .filter(|used| pool::overlaps(range, **used))
        .flat_map(|used| blocks_of(range, *used))
        .map(Block::network)
        .collect();
    Ok(Some(Pool {
        range,
        gateway: None,
        in_use,
    }))
}

/// The blocks of `range` that `used` touches.
fn blocks_of(range: Ipv4Network, used: Ipv4Network) -> Vec<Block> {
    let first = u32::from(range.network()).max(u32::from(used.network()) & !3);
    let last = u32::from(range.broadcast()).min(u32::from(used.broadcast()));
    (first..=last)
        .step_by(4)
        .map(|address| Block::around(address.into()))
        .collect()
}

/// Where all daemons of a host see each other's claims.
pub const CLAIMS_DIR: &str = "/run/slice-ranges";

/// Ranges claimed on this host, by locks on files that every daemon sees: one a /22. A lock ends with its process.
pub struct Claims {
    dir: PathBuf,
    held: Mutex<BTreeMap<Ipv4Network, File>>,
}

impl Claims {
    /// Claims in `dir`, which all daemons of the host share.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            held: Mutex::default(),
        }
    }

    /// Claims every /22 that `range` touches; those held already stay held.
    ///
    /// # Errors
    /// [`RangeError::Claimed`], or the folder cannot be used.
    pub fn hold(&self, range: Ipv4Network) -> Result<(), super::Error> {
        for part in pool::slash_22s(range) {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            if held.contains_key(&part) {
                continue;
            }
            private::dir(&self.dir, |_| false)?;
            let path = self.path(part);
            match private::try_lock(&path)? {
                Some(file) => held.insert(part, file),
                None => {
                    let path = path.display().to_string();
                    return Err(RangeError::Claimed { range, path }.into());
                }
            };
        }
        Ok(())
    }

    /// Whether another daemon has claimed a part of it. What cannot be looked at is not free.
    fn is_foreign(&self, range: Ipv4Network) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        pool::slash_22s(range)
            .filter(|part| !held.contains_key(part))
            .any(|part| {
                let path = self.path(part);
                match private::try_lock(&path) {
                    Ok(lock) => lock.is_none(),
                    // No daemon has ever claimed anything here.
                    Err(error) if error.kind == host::Kind::Absent => false,
                    Err(_) => true,
                }
            })
    }

    /// Lets go of what no pool needs.
    pub fn release_unused(&self, pools: &BTreeSet<Ipv4Network>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|part, _| pools.iter().any(|pool| pool::overlaps(*part, *pool)));
    }

    fn path(&self, part: Ipv4Network) -> PathBuf {
        self.dir.join(part.network().to_string())
    }
}
