//! Address leases: each VM name gets its address in one transaction.
//! Out of scope: where a group's addresses come from (its reconciler chooses the [`Pool`]).

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::Error;
use super::txn::Txn;
use super::world::{Pool, World};
use crate::api::host_group::MAX_COUNT;
use crate::api::lease::{Address, Lease};
use crate::api::meta::Timestamp;
use crate::api::network::{Addresses, Block, BridgeSpec, NetworkSpec};
use crate::api::stage::Stage;
use crate::api::vm::Vm;

/// Why a VM name gets no address.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All /30s are taken.
    #[error("no free /30 is left in {0}")]
    NoBlock(Ipv4Network),
    /// All addresses of a bridge are taken.
    #[error("no free address is left in {0}")]
    NoAddress(String),
    /// The VM's address in the list is leased to another VM.
    #[error("{0} is already leased to {1}")]
    Taken(Ipv4Addr, String),
    /// The list is shorter than the group.
    #[error("`addresses` has no entry for VM {0}")]
    NotListed(u32),
    /// All addresses in the list beyond the group's count are taken.
    #[error(
        "`addresses` lists {listed}, and none is left for a VM made on demand: the first {counted} are reserved for the VMs of `count`"
    )]
    ListExhausted {
        /// The number of addresses in the list.
        listed: usize,
        /// The number of addresses that are reserved for the VMs of `count`.
        counted: usize,
    },
    /// The group has no range yet.
    #[error("the group has no range yet")]
    NoPool,
    /// The lease could not be written.
    #[error(transparent)]
    Store(#[from] Error),
}

impl Txn<'_> {
    /// Leases an address to a VM's name: its current one if it is still valid for the group, else the next free one. In CNI mode the
    /// plugins assign the address: `None` until they have.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub fn lease(&mut self, vm: &Vm, now: Timestamp) -> Result<Option<Lease>, LeaseError> {
        let world = self.world();
        if let Some(lease) = world.valid_lease(vm) {
            return Ok(Some(lease.clone()));
        }
        if let NetworkSpec::Cni(_) = &vm.spec.network {
            // A lease that is not valid dates from before the group was switched to CNI or requested another address.
            if !world.has_net(vm) && world.lease(&vm.meta.name).is_some() {
                self.remove_lease(&vm.meta.name)?;
            }
            return Ok(None);
        }
        let pool = world.pool(&vm.group).cloned().ok_or(LeaseError::NoPool)?;
        let address = match (&vm.spec.network, pool.gateway) {
            (NetworkSpec::Isolated(_), _) => Address::Isolated {
                block: world.free_block(&pool)?,
                pool: pool.range,
            },
            (NetworkSpec::Bridge(bridge), Some(gateway)) => {
                let net = Ipv4Network::new(gateway, pool.range.prefix());
                Address::Bridge {
                    ip: world.free_address(vm, bridge, &pool, gateway)?,
                    bridge: bridge.bridge.clone(),
                    gateway: net.expect("a valid prefix length"),
                }
            }
            (NetworkSpec::Bridge(_) | NetworkSpec::Cni(_), _) => return Err(LeaseError::NoPool),
        };
        let lease = Lease {
            name: vm.meta.name.clone(),
            group: vm.group.clone(),
            address,
            since: now,
        };
        self.put_lease(lease.clone())?;
        Ok(Some(lease))
    }
}

/// Whether an address is valid for a VM of a group with this pool.
pub fn is_valid_address(pool: &Pool, index: u32, network: &NetworkSpec, address: &Address) -> bool {
    match (network, address) {
        (NetworkSpec::Isolated(_), Address::Isolated { pool: range, .. }) => *range == pool.range,
        (
            NetworkSpec::Bridge(spec),
            Address::Bridge {
                bridge,
                gateway,
                ip,
            },
        ) => {
            *bridge == spec.bridge
                && Some(gateway.ip()) == pool.gateway
                && gateway.prefix() == pool.range.prefix()
                && spec.addresses.allow(index, *ip)
        }
        (NetworkSpec::Cni(spec), _) => spec.cni.allow(index, address.ip()),
        (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), _) => false,
    }
}

impl World {
    /// The lease of a VM, if the VM can keep it. A lease of a VM with an acquired Net stage never changes, even if the group has changed.
    pub fn valid_lease(&self, vm: &Vm) -> Option<&Lease> {
        let lease = self.lease(&vm.meta.name)?;
        let is_valid = match (&vm.spec.network, &lease.address) {
            (NetworkSpec::Cni(spec), Address::Cni { address, .. }) => {
                self.has_net(vm) || spec.cni.allow(vm.index, address.ip())
            }
            (NetworkSpec::Cni(_), Address::Isolated { .. } | Address::Bridge { .. }) => false,
            (NetworkSpec::Isolated(_) | NetworkSpec::Bridge(_), address) => {
                let pool = self.pool(&vm.group)?;
                self.has_net(vm) || is_valid_address(pool, vm.index, &vm.spec.network, address)
            }
        };
        is_valid.then_some(lease)
    }

