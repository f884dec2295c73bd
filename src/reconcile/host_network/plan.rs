//! Plans the actions for the host's own rules. Pure.
//! Out of scope: the content of the rules ([`super::rules`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::super::Conflict;
use super::bridges::{self, BridgeSeen};
use super::compiled::{self, Compiled};
use super::drops::HostDrop;
use super::limits;
use super::rules::{self, BridgeKind};
use crate::host::rule::{Chain, RoutingRule, Rule, Ruleset, TableName, Target};
use crate::owner::{Instance, Owned};
use crate::reconcile::limits::{Timeouts, timeouts};
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
            Self::DeleteBridge(bridge) => Some(bridge.thing()),
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
            Self::DeleteBridge(bridge) => write!(f, "delete bridge {}", bridge.thing()),
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

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let mut commit = Commit::default();
    match desired.requirements.is_empty() {
        true => plan_removal(desired, observed, &mut commit),
        false => plan_chains(desired, observed, &mut commit)?,
    }
    let mut plan = Vec::new();
    let required = (!desired.requirements.is_empty()).then(timeouts);
    let has_timeouts = observed.timeouts == required;
    // Rules refer to the timeouts, so the timeouts are set before the rules and removed after them.
    if required.is_some() && !has_timeouts {
        plan.push(Action::SetTimeouts);
    }
    let refers = required.is_none() && is_still_referenced(desired, observed, &commit);
    if commit != Commit::default() {
        plan.push(Action::Commit(commit));
    }
    if required.is_none() && !has_timeouts && !refers {
        plan.push(Action::RemoveTimeouts);
    }
    if !desired.requirements.is_empty() && !observed.forwarding {
        plan.push(Action::EnableForwarding);
    }
    plan_routing(desired, observed, &mut plan);
    // After the rules: the rules that isolate VMs from a bridge exist before a VM is on it.
    plan.extend(bridges::plan(desired, observed));
    Ok(plan)
}

/// The priority of the kernel's rule for the main table, which is the last but one.
const MAIN_PRIORITY: u32 = 32766;

/// The priority of our rules: between 10 and 99, before those of VPNs and of Kubernetes network plugins. It differs between the daemons of
/// one host, so that each recognizes its own.
fn routing_priority(instance: &Instance) -> u32 {
    let sum = instance.as_str().bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    10 + sum % 90
}

/// Rules are needed only if other programs have rules; otherwise the main table decides anyway.
fn plan_routing(desired: &Desired, observed: &Observed, plan: &mut Vec<Action>) {
    let priority = routing_priority(&desired.instance);
    let others = observed
        .routing
        .iter()
        .any(|rule| !rule.is_ours() && rule.priority > 0 && rule.priority < MAIN_PRIORITY);
    let subnets = bridges::bridge_subnets(desired, observed);
    let subnets = subnets
        .iter()
        .filter(|bridge_subnet| bridge_subnet.kind != BridgeKind::UnmanagedRemoteGateway);
    let pools = desired.requirements.pools.iter().copied();
    let ranges: BTreeSet<Ipv4Network> = pools.chain(subnets.map(|side| side.subnet)).collect();
    let required = match others {
        true => ranges,
        false => BTreeSet::new(),
    };
    let ours = observed.routing.iter().filter_map(|rule| {
        let to = rule.to?;
        (*rule == RoutingRule::via_main_table(priority, to)).then_some(to)
    });
    let ours: BTreeSet<Ipv4Network> = ours.collect();
    let missing = required.difference(&ours);
    plan.extend(missing.map(|to| Action::AddRoutingRule(priority, *to)));
    let stale = ours.difference(&required);
    plan.extend(stale.map(|to| Action::RemoveRoutingRule(priority, *to)));
}

impl Observed {
    /// Policy routing rules of other programs.
    pub fn foreign_routing(&self) -> Vec<RoutingRule> {
        let foreign = self.routing.iter().filter(|rule| !rule.is_ours());
        foreign.cloned().collect()
    }
}

/// Whether a step, given by its message, is a [`Commit`], which changes the rules that restrict VMs.
pub(super) fn restricts(step: &str) -> bool {
    [
        "write host chains",
        "put our jumps",
        "remove our jumps",
        "remove host chains",
    ]
    .iter()
    .any(|prefix| step.starts_with(prefix))
}

/// Whether our chains and the jumps into them need no change.
pub(super) fn enforces(desired: &Desired, observed: &Observed) -> bool {
    let mut commit = Commit::default();
    match desired.requirements.is_empty() {
        true => true,
        false => plan_chains(desired, observed, &mut commit).is_ok() && commit == Commit::default(),
    }
}

/// Whether what was read of the host's tables needs no change, and nothing else depends on the rest of the tables.
pub(super) fn needs_no_change(desired: &Desired, observed: &Observed) -> bool {
    let mut commit = Commit::default();
    match desired.requirements.is_empty() {
        true => plan_removal(desired, observed, &mut commit),
        false if plan_chains(desired, observed, &mut commit).is_err() => return false,
        false => {}
    }
    // A rule that still refers to the timeouts may be in any chain.
    let is_bare = desired.requirements.is_empty() && observed.timeouts.is_some();
    commit == Commit::default() && !is_bare
}

