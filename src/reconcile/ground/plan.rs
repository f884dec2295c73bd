//! What is to be done for the host's own rules. Pure.
//! Out of scope: which rules they are ([`super::rules`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::super::Conflict;
use super::bridges::{self, BridgeSeen};
use super::drops::HostDrop;
use super::limits::{self, Limits};
use super::rules::{self, Carried, Standing};
use crate::host::rule::{Chain, RoutingRule, Rule, Ruleset, TableName, Target};
use crate::owner::{Instance, Owned};
use crate::reconcile::limits::{Limit, Timeouts, timeouts};
use crate::store::Footing;

/// What ought to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose.
    pub instance: Instance,
    /// What the rules and bridges must carry; without a pool and a bridge there is to be nothing of ours.
    pub footing: Footing,
    /// What they were made to carry before: its addresses are ours to take off a bridge of ours.
    #[serde(default)]
    pub before: Footing,
}

/// What is.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// All four tables, other people's rules included.
    pub ruleset: Ruleset,
    /// `net.ipv4.ip_forward` of the host.
    pub forwarding: bool,
    /// Links that bear wanted bridges' names, and bridges that are ours.
    pub bridges: BTreeMap<String, BridgeSeen>,
    /// `nf_conntrack_max`; none: not to be seen.
    pub conntrack_max: Option<u32>,
    /// The networks of the host's links whose neighbours are counted.
    pub on_link: BTreeSet<Ipv4Network>,
    /// Our timeout policy for TCP; none: there is none.
    pub timeouts: Option<Timeouts>,
    /// Bridges that are neither ours nor another daemon's, and that the default route does not use.
    pub foreign: BTreeSet<String>,
    /// What of the host, not ours to change, keeps VMs' packets from passing, each with its remedy.
    #[serde(skip)]
    pub warnings: Vec<String>,
    /// Foreign chains that drop packets of VMs; none: not to be seen.
    #[serde(skip)]
    pub drops: Option<Vec<HostDrop>>,
    /// All rules of policy routing.
    #[serde(skip)]
    pub routing: Vec<RoutingRule>,
}

/// Rules of ours that stand first in a chain that is not ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Jump {
    /// The table.
    pub table: TableName,
    /// The chain.
    pub chain: String,
    /// In this order, first in the chain.
    pub rules: Vec<Rule>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Our chains and the jumps into them, in one transaction, all or nothing.
    Commit(Commit),
    /// The timeouts of VMs' TCP connections in the host's table.
    SetTimeouts,
    /// Remove them.
    RemoveTimeouts,
    /// `ip_forward`.
    EnableForwarding,
    /// Have packets to a pool or subnet of VMs routed by the main table, regardless of other rules.
    AddRoutingRule(u32, Ipv4Network),
    /// Take such a rule of ours away.
    RemoveRoutingRule(u32, Ipv4Network),
    /// Make a bridge: without a spanning tree, with a MAC of its own, down.
    CreateBridge(String),
    /// Label it.
    LabelBridge(String),
    /// Set its MAC, MTU and group, turn off its spanning tree, delay and snooping, and have the host take no configuration in on it.
    ConfigureBridge(String),
    /// Give the host an address on it.
    AddGateway(String, Ipv4Network),
    /// Take one away that was ours.
    RemoveGateway(String, Ipv4Network),
    /// Set it up.
    RaiseBridge(String),
    /// Remove it.
    DeleteBridge(Owned<String>),
}