    /// Whether the VM has acquired its Net stage.
    pub fn has_net(&self, vm: &Vm) -> bool {
        let status = self.status(vm.meta.uid, Stage::Net);
        status.is_some_and(|status| status.acquired)
    }

    /// The next free block of a range after the last one leased, with wrap-around. A block that was just released is the last to be
    /// leased again, so that late packets to its old VM do not reach a new one.
    fn free_block(&self, pool: &Pool) -> Result<Block, LeaseError> {
        let first = u32::from(pool.range.network());
        let last = u32::from(pool.range.broadcast());
        let start = self.cursors.get(&pool.range).map_or(first, |ip| {
            u32::from(Block::around(*ip).network().network())
        });
        (start..=last)
            .step_by(4)
            .chain((first..start).step_by(4))
            .map(|address| Block::around(address.into()))
            .find(|block| !self.blocks.contains(block) && !pool.in_use.contains(&block.network()))
            .ok_or(LeaseError::NoBlock(pool.range))
    }

    /// As [`World::free_block`], for one address of a bridge's subnet: not the first, the last, or the gateway, and none that a group
    /// on the bridge lists for its VMs.
    fn free_address(
        &self,
        vm: &Vm,
        spec: &BridgeSpec,
        pool: &Pool,
        gateway: Ipv4Addr,
    ) -> Result<Ipv4Addr, LeaseError> {
        let (network, broadcast) = (pool.range.network(), pool.range.broadcast());
        let (first, last) = match &spec.addresses {
            Addresses::Listed(listed) if vm.index > MAX_COUNT => {
                let group = self.group(&vm.group);
                let counted = group.map_or(0, |group| group.spec.count as usize);
                let mut on_demand_addresses = listed.iter().skip(counted).copied();
                return on_demand_addresses
                    .find(|ip| !self.bridge_addresses.contains(ip) && *ip != gateway)
                    .ok_or(LeaseError::ListExhausted {
                        listed: listed.len(),
                        counted: counted.min(listed.len()),
                    });
            }
            Addresses::Listed(listed) => {
                let position = vm.index.saturating_sub(1) as usize;
                let ip = listed
                    .get(position)
                    .ok_or(LeaseError::NotListed(vm.index))?;
                // The VM's own previous lease, even on another bridge, does not block the address.
                let own = self.lease(&vm.meta.name).map(|lease| lease.address.ip());
                return match self.bridge_addresses.contains(ip) && own != Some(*ip) {
                    true => Err(LeaseError::Taken(*ip, self.owner_of(*ip))),
                    false => Ok(*ip),
                };
            }
            Addresses::Any => (u32::from(network) + 1, u32::from(broadcast) - 1),
            Addresses::Range(first, last) => (u32::from(*first), u32::from(*last)),
        };
        let start = self
            .cursors
            .get(&pool.range)
            .map_or(first, |ip| u32::from(*ip).saturating_add(1))
            .clamp(first, last);
        let reserved = self.listed_on(pool.range);
        (start..=last)
            .chain(first..start)
            .map(Ipv4Addr::from)
            .find(|ip| {
                *ip != gateway
                    && !self.bridge_addresses.contains(ip)
                    && !pool.in_use.contains(&Ipv4Network::from(*ip))
                    && !reserved.contains(ip)
            })
            .ok_or_else(|| {
                let (first, last) = (Ipv4Addr::from(first), Ipv4Addr::from(last));
                LeaseError::NoAddress(format!("{first}-{last}"))
            })
    }

    /// The VM that has an address of a bridge, for messages.
    fn owner_of(&self, ip: Ipv4Addr) -> String {
        let has_address = |lease: &&Lease| {
            lease.address.ip() == ip && matches!(lease.address, Address::Bridge { .. })
        };
        let lease = self.leases().find(has_address);
        lease.map_or("another VM".to_owned(), |lease| {
            format!("vm/{}", lease.name)
        })
    }

    fn listed_on(&self, subnet: Ipv4Network) -> Vec<Ipv4Addr> {
        self.groups()
            .filter_map(|group| match &group.spec.template.network {
                NetworkSpec::Bridge(BridgeSpec {
                    max_connections: None,
                    addresses: Addresses::Listed(listed),
                    ..
                }) => Some(listed.iter().filter(|ip| subnet.contains(**ip))),
                _ => None,
            })
            .flatten()
            .copied()
            .collect()
    }
}