/// Whether a chain that is kept because it is not ours refers to the timeouts: the kernel keeps them in that case.
fn is_still_referenced(desired: &Desired, observed: &Observed, commit: &Commit) -> bool {
    let policy = Target::Timeout(limits::timeouts_name(&desired.instance));
    let refers = |rule: &Rule| matches!(rule, Rule::Known { then, .. } if *then == policy);
    observed.ruleset.tables().iter().any(|table| {
        let is_unneeded = |name: &str| {
            commit
                .remove_chains
                .contains(&(table.name, name.to_owned()))
        };
        let mut stay = table
            .chains
            .iter()
            .filter(|chain| !is_unneeded(&chain.name));
        stay.any(|chain| chain.rules.iter().any(refers))
    })
}

fn plan_chains(
    desired: &Desired,
    observed: &Observed,
    commit: &mut Commit,
) -> Result<(), Conflict> {
    let Compiled {
        chains: required,
        jumps,
    } = compiled::compile(desired, observed);
    for (table, chain) in &required {
        let seen = observed.ruleset.chain(*table, &chain.name);
        if let Some(seen) = seen.filter(|seen| !is_ours(&desired.instance, seen)) {
            return Err(Conflict {
                object: format!("chain {} of table {table}", seen.name),
                remedy: format!("rename it: iptables -t {table} -E {} OTHER", seen.name),
            });
        }
        if seen != Some(chain) {
            commit.write_chains.push((*table, chain.clone()));
        }
    }
    remove_stale(desired, observed, commit, |table, chain| {
        let keeps = |(at, kept): &rules::TableChain| *at == table && kept.name == chain;
        required.iter().any(keeps)
    });
    for jump in jumps {
        plan_jump(desired, observed, jump, commit);
    }
    Ok(())
}

/// Puts a jump first in its chain, and removes it from all other places in the chain.
fn plan_jump(desired: &Desired, observed: &Observed, jump: Jump, commit: &mut Commit) {
    let prefix = desired.instance.chain("");
    let present = observed.ruleset.rules(jump.table, &jump.chain);
    let is_removed = |rule: &&Rule| {
        let location = (jump.table, jump.chain.clone(), (*rule).clone());
        commit.remove_jumps.contains(&location)
    };
    let remaining: Vec<&Rule> = present.iter().filter(|rule| !is_removed(rule)).collect();
    let is_foreign = |rule: &Rule| {
        let target = rule.jump().unwrap_or_default();
        let seen = observed.ruleset.chain(jump.table, target);
        seen.is_some_and(|chain| !is_ours(&desired.instance, chain))
    };
    let ours = remaining
        .iter()
        .filter(|rule| jumps_into(&prefix, rule) && !is_foreign(rule));
    // Another daemon's jumps concern its own links. Two daemons that both insist on the first place would never converge.
    let others = remaining
        .iter()
        .take_while(|rule| leads_to_other_instance(&desired.instance, rule))
        .count();
    let first = remaining[others..].iter().copied();
    if first.take(jump.rules.len()).eq(&jump.rules) && ours.clone().count() == jump.rules.len() {
        return;
    }
    let place = |rule: &&Rule| (jump.table, jump.chain.clone(), (*rule).clone());
    let stale: Vec<_> = ours.map(place).collect();
    commit.remove_jumps.extend(stale);
    commit.insert_jumps.push(jump);
}

fn plan_removal(desired: &Desired, observed: &Observed, commit: &mut Commit) {
    remove_stale(desired, observed, commit, |_, _| false);
}

/// Removes every chain of ours that is not kept, and every jump to it. A foreign chain with one of our names keeps the jumps that lead to
/// it: they belong to its owner.
fn remove_stale(
    desired: &Desired,
    observed: &Observed,
    commit: &mut Commit,
    is_kept: impl Fn(TableName, &str) -> bool,
) {
    let prefix = desired.instance.chain("");
    let is_unneeded = |table: TableName, target: &str| {
        let seen = observed.ruleset.chain(table, target);
        let ours = seen.is_none_or(|chain| is_ours(&desired.instance, chain));
        ours && !is_kept(table, target)
    };
    for table in observed.ruleset.tables() {
        for chain in &table.chains {
            let jumps = chain.rules.iter().filter(|rule| jumps_into(&prefix, rule));
            let stale =
                jumps.filter(|rule| rule.jump().is_some_and(|to| is_unneeded(table.name, to)));
            let location = |rule: &Rule| (table.name, chain.name.clone(), rule.clone());
            // A chain of ours is written again or removed as a whole.
            let whole = chain.name.starts_with(&prefix) && is_ours(&desired.instance, chain);
            commit
                .remove_jumps
                .extend(stale.filter(|_| !whole).map(location));
            if chain.name.starts_with(&prefix) && is_unneeded(table.name, &chain.name) {
                commit.remove_chains.push((table.name, chain.name.clone()));
            }
        }
    }
}

/// A chain is ours if its first rule has our label. Every rule of ours has it, so that the next rule identifies the chain when a program
/// deletes rules. A chain that another program has flushed contains nothing foreign.
fn is_ours(instance: &Instance, chain: &Chain) -> bool {
    let label = instance.host_network_label();
    match chain.rules.first() {
        None => true,
        Some(first) => label.claim((), first.comment()).is_some(),
    }
}

fn leads_to_other_instance(instance: &Instance, rule: &Rule) -> bool {
    let target = rule.jump().and_then(Instance::from_chain);
    target.is_some_and(|other| other != *instance)
}

fn jumps_into(prefix: &str, rule: &Rule) -> bool {
    rule.jump().is_some_and(|chain| chain.starts_with(prefix))
}
