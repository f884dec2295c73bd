//! The host's own rules: the same number for one VM and for a thousand. Pure.
//! Not here: committing them.

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use super::plan::Jump;
use crate::api::policy::{self, Entry};
use crate::host::rule::{AddrType, Chain, CtState, Protocol, Rule, TableName, Target};
use crate::owner::Instance;

/// A chain of ours and where it stands.
pub type Placed = (TableName, Chain);

/// What the chains are made from.
pub struct Carried<'a> {
    /// Whose.
    pub instance: &'a Instance,
    /// Where VMs' addresses come from.
    pub pools: &'a BTreeSet<Ipv4Network>,
    /// One address and its ports on the host, opened to a pool.
    pub openings: &'a [(Ipv4Network, Entry)],
}

/// Every chain of ours. The first rule of each carries our label.
pub fn chains(carried: &Carried<'_>) -> Vec<Placed> {
    let label = carried.instance.ground_label().to_string();
    let mut chains = vec![
        (TableName::Raw, "RAW", raw(carried)),
        (TableName::Mangle, "MSS", mss()),
        (TableName::Nat, "NAT", nat(carried)),
        (TableName::Filter, "OUT", out(carried.instance)),
        (TableName::Filter, "IN", back_in()),
        (TableName::Filter, "HOST", to_host(carried)),
    ];
    chains
        .drain(..)
        .map(|(table, role, mut rules)| {
            if let Some(Rule::Known { when, .. }) = rules.first_mut() {
                when.comment = Some(label.clone());
            }
            (table, Chain::user(carried.instance.chain(role), rules))
        })
        .collect()
}

/// The jumps into them; each must stand first in its chain.
pub fn jumps(instance: &Instance, docker_user: bool) -> Vec<Jump> {
    let ours = instance.link_wildcard();
    let from = |role: &str| Rule::when().in_if(&ours).jump(instance.chain(role));
    let to = |role: &str| Rule::when().out_if(&ours).jump(instance.chain(role));
    let all = |role: &str| Rule::when().jump(instance.chain(role));
    let jump = |table, chain: &str, rules: Vec<Rule>| Jump {
        table,
        chain: chain.to_owned(),
        rules,
    };
    let mut jumps = vec![
        jump(TableName::Raw, "PREROUTING", vec![from("RAW")]),
        jump(TableName::Mangle, "FORWARD", vec![from("MSS"), to("MSS")]),
        jump(TableName::Nat, "POSTROUTING", vec![all("NAT")]),
        jump(TableName::Filter, "INPUT", vec![from("HOST")]),
        jump(TableName::Filter, "FORWARD", vec![from("OUT"), to("IN")]),
    ];
    if docker_user {
        let rules = vec![from("OUT"), to("IN")];
        jumps.push(jump(TableName::Filter, "DOCKER-USER", rules));
    }
    jumps
}

/// Before any DNAT: what comes from our VMs for any address of the host, or from no address of ours, goes no further.
fn raw(carried: &Carried<'_>) -> Vec<Rule> {
    let opened = openings(carried, &Target::Return);
    let local = [AddrType::Local, AddrType::Broadcast]
        .map(|kind| Rule::when().dst_type([kind]).then(Target::Drop));
    let sources = carried
        .pools
        .iter()
        .map(|pool| Rule::when().src(*pool).then(Target::Return));
    opened
        .into_iter()
        .chain(local)
        .chain(sources)
        .chain([Rule::when().then(Target::Drop)])
        .collect()
}

/// Only what `raw` let through can come here.
fn to_host(carried: &Carried<'_>) -> Vec<Rule> {
    let mut rules = openings(carried, &Target::Accept);
    rules.push(Rule::when().then(Target::Drop));
    rules
}

fn openings(carried: &Carried<'_>, target: &Target) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (pool, entry) in carried.openings {
        let Some(ports) = entry.ports else {
            continue;
        };
        let protocols: &[Protocol] = match entry.protocol {
            Some(policy::Protocol::Tcp) => &[Protocol::Tcp],
            Some(policy::Protocol::Udp) => &[Protocol::Udp],
            None => &[Protocol::Tcp, Protocol::Udp],
        };
        rules.extend(protocols.iter().map(|protocol| {
            Rule::when()
                .src(*pool)
                .dst(entry.network)
                .dport(*protocol, ports.first..=ports.last)
                .then(target.clone())
        }));
    }
    rules
}

/// From our VMs onwards: not to each other, and nothing that could not be masqueraded.
fn out(instance: &Instance) -> Vec<Rule> {
    vec![
        Rule::when()
            .out_if(instance.link_wildcard())
            .then(Target::Drop),
        Rule::when().ctstate([CtState::Invalid]).then(Target::Drop),
        Rule::when().then(Target::Accept),
    ]
}

/// To our VMs: answers only.
fn back_in() -> Vec<Rule> {
    vec![
        Rule::when()
            .ctstate([CtState::Established, CtState::Related])
            .then(Target::Accept),
        Rule::when().then(Target::Drop),
    ]
}

fn nat(carried: &Carried<'_>) -> Vec<Rule> {
    let wildcard = carried.instance.link_wildcard();
    carried
        .pools
        .iter()
        .map(|pool| {
            Rule::when()
                .src(*pool)
                .not_out_if(&wildcard)
                .then(Target::Masquerade)
        })
        .collect()
}

fn mss() -> Vec<Rule> {
    vec![Rule::when().tcp_syn().then(Target::ClampMss)]
}
