//! Compiles the host's own rules from what is desired and what they depend on: bridges, other programs' bridges, table sizes. Pure.
//! Out of scope: the content of the rules ([`super::rules`]); committing them.
//!
//! # Why
//! The plan and `explain` both use this result, so what is explained is what is committed.

use super::rule_input::{Limits, RuleInput};
use super::rules::{self, TableChain};
use super::state::{Desired, Jump, Observed};
use super::{apart, bridges};
use crate::host::rule::{Chain, Policy, Ruleset, Table, TableName};
use crate::owner::Instance;
use crate::reconcile::limits::Limit;

/// Our chains in the host's tables, and the jumps into them.
pub(super) struct Compiled {
    /// The chains.
    pub chains: Vec<TableChain>,
    /// The jumps.
    pub jumps: Vec<Jump>,
}

pub(super) fn compile(desired: &Desired, observed: &Observed) -> Compiled {
    let openings: Vec<_> = desired
        .requirements
        .openings
        .iter()
        .filter_map(|(pool, entry)| Some((*pool, entry.parse().ok()?)))
        .collect();
    let input = RuleInput {
        instance: &desired.instance,
        pools: &desired.requirements.pools,
        host_ports: &openings,
        bridge_subnets: &bridges::bridge_subnets(desired, observed),
        cni_subnets: &desired.requirements.cni_subnets,
        max_connections: &desired.requirements.max_connections,
        limits: &Limits {
            share: Limit::default_for(observed.conntrack_max),
            on_link: observed.on_link.clone(),
        },
        foreign: &observed.foreign,
    };
    let docker = observed
        .ruleset
        .chain(TableName::Filter, rules::DOCKER_USER);
    Compiled {
        chains: rules::chains(&input),
        jumps: rules::jumps(&input, docker.is_some()),
    }
}

/// The rules of sliced daemons that apply to packets of our isolated VMs: ours as desired, and those of other daemons as `mangle` contains
/// them. Without the rules of other programs.
pub(super) fn ruleset(desired: &Desired, observed: &Observed, mangle: &Ruleset) -> Ruleset {
    let Compiled {
        mut chains,
        mut jumps,
    } = compile(desired, observed);
    jumps.retain(|jump| jump.chain != rules::DOCKER_USER);
    let is_other = |name: &str| {
        let daemon = Instance::from_chain(name);
        daemon.is_some_and(|daemon| daemon != desired.instance && daemon.chain(apart::ROLE) == name)
    };
    let others = mangle.chains(TableName::Mangle).iter();
    let others = others.filter(|chain| is_other(&chain.name));
    chains.extend(others.map(|chain| (TableName::Mangle, chain.clone())));
    let entries = mangle.rules(TableName::Mangle, "FORWARD").iter();
    let entries = entries.filter(|rule| rule.jump().is_some_and(is_other));
    let forward = |jump: &&mut Jump| jump.table == TableName::Mangle && jump.chain == "FORWARD";
    if let Some(jump) = jumps.iter_mut().find(forward) {
        jump.rules.extend(entries.cloned());
    }
    let builtin = |jump: Jump| Table {
        name: jump.table,
        chains: vec![Chain::builtin(jump.chain, Policy::Accept, jump.rules)],
    };
    let user = |(name, chain)| Table {
        name,
        chains: vec![chain],
    };
    let tables = jumps.into_iter().map(builtin);
    Ruleset::new(tables.chain(chains.into_iter().map(user)))
}
