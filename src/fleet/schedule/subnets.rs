//! The subnets of groups in bridge mode: each node that has VMs of such a group has one of the pool of the group.
//! Out of scope: groups without `subnets`, which use the subnet of their spec on every node.
//!
//! # Rules
//! - No two subnets overlap, of whatever group and pool, nor does one overlap the subnet in the spec of a group that has no `subnets`.
//! - The first free subnet of the pool is taken. It stays with the node until the group is removed, also if the pool is changed.
//! - A node gets as many VMs of a group as its subnet has addresses, and no more.
//! - A subnet is written before a VM is bound that needs it. A VM for which there is none is pending.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::candidates::Session;
use super::filter::Reason;
use super::free::Free;
use super::index::Index;
use super::step::{Action, Blocked, Compare, Plan, Step, Write};
use super::view::Stored;
use super::work::{Work, compare_group};
use crate::api::meta::Name;
use crate::api::network::NetworkSpec;
use crate::api::placement::{addresses_in, most_on_a_node};
use crate::fleet::keys::Key;
use crate::fleet::object::{Group, NodeSubnet, Subnets, Vm};

#[cfg(test)]
mod tests;

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

/// The addresses of a group on nodes; `None` if none of a node limits its VMs. Each copy that may exist has one.
pub(super) fn free(index: &Index<'_>, group: &Group) -> Option<Free> {
    let network = &group.spec.template.network;
    let whole = most_on_a_node(network, &group.placement)?;
    let lacking = match network {
        NetworkSpec::Isolated(_) => Reason::Blocks,
        NetworkSpec::Bridge(_) | NetworkSpec::Cni(_) => Reason::Addresses,
    };
    let name = &group.meta.name;
    let stored = index.view.ranges.get(name).into_iter().flatten();
    let stored = stored.filter_map(|(node, found)| {
        Some((index.position(node)?, addresses_in(found.subnet.prefix())))
    });
    let mut free = Free::new(lacking, whole, stored.collect());
    let members = index.members.get(name).into_iter().flatten();
    for node in members.flat_map(|vm| copies(&vm.value)) {
        if let Some(at) = index.position(node) {
            free.take(at);
        }
    }
    Some(free)
}

/// The nodes that may have a copy of a VM, each once.
fn copies(vm: &Vm) -> BTreeSet<&Name> {
    vm.copies().map(|copy| copy.node).collect()
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
    index.pools.add(name, node, subnet);
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
