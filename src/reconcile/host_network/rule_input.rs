//! What the host's rules are computed from. Pure.
//! Out of scope: the rules (`rules`, `limits`, `apart`).

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;

use crate::api::policy::Entry;
use crate::host::rule::Rule;
use crate::owner::Instance;
use crate::reconcile::limits::Limit;

/// The input for the chains.
pub struct RuleInput<'a> {
    /// The owner.
    pub instance: &'a Instance,
    /// The ranges from which VMs get their addresses.
    pub pools: &'a BTreeSet<Ipv4Network>,
    /// An address and its ports on the host that are open to a pool.
    pub host_ports: &'a [(Ipv4Network, Entry)],
    /// Subnets on bridges, by the bridges' names.
    pub bridge_subnets: &'a [BridgeSubnet],
    /// Subnets of CNI networks.
    pub cni_subnets: &'a BTreeSet<Ipv4Network>,
    /// The maximum number of connections of a VM, by pool or subnet, if specified.
    pub max_connections: &'a BTreeMap<Ipv4Network, u32>,
    /// Limits that keep VMs from filling the host's tables.
    pub limits: &'a Limits,
    /// Bridges of other programs on this host that the default route does not use.
    pub foreign: &'a BTreeSet<String>,
}

/// A subnet on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSubnet {
    /// The bridge's name.
    pub bridge: String,
    /// The VMs' subnet.
    pub subnet: Ipv4Network,
    /// The role of this host for the subnet.
    pub kind: BridgeKind,
}

/// The role of this host for a subnet on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeKind {
    /// The bridge is managed: only VMs are on it, and the host is their gateway.
    Managed,
    /// The bridge is unmanaged, and the host is the subnet's gateway.
    UnmanagedLocalGateway,
    /// The bridge is unmanaged, and so is the gateway.
    UnmanagedRemoteGateway,
}

/// The input for the limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The limit of a VM if its group specifies none.
    pub share: Limit,
    /// The networks of the host's links whose neighbours are counted.
    pub on_link: BTreeSet<Ipv4Network>,
}

/// Two subnets on a bridge may need the same rule.
pub(super) fn push_once(rules: &mut Vec<Rule>, rule: Rule) {
    if !rules.contains(&rule) {
        rules.push(rule);
    }
}