impl Action {
    /// The bridge that it is about.
    pub(super) fn bridge(&self) -> Option<&str> {
        match self {
            Self::CreateBridge(bridge)
            | Self::LabelBridge(bridge)
            | Self::ConfigureBridge(bridge)
            | Self::AddGateway(bridge, _)
            | Self::RemoveGateway(bridge, _)
            | Self::RaiseBridge(bridge) => Some(bridge),
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
    /// Chains of ours to write whole.
    pub write: Vec<(TableName, Chain)>,
    /// Jumps of ours to take away: table, chain, rule.
    pub unjump: Vec<(TableName, String, Rule)>,
    /// Jumps to put first.
    pub jump: Vec<Jump>,
    /// Chains of ours to remove.
    pub remove: Vec<(TableName, String)>,
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
            Self::EnableForwarding => f.write_str("switch the host's ip_forward on"),
            Self::CreateBridge(bridge) => write!(f, "create bridge {bridge}"),
            Self::LabelBridge(bridge) => write!(f, "label bridge {bridge}"),
            Self::ConfigureBridge(bridge) => {
                write!(f, "set MAC and MTU of bridge {bridge}, spanning tree off")
            }
            Self::AddGateway(bridge, address) => write!(f, "add address {address} to {bridge}"),
            Self::RemoveGateway(bridge, address) => {
                write!(f, "take address {address} off {bridge}")
            }
            Self::RaiseBridge(bridge) => write!(f, "set bridge {bridge} up"),
            Self::DeleteBridge(bridge) => write!(f, "delete bridge {}", bridge.thing()),
            Self::Commit(commit) => {
                let mut parts = Vec::new();
                let names = |chains: &mut dyn Iterator<Item = String>| {
                    chains.collect::<Vec<_>>().join(", ")
                };
                if !commit.write.is_empty() {
                    let chains = &mut commit.write.iter().map(|(t, c)| format!("{t} {}", c.name));
                    parts.push(format!("write host chains {}", names(chains)));
                }
                if !commit.jump.is_empty() {
                    let chains = &mut commit
                        .jump
                        .iter()
                        .map(|j| format!("{} {}", j.table, j.chain));
                    parts.push(format!("put our jumps first in {}", names(chains)));
                } else if !commit.unjump.is_empty() {
                    let chains = &mut commit.unjump.iter().map(|(t, c, _)| format!("{t} {c}"));
                    parts.push(format!("take our jumps out of {}", names(chains)));
                }
                if !commit.remove.is_empty() {
                    let chains = &mut commit.remove.iter().map(|(t, c)| format!("{t} {c}"));
                    parts.push(format!("remove host chains {}", names(chains)));
                }
                f.write_str(&parts.join("; "))
            }
        }
    }
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
    let mut commit = Commit::default();
    match desired.footing.is_empty() {
        true => plan_nothing(desired, observed, &mut commit),
        false => plan_chains(desired, observed, &mut commit)?,
    }
    let mut plan = Vec::new();
    let wanted = (!desired.footing.is_empty()).then(timeouts);
    let has_timeouts = observed.timeouts == wanted;
    // Rules refer to the timeouts: these come before the rules and go after them.
    if wanted.is_some() && !has_timeouts {
        plan.push(Action::SetTimeouts);
    }
    let refers = wanted.is_none() && stays_referred_to(desired, observed, &commit);
    if commit != Commit::default() {
        plan.push(Action::Commit(commit));
    }
    if wanted.is_none() && !has_timeouts && !refers {
        plan.push(Action::RemoveTimeouts);
    }
    if !desired.footing.is_empty() && !observed.forwarding {
        plan.push(Action::EnableForwarding);
    }
    plan_routing(desired, observed, &mut plan);
    // After the rules: what keeps isolated VMs from a bridge stands before there is somebody on it.
    plan.extend(bridges::plan(desired, observed));
    Ok(plan)
}

/// The kernel asks the main table last but one.
const MAIN_PRIORITY: u32 = 32766;

/// The priority of our rules: between 10 and 99, before those of VPNs and of Kubernetes' network plugins. It differs between the daemons
/// of one host, so that each recognizes its own.
fn routing_priority(instance: &Instance) -> u32 {
    let sum = instance.as_str().bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    10 + sum % 90
}

