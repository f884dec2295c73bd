//! Subnets that are used, and the search for one that is not.
//! Out of scope: which node needs one ([`super::subnets`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::view::View;
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::fleet::object::Subnets;

/// The longest prefix: two addresses for hosts, one of which is the gateway.
const LONGEST: u8 = 30;

/// Addresses that are used: disjoint ranges, by the first address, with the last.
#[derive(Debug, Default)]
pub(super) struct Used(BTreeMap<u32, u32>);

impl Used {
    pub(super) fn add(&mut self, network: Ipv4Network) {
        let (mut first, mut last) = bounds(network);
        while let Some((&start, &end)) = self.0.range(..=last).next_back() {
            if end < first {
                break;
            }
            self.0.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.0.insert(first, last);
    }

    /// The last used address from the first to the last one of these, or after them if it is used without a gap.
    fn overlap(&self, first: u32, last: u32) -> Option<u32> {
        let (_, &end) = self.0.range(..=last).next_back()?;
        (end >= first).then_some(end)
    }

    /// The first subnet of the pool, from this address on, that is not used. `None` if there is none, or if the lengths are invalid.
    pub(super) fn free(&self, subnets: &Subnets, from: u32) -> Option<Ipv4Network> {
        let Subnets { pool, prefix_len } = *subnets;
        if !(pool.prefix()..=LONGEST).contains(&prefix_len) || prefix_len == 0 {
            return None;
        }
        let (start, end) = bounds(pool);
        let size = 1_u32 << (32 - prefix_len);
        let mut first = from.max(start);
        loop {
            let last = first.checked_add(size - 1).filter(|last| *last <= end)?;
            let Some(used) = self.overlap(first, last) else {
                return Ipv4Network::new(Ipv4Addr::from(first), prefix_len).ok();
            };
            // The first one after the used addresses: subnets begin at multiples of their size.
            first = (used / size).checked_add(1)?.checked_mul(size)?;
        }
    }
}

/// The first and the last address.
pub(super) fn bounds(network: Ipv4Network) -> (u32, u32) {
    (network.network().into(), network.broadcast().into())
}

/// All subnets, and those that the plan adds.
#[derive(Debug, Default)]
pub(super) struct Pools<'v> {
    used: Used,
    /// Where the search in a pool continues: a plan frees none.
    next: HashMap<(Ipv4Network, u8), u32>,
    added: BTreeSet<(&'v Name, &'v Name)>,
}

impl<'v> Pools<'v> {
    pub(super) fn new(view: &'v View) -> Self {
        let mut pools = Self::default();
        for subnet in view.ranges.values().flat_map(BTreeMap::values) {
            pools.used.add(subnet.subnet);
        }
        for group in view.groups.values() {
            if let NetworkSpec::Bridge(spec) = &group.value.spec.template.network
                && group.value.placement.subnets.is_none()
                && let Some(network) = spec.gateway
            {
                pools.used.add(network);
            }
        }
        pools
    }

    /// The next free subnet; `None` if the pool is exhausted.
    pub(super) fn peek(&mut self, subnets: &Subnets) -> Option<Ipv4Network> {
        let key = (subnets.pool, subnets.prefix_len);
        let from = self.next.get(&key).copied().unwrap_or(0);
        let found = self.used.free(subnets, from);
        let next = found.map_or(u32::MAX, |network| network.network().into());
        self.next.insert(key, next);
        found
    }

    /// The node has this subnet for the group.
    pub(super) fn add(&mut self, group: &'v Name, node: &'v Name, subnet: Ipv4Network) {
        self.used.add(subnet);
        self.added.insert((group, node));
    }

    /// Whether the node has a subnet for the group.
    pub(super) fn has(&self, view: &View, group: &Name, node: &Name) -> bool {
        let stored = view.ranges.get(group);
        stored.is_some_and(|it| it.contains_key(node)) || self.added.contains(&(group, node))
    }
}
