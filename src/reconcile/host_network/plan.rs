//! Plans the actions for the host's own rules. Pure.
//! Out of scope: the content of the rules ([`super::rules`]).

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use super::super::Conflict;
use super::compiled::{self, Compiled};
use super::rule_input::BridgeKind;
use super::state::{Action, Commit, Desired, Jump, Observed};
use super::{bridges, limits, rules};
use crate::host::rule::{Chain, RoutingRule, Rule, TableName, Target};
use crate::owner::Instance;
use crate::reconcile::limits::timeouts;

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