/// Only where somebody else has rules: without them the main table decides anyway.
fn plan_routing(desired: &Desired, observed: &Observed, plan: &mut Vec<Action>) {
    let priority = routing_priority(&desired.instance);
    let others = observed
        .routing
        .iter()
        .any(|rule| !rule.is_ours() && rule.priority > 0 && rule.priority < MAIN_PRIORITY);
    let subnets = bridges::sides(desired, observed);
    let subnets = subnets
        .iter()
        .filter(|side| side.standing != Standing::Joined);
    let pools = desired.footing.pools.iter().copied();
    let ranges: BTreeSet<Ipv4Network> = pools.chain(subnets.map(|side| side.subnet)).collect();
    let wanted = match others {
        true => ranges,
        false => BTreeSet::new(),
    };
    let ours = observed.routing.iter().filter_map(|rule| {
        let to = rule.to?;
        (*rule == RoutingRule::by_main(priority, to)).then_some(to)
    });
    let ours: BTreeSet<Ipv4Network> = ours.collect();
    let missing = wanted.difference(&ours);
    plan.extend(missing.map(|to| Action::AddRoutingRule(priority, *to)));
    let stale = ours.difference(&wanted);
    plan.extend(stale.map(|to| Action::RemoveRoutingRule(priority, *to)));
}

impl Observed {
    /// Rules of policy routing that are others'.
    pub fn foreign_routing(&self) -> Vec<RoutingRule> {
        let foreign = self.routing.iter().filter(|rule| !rule.is_ours());
        foreign.cloned().collect()
    }
}

/// Whether a step, by its message, was one for the rules that restrict VMs: a [`Commit`]'s.
pub(super) fn restricts(step: &str) -> bool {
    [
        "write host chains",
        "put our jumps",
        "take our jumps",
        "remove host chains",
    ]
    .iter()
    .any(|beginning| step.starts_with(beginning))
}

/// Whether nothing is left to do for our chains and the jumps into them.
pub(super) fn enforces(desired: &Desired, observed: &Observed) -> bool {
    let mut commit = Commit::default();
    match desired.footing.is_empty() {
        true => true,
        false => plan_chains(desired, observed, &mut commit).is_ok() && commit == Commit::default(),
    }
}

/// Whether nothing is to be changed in the host's tables, by what was read of them; and nothing else depends on the rest of them.
pub(super) fn is_settled(desired: &Desired, observed: &Observed) -> bool {
    let mut commit = Commit::default();
    match desired.footing.is_empty() {
        true => plan_nothing(desired, observed, &mut commit),
        false if plan_chains(desired, observed, &mut commit).is_err() => return false,
        false => {}
    }
    // A rule that still refers to the timeouts may be in any chain.
    let is_bare = desired.footing.is_empty() && observed.timeouts.is_some();
    commit == Commit::default() && !is_bare
}

/// Whether a chain that stays, because it is not ours, refers to the timeouts: the kernel keeps them then.
fn stays_referred_to(desired: &Desired, observed: &Observed, commit: &Commit) -> bool {
    let policy = Target::Timeout(limits::timeouts_name(&desired.instance));
    let refers = |rule: &Rule| matches!(rule, Rule::Known { then, .. } if *then == policy);
    observed.ruleset.tables().iter().any(|table| {
        let goes = |name: &str| commit.remove.contains(&(table.name, name.to_owned()));
        let mut stay = table.chains.iter().filter(|chain| !goes(&chain.name));
        stay.any(|chain| chain.rules.iter().any(refers))
    })
}

fn plan_chains(
    desired: &Desired,
    observed: &Observed,
    commit: &mut Commit,
) -> Result<(), Conflict> {
    let openings: Vec<_> = desired
        .footing
        .openings
        .iter()
        .filter_map(|(pool, entry)| Some((*pool, entry.parse().ok()?)))
        .collect();
    let carried = Carried {
        instance: &desired.instance,
        pools: &desired.footing.pools,
        openings: &openings,
        sides: &bridges::sides(desired, observed),
        plugged: &desired.footing.plugged,
        max_connections: &desired.footing.max_connections,
        limits: &Limits {
            share: Limit::share(observed.conntrack_max),
            on_link: observed.on_link.clone(),
        },
        foreign: &observed.foreign,
    };
    let wanted = rules::chains(&carried);
    for (table, chain) in &wanted {
        let seen = observed.ruleset.chain(*table, &chain.name);
        if let Some(seen) = seen.filter(|seen| !is_ours(&desired.instance, seen)) {
            return Err(Conflict {
                thing: format!("chain {} of table {table}", seen.name),
                remedy: format!("rename it: iptables -t {table} -E {} OTHER", seen.name),
            });
        }
        if seen != Some(chain) {
            commit.write.push((*table, chain.clone()));
        }
    }
    let docker = observed
        .ruleset
        .chain(TableName::Filter, rules::DOCKER_USER);
    let jumps = rules::jumps(&carried, docker.is_some());
    sweep(desired, observed, commit, |table, chain| {
        let keeps = |(at, kept): &rules::Placed| *at == table && kept.name == chain;
        wanted.iter().any(keeps)
    });
    for jump in jumps {
        plan_jump(desired, observed, jump, commit);
    }
    Ok(())
}

