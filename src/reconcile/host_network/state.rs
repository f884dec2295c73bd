//! The desired and the actual state of the host network, and the steps from one to the other. Pure.
//! Out of scope: computing the steps (`plan`), the rules (`rules`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::network::Mac;
use crate::host::rule::{Chain, RoutingRule, Rule, Ruleset, TableName};
use crate::owner::{Instance, Owned};
use crate::reconcile::limits::Timeouts;
use crate::store::HostRequirements;

/// The desired state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// The owner.
    pub instance: Instance,
    /// What the rules and bridges must serve. Without a pool and a bridge nothing of ours is to exist.
    pub requirements: HostRequirements,
    /// The previous requirements. Their addresses may be removed from managed bridges.
    #[serde(default)]
    pub previous: HostRequirements,
}

/// The observed state.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// All four tables, including the rules of other programs.
    pub ruleset: Ruleset,
    /// `net.ipv4.ip_forward` of the host.
    pub forwarding: bool,
    /// Links with the names of required bridges, and managed bridges.
    pub bridges: BTreeMap<String, BridgeSeen>,
    /// `nf_conntrack_max`; `None` if it cannot be read.
    pub conntrack_max: Option<u32>,
    /// The networks of the host's links whose neighbours are counted.
    pub on_link: BTreeSet<Ipv4Network>,
    /// Our timeout policy for TCP; `None` if it does not exist.
    pub timeouts: Option<Timeouts>,
    /// Bridges of other programs that the default route does not use.
    pub foreign: BTreeSet<String>,
    /// Conditions of the host that keep VMs' packets from passing and that we must not change, each with its remedy.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// Foreign chains that drop packets of VMs; `None` if they cannot be read.
    #[serde(skip)]
    pub drops: Option<Vec<HostDrop>>,
    /// All rules of policy routing.
    #[serde(skip)]
    pub routing: Vec<RoutingRule>,
}

/// Our rules at the beginning of a chain that is not ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Jump {
    /// The table.
    pub table: TableName,
    /// The chain.
    pub chain: String,
    /// In this order, at the beginning of the chain.
    pub rules: Vec<Rule>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Our chains and the jumps into them, in one transaction.
    Commit(Commit),
    /// Set the timeouts of VMs' TCP connections in the host's table.
    SetTimeouts,
    /// Remove these timeouts.
    RemoveTimeouts,
    /// Turn `ip_forward` on.
    EnableForwarding,
    /// Have packets to a pool or subnet of VMs routed by the main table, regardless of other rules.
    AddRoutingRule(u32, Ipv4Network),
    /// Remove such a rule of ours.
    RemoveRoutingRule(u32, Ipv4Network),
    /// Create a bridge: without a spanning tree, with a MAC of its own, down.
    CreateBridge(String),
    /// Label the bridge.
    LabelBridge(String),
    /// Set its MAC, MTU and group, turn off its spanning tree, delay and snooping, and have the host accept no configuration on it.
    ConfigureBridge(String),
    /// Give the host an address on it.
    AddGateway(String, Ipv4Network),
    /// Remove an address that was ours.
    RemoveGateway(String, Ipv4Network),
    /// Set it up.
    SetBridgeUp(String),
    /// Remove it.
    DeleteBridge(Owned<String>),
}

impl Action {
    /// The bridge that the action concerns.
    pub(super) fn bridge(&self) -> Option<&str> {
        match self {
            Self::CreateBridge(bridge)
            | Self::LabelBridge(bridge)
            | Self::ConfigureBridge(bridge)
            | Self::AddGateway(bridge, _)
            | Self::RemoveGateway(bridge, _)
            | Self::SetBridgeUp(bridge) => Some(bridge),
            Self::DeleteBridge(bridge) => Some(bridge.resource()),
            Self::Commit(_)
            | Self::SetTimeouts
            | Self::RemoveTimeouts
            | Self::EnableForwarding
            | Self::AddRoutingRule(..)
            | Self::RemoveRoutingRule(..) => None,
        }
    }
}

