//! What is to be done for the host's own rules. Pure.
//! Not here: which rules they are ([`super::rules`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::Conflict;
use super::rules::{self, Carried};
use crate::host::rule::{Chain, Rule, Ruleset, TableName};
use crate::owner::Instance;
use crate::store::Footing;

/// What ought to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Whose.
    pub instance: Instance,
    /// What the rules must carry; without a pool there is to be nothing of ours.
    pub footing: Footing,
}

/// What is.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// All four tables, other people's rules included.
    pub ruleset: Ruleset,
    /// `net.ipv4.ip_forward` of the host.
    pub forwarding: bool,
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
    /// `ip_forward`.
    EnableForwarding,
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
            Self::EnableForwarding => f.write_str("switch the host's ip_forward on"),
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
    let prefix = desired.instance.chain("");
    match desired.footing.pools.is_empty() {
        true => plan_nothing(desired, &prefix, observed, &mut commit),
        false => plan_chains(desired, &prefix, observed, &mut commit)?,
    }
    let mut plan = Vec::new();
    if commit != Commit::default() {
        plan.push(Action::Commit(commit));
    }
    if !desired.footing.pools.is_empty() && !observed.forwarding {
        plan.push(Action::EnableForwarding);
    }
    Ok(plan)
}

fn plan_chains(
    desired: &Desired,
    prefix: &str,
    observed: &Observed,
    commit: &mut Commit,
) -> Result<(), Conflict> {
    let openings: Vec<_> = desired
        .footing
        .openings
        .iter()
        .filter_map(|(pool, entry)| Some((*pool, entry.parse().ok()?)))
        .collect();
    let chains = rules::chains(&Carried {
        instance: &desired.instance,
        pools: &desired.footing.pools,
        openings: &openings,
    });
    for (table, chain) in chains {
        let seen = observed.ruleset.chain(table, &chain.name);
        if let Some(seen) = seen.filter(|seen| !is_ours(&desired.instance, seen)) {
            return Err(Conflict {
                thing: format!("chain {} of table {table}", seen.name),
                remedy: format!("rename it: iptables -t {table} -E {} OTHER", seen.name),
            });
        }
        if seen != Some(&chain) {
            commit.write.push((table, chain));
        }
    }
    let docker = observed.ruleset.chain(TableName::Filter, "DOCKER-USER");
    for jump in rules::jumps(&desired.instance, docker.is_some()) {
        let standing = observed.ruleset.rules(jump.table, &jump.chain);
        let ours: Vec<&Rule> = jumps_into(prefix, standing).collect();
        // Another daemon's jumps concern its own links. Two that both insisted on the very first place would never rest.
        let others = standing
            .iter()
            .take_while(|rule| leads_to_another(&desired.instance, rule))
            .count();
        let first = standing[others..].starts_with(&jump.rules);
        if first && ours.len() == jump.rules.len() {
            continue;
        }
        let stale = ours.into_iter().cloned();
        let place = |rule| (jump.table, jump.chain.clone(), rule);
        commit.unjump.extend(stale.map(place));
        commit.jump.push(jump);
    }
    Ok(())
}

fn plan_nothing(desired: &Desired, prefix: &str, observed: &Observed, commit: &mut Commit) {
    for table in observed.ruleset.tables() {
        for chain in &table.chains {
            let ours = jumps_into(prefix, &chain.rules).cloned();
            commit
                .unjump
                .extend(ours.map(|rule| (table.name, chain.name.clone(), rule)));
            if chain.name.starts_with(prefix) && is_ours(&desired.instance, chain) {
                commit.remove.push((table.name, chain.name.clone()));
            }
        }
    }
    // A chain of a stranger under our name keeps the jumps that lead to it: they are the stranger's too.
    let kept = |table: TableName, target: &str| {
        observed
            .ruleset
            .chain(table, target)
            .is_some_and(|chain| !is_ours(&desired.instance, chain))
    };
    commit
        .unjump
        .retain(|(table, _, rule)| !rule.jump().is_some_and(|target| kept(*table, target)));
}

/// A chain is ours by the label in its first rule. One that somebody has flushed holds nothing foreign.
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

fn jumps_into<'a>(prefix: &'a str, rules: &'a [Rule]) -> impl Iterator<Item = &'a Rule> {
    rules
        .iter()
        .filter(move |rule| rule.jump().is_some_and(|chain| chain.starts_with(prefix)))
}