/// Puts a jump first in its chain, and away wherever else it stands there.
fn plan_jump(desired: &Desired, observed: &Observed, jump: Jump, commit: &mut Commit) {
    let prefix = desired.instance.chain("");
    let standing = observed.ruleset.rules(jump.table, &jump.chain);
    let gone = |rule: &&Rule| {
        let place = (jump.table, jump.chain.clone(), (*rule).clone());
        commit.unjump.contains(&place)
    };
    let left: Vec<&Rule> = standing.iter().filter(|rule| !gone(rule)).collect();
    let strangers = |rule: &Rule| {
        let target = rule.jump().unwrap_or_default();
        let seen = observed.ruleset.chain(jump.table, target);
        seen.is_some_and(|chain| !is_ours(&desired.instance, chain))
    };
    let ours = left
        .iter()
        .filter(|rule| jumps_into(&prefix, rule) && !strangers(rule));
    // Another daemon's jumps concern its own links. Two that both insisted on the very first place would never rest.
    let others = left
        .iter()
        .take_while(|rule| leads_to_another(&desired.instance, rule))
        .count();
    let first = left[others..].iter().copied();
    if first.take(jump.rules.len()).eq(&jump.rules) && ours.clone().count() == jump.rules.len() {
        return;
    }
    let place = |rule: &&Rule| (jump.table, jump.chain.clone(), (*rule).clone());
    let stale: Vec<_> = ours.map(place).collect();
    commit.unjump.extend(stale);
    commit.jump.push(jump);
}

fn plan_nothing(desired: &Desired, observed: &Observed, commit: &mut Commit) {
    sweep(desired, observed, commit, |_, _| false);
}

/// Removes every chain of ours that is not kept, and every jump to it. A chain of a stranger under our name keeps the jumps that
/// lead to it: they are the stranger's too.
fn sweep(
    desired: &Desired,
    observed: &Observed,
    commit: &mut Commit,
    is_kept: impl Fn(TableName, &str) -> bool,
) {
    let prefix = desired.instance.chain("");
    let goes = |table: TableName, target: &str| {
        let seen = observed.ruleset.chain(table, target);
        let ours = seen.is_none_or(|chain| is_ours(&desired.instance, chain));
        ours && !is_kept(table, target)
    };
    for table in observed.ruleset.tables() {
        for chain in &table.chains {
            let jumps = chain.rules.iter().filter(|rule| jumps_into(&prefix, rule));
            let stale = jumps.filter(|rule| rule.jump().is_some_and(|to| goes(table.name, to)));
            let place = |rule: &Rule| (table.name, chain.name.clone(), rule.clone());
            // A chain of ours is written again or removed as a whole.
            let whole = chain.name.starts_with(&prefix) && is_ours(&desired.instance, chain);
            commit.unjump.extend(stale.filter(|_| !whole).map(place));
            if chain.name.starts_with(&prefix) && goes(table.name, &chain.name) {
                commit.remove.push((table.name, chain.name.clone()));
            }
        }
    }
}

/// A chain is ours by the label in its first rule; every rule of ours carries it, so that the next one is first when somebody deletes
/// rules. One that somebody has flushed holds nothing foreign.
fn is_ours(instance: &Instance, chain: &Chain) -> bool {
    let label = instance.ground_label();
    match chain.rules.first() {
        None => true,
        Some(first) => label.claim((), first.comment()).is_some(),
    }
}

fn leads_to_another(instance: &Instance, rule: &Rule) -> bool {
    let target = rule.jump().and_then(Instance::of_chain);
    target.is_some_and(|other| other != *instance)
}

fn jumps_into(prefix: &str, rule: &Rule) -> bool {
    rule.jump().is_some_and(|chain| chain.starts_with(prefix))
}