/// One transaction over the host's tables.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Commit {
    /// Our chains, to be written as a whole.
    pub write_chains: Vec<(TableName, Chain)>,
    /// Our jumps to remove: table, chain, rule.
    pub remove_jumps: Vec<(TableName, String, Rule)>,
    /// Jumps to insert at the beginning of a chain.
    pub insert_jumps: Vec<Jump>,
    /// Our chains to remove.
    pub remove_chains: Vec<(TableName, String)>,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetTimeouts => f.write_str("set the timeouts of VMs' TCP connections"),
            Self::RemoveTimeouts => f.write_str("remove the timeouts of VMs' TCP connections"),
            Self::AddRoutingRule(priority, to) => {
                write!(f, "add routing rule {priority} to {to} lookup main")
            }
            Self::RemoveRoutingRule(priority, to) => {
                write!(f, "remove routing rule {priority} to {to} lookup main")
            }
            Self::EnableForwarding => f.write_str("turn ip_forward on"),
            Self::CreateBridge(bridge) => write!(f, "create bridge {bridge}"),
            Self::LabelBridge(bridge) => write!(f, "label bridge {bridge}"),
            Self::ConfigureBridge(bridge) => {
                write!(f, "set MAC and MTU of bridge {bridge}, spanning tree off")
            }
            Self::AddGateway(bridge, address) => write!(f, "add address {address} to {bridge}"),
            Self::RemoveGateway(bridge, address) => {
                write!(f, "remove address {address} from {bridge}")
            }
            Self::SetBridgeUp(bridge) => write!(f, "set bridge {bridge} up"),
            Self::DeleteBridge(bridge) => write!(f, "delete bridge {}", bridge.resource()),
            Self::Commit(commit) => {
                let mut parts = Vec::new();
                let names = |chains: &mut dyn Iterator<Item = String>| {
                    chains.collect::<Vec<_>>().join(", ")
                };
                if !commit.write_chains.is_empty() {
                    let chains = &mut commit
                        .write_chains
                        .iter()
                        .map(|(t, c)| format!("{t} {}", c.name));
                    parts.push(format!("write host chains {}", names(chains)));
                }
                if !commit.insert_jumps.is_empty() {
                    let chains = &mut commit
                        .insert_jumps
                        .iter()
                        .map(|j| format!("{} {}", j.table, j.chain));
                    parts.push(format!("put our jumps first in {}", names(chains)));
                } else if !commit.remove_jumps.is_empty() {
                    let chains = &mut commit
                        .remove_jumps
                        .iter()
                        .map(|(t, c, _)| format!("{t} {c}"));
                    parts.push(format!("remove our jumps from {}", names(chains)));
                }
                if !commit.remove_chains.is_empty() {
                    let chains = &mut commit.remove_chains.iter().map(|(t, c)| format!("{t} {c}"));
                    parts.push(format!("remove host chains {}", names(chains)));
                }
                f.write_str(&parts.join("; "))
            }
        }
    }
}

/// A link that has the name of a required bridge, or a managed bridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BridgeSeen {
    /// It is a bridge.
    pub is_bridge: bool,
    /// Its label.
    #[serde(default)]
    pub alias: Option<String>,
    /// Its MAC.
    pub mac: Mac,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// STP, VLAN filtering and multicast snooping are off, the forward delay is zero, it is in its group, and the host accepts no
    /// configuration on it ([`crate::reconcile::net::host_links`]).
    pub configured: bool,
    /// IPv4 addresses of the host on it.
    #[serde(default)]
    pub addresses: BTreeSet<Ipv4Network>,
}

impl BridgeSeen {
    /// Proof of ownership, if the bridge is managed by this daemon.
    pub fn owned(&self, desired: &Desired, name: &str) -> Option<Owned<String>> {
        let label = desired.instance.host_network_label();
        let claimed = label.claim_bridge(name, self.alias.as_deref(), self.mac);
        claimed.filter(|_| self.is_bridge)
    }
}

/// A foreign chain that drops packets of the VMs of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDrop {
    /// The range.
    pub range: Ipv4Network,
    /// Which chain drops which packets, and which command shows the remedy.
    pub message: String,
}
