//! The subnets of groups in bridge mode: each node that has VMs of such a group has one of the pool of the group.
//! Out of scope: groups without `subnets`, which use the subnet of their spec on every node.
//!
//! # Rules
//! - No two subnets overlap, of whatever group and pool, nor does one overlap the subnet in the spec of a group that has no `subnets`.
//! - The first free subnet of the pool is taken. It stays with the node until the group is removed, also if the pool is changed.
//! - A subnet is written before a VM is bound that needs it. A VM for which there is none is pending.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::candidates::Session;
use super::index::Index;
use super::step::{Action, Blocked, Compare, Plan, Step, Write};
use super::survey::{Work, compare_group};
use super::view::{Stored, View};
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::fleet::keys::Key;
use crate::fleet::object::{Group, NodeSubnet, Subnets};

#[cfg(test)]
mod tests;

/// The longest prefix: two addresses for hosts, one of which is the gateway.
const LONGEST: u8 = 30;

/// Addresses that are used: disjoint ranges, by the first address, with the last.
#[derive(Debug, Default)]
struct Used(BTreeMap<u32, u32>);

impl Used {
    fn add(&mut self, network: Ipv4Network) {
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
    fn free(&self, subnets: &Subnets, from: u32) -> Option<Ipv4Network> {
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
fn bounds(network: Ipv4Network) -> (u32, u32) {
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
    fn peek(&mut self, subnets: &Subnets) -> Option<Ipv4Network> {
        let key = (subnets.pool, subnets.prefix_len);
        let from = self.next.get(&key).copied().unwrap_or(0);
        let found = self.used.free(subnets, from);
        let next = found.map_or(u32::MAX, |network| network.network().into());
        self.next.insert(key, next);
        found
    }

    fn has(&self, view: &View, group: &Name, node: &Name) -> bool {
        let stored = view.ranges.get(group);
        stored.is_some_and(|it| it.contains_key(node)) || self.added.contains(&(group, node))
    }
}

/// The subnets of a group; `None` if its nodes need none.
fn of(group: &Group) -> Option<&Subnets> {
    match group.spec.template.network {
        NetworkSpec::Bridge(_) => group.placement.subnets.as_ref(),
        NetworkSpec::Isolated(_) | NetworkSpec::Cni(_) => None,
    }
}

/// Whether the node with this position has the subnet that it needs for the group.
fn has(index: &Index<'_>, group: &Group, at: usize) -> bool {
    let (name, node) = (&group.meta.name, index.nodes[at].name);
    index.pools.has(index.view, name, node)
}

/// The nodes of the VMs of the group that have no subnet.
pub(super) fn missing(index: &Index<'_>, work: &Work<'_>) -> Vec<usize> {
    let group = &work.group.value;
    let nodes = work.counts.keys().copied();
    let missing = nodes.filter(|at| of(group).is_some() && !has(index, group, *at));
    missing.collect()
}

/// Gives subnets to nodes that have VMs already, and restricts the others if there is none for them.
pub(super) fn assign_to_bound<'v>(
    index: &mut Index<'v>,
    session: &mut Session<'_, 'v>,
    missing: Vec<usize>,
    group: &'v Stored<Group>,
    plan: &mut Plan,
) {
    restrict(index, session, &group.value);
    for at in missing {
        if session.serves(at) {
            assign(index, session, group, at, plan);
            continue;
        }
        plan.blocked.push(Blocked {
            vm: group.value.meta.name.clone(),
            node: index.nodes[at].name.clone(),
            reason: "its VMs have no subnet on the node: the pool has none left".to_owned(),
        });
    }
}

/// Gives a subnet to the node with this position, if it needs one. [`Session::serves`] says whether there is one.
pub(super) fn assign<'v>(
    index: &mut Index<'v>,
    session: &mut Session<'_, 'v>,
    group: &'v Stored<Group>,
    at: usize,
    plan: &mut Plan,
) {
    let Some(subnets) = of(&group.value) else {
        return;
    };
    if has(index, &group.value, at) {
        return;
    }
    let Some(subnet) = index.pools.peek(subnets) else {
        return;
    };
    let (name, node) = (&group.value.meta.name, index.nodes[at].name);
    index.pools.used.add(subnet);
    index.pools.added.insert((name, node));
    let gateway = Ipv4Addr::from(u32::from(subnet.network()) + 1);
    let absent = Compare {
        key: Key::Range(name.clone(), node.clone()),
        revision: 0,
    };
    plan.subnets.push(Step {
        action: Action::AssignSubnet,
        name: name.clone(),
        write: Write::PutSubnet(name.clone(), node.clone(), NodeSubnet { subnet, gateway }),
        compares: vec![absent, compare_group(group)],
    });
    restrict(index, session, &group.value);
}

/// Restricts the nodes for the group to those with a subnet, if there is none for another one.
fn restrict(index: &mut Index<'_>, session: &mut Session<'_, '_>, group: &Group) {
    let Some(subnets) = of(group) else {
        return;
    };
    if index.pools.peek(subnets).is_none() {
        let all = 0..index.nodes.len();
        session.restrict(all.filter(|at| has(index, group, *at)).collect());
    }
}
