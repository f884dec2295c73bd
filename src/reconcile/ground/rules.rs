//! The host's own rules: their number does not depend on the number of VMs. Pure.
//! Out of scope: committing them; which bridges exist.
//!
//! # Why
//! - Packets that leave a bridge's subnet for another link are masqueraded, even if the other link is another bridge: its guests may have
//!   another machine as their gateway, and would send replies to our addresses there.
//! - An unmanaged bridge may have ports other than our VMs. There only packets of the VMs' subnet are accepted, and if the gateway is
//!   another machine, this host forwards nothing for the subnet: it only bridges. (Bridged packets pass these chains if
//!   `net.bridge.bridge-nf-call-iptables` is on, from and to the bridge.)
//! - Isolated VMs cannot reach a managed bridge at all, and on unmanaged bridges they cannot reach the VMs' subnet: the default route may
//!   use that bridge.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::Ipv4Network;

use super::apart;
use super::limits::{self, Limits};
use super::plan::Jump;
use crate::api::policy::{self, Entry};
use crate::host::rule::{AddrType, Chain, CtState, Match, Protocol, Rule, TableName, Target};
use crate::owner::Instance;

/// A chain of ours and its table.
pub type Placed = (TableName, Chain);

/// The input for the chains.
pub struct Carried<'a> {
    /// The owner.
    pub instance: &'a Instance,
    /// The ranges from which VMs get their addresses.
    pub pools: &'a BTreeSet<Ipv4Network>,
    /// An address and its ports on the host that are open to a pool.
    pub openings: &'a [(Ipv4Network, Entry)],
    /// Subnets on bridges, by the bridges' names.
    pub sides: &'a [Side],
    /// Subnets of CNI networks.
    pub plugged: &'a BTreeSet<Ipv4Network>,
    /// The maximum number of connections of a VM, by pool or subnet, if specified.
    pub max_connections: &'a BTreeMap<Ipv4Network, u32>,
    /// Limits that keep VMs from filling the host's tables.
    pub limits: &'a Limits,
    /// Bridges of other programs on this host that the default route does not use.
    pub foreign: &'a BTreeSet<String>,
}

/// A subnet on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The bridge's name.
    pub bridge: String,
    /// The VMs' subnet.
    pub subnet: Ipv4Network,
    /// The role of this host for the subnet.
    pub standing: Standing,
}

/// The role of this host for a subnet on a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The bridge is managed: only VMs are on it, and the host is their gateway.
    Ours,
    /// The bridge is unmanaged, and the host is the subnet's gateway.
    Hosted,
    /// The bridge is unmanaged, and so is the gateway.
    Joined,
}

/// Every place where a chain of ours may exist: its table and its role.
pub(super) const PLACES: [(TableName, &str); 17] = [
    (TableName::Raw, "RAW"),
    (TableName::Raw, "CT"),
    (TableName::Raw, "SRC"),
    (TableName::Mangle, "MSS"),
    (TableName::Mangle, "LIMIT"),
    (TableName::Mangle, "NEAR"),
    (TableName::Mangle, "ODD"),
    (TableName::Mangle, "LAN"),
    (TableName::Mangle, limits::REFUSED),
    (TableName::Mangle, "LIMITIN"),
    (TableName::Mangle, apart::ROLE),
    (TableName::Nat, "NAT"),
    (TableName::Filter, "OUT"),
    (TableName::Filter, "IN"),
    (TableName::Filter, "HOST"),
    (TableName::Filter, "SRC"),
    (TableName::Filter, "BR"),
];

/// The chain that Docker reserves for users, and evaluates before its own chains.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// All our chains. Every rule in them has our label.
pub fn chains(carried: &Carried<'_>) -> Vec<Placed> {
    let label = carried.instance.ground_label().to_string();
    let isolated = |rules: Vec<Rule>| match carried.pools.is_empty() {
        true => Vec::new(),
        false => rules,
    };
    let mut chains = vec![
        (TableName::Raw, "RAW", isolated(raw(carried))),
        (TableName::Raw, "CT", limits::timeouts(carried)),
        (TableName::Raw, "SRC", isolated(astray(carried))),
        (TableName::Mangle, "MSS", mss(carried)),
        (TableName::Mangle, "LIMIT", limits::from_vms(carried)),
        (TableName::Mangle, "NEAR", limits::by_destination(carried)),
        (TableName::Mangle, "ODD", limits::odd_sources(carried)),
        (TableName::Mangle, "LAN", limits::to_neighbours(carried)),
        (TableName::Mangle, limits::REFUSED, limits::refused(carried)),
        (TableName::Mangle, "LIMITIN", limits::to_vms(carried)),
        (TableName::Mangle, apart::ROLE, apart::rules(carried)),
        (TableName::Nat, "NAT", nat(carried)),
        (TableName::Filter, "OUT", isolated(out(carried))),
        (TableName::Filter, "IN", isolated(back_in())),
        (TableName::Filter, "HOST", isolated(to_host(carried))),
        (TableName::Filter, "SRC", isolated(astray(carried))),
        (TableName::Filter, "BR", over_bridges(carried)),
    ];
    chains.retain(|(_, _, rules)| !rules.is_empty());
    chains
        .drain(..)
        .map(|(table, role, mut rules)| {
            debug_assert!(PLACES.contains(&(table, role)), "{table} {role}");
            for rule in &mut rules {
                if let Rule::Known { when, .. } = rule {
                    when.comment = Some(label.clone());
                }
            }
            (table, Chain::user(carried.instance.chain(role), rules))
        })
        .collect()
}

/// The jumps into our chains; each must be first in its chain.
pub fn jumps(carried: &Carried<'_>, docker_user: bool) -> Vec<Jump> {
    let instance = carried.instance;
    let ours = instance.link_wildcard();
    let from = |role: &str| Rule::when().in_if(&ours).jump(instance.chain(role));
    let to = |role: &str| Rule::when().out_if(&ours).jump(instance.chain(role));
    let all = |role: &str| Rule::when().jump(instance.chain(role));
    let jump = |table, chain: &str, rules: Vec<Rule>| Jump {
        table,
        chain: chain.to_owned(),
        rules,
    };
    let forward = || vec![from("OUT"), to("IN"), all("BR")];
    let bridges: BTreeSet<&str> = carried.sides.iter().map(|s| s.bridge.as_str()).collect();
    // Once for each link that carries packets of VMs.
    let from_each = |role: &str| {
        let on_bridge = |bridge: &&str| Rule::when().in_if(*bridge).jump(instance.chain(role));
        let isolated = (!carried.pools.is_empty()).then(|| from(role));
        let rules = isolated.into_iter();
        rules
            .chain(bridges.iter().map(on_bridge))
            .collect::<Vec<_>>()
    };
    // A packet that arrives at a port of a bridge enters the host as the bridge's packet.
    let not_from = |role: &str| Rule::when().not_in_if(&ours).jump(instance.chain(role));
    let mut mss = vec![from("MSS"), to("MSS")];
    if carried.pools.is_empty() {
        mss.clear();
    }
    for bridge in routed_bridges(carried.sides) {
        let (out, back) = (Rule::when().in_if(bridge), Rule::when().out_if(bridge));
        let pair = [out.not_out_if(bridge), back.not_in_if(bridge)];
        mss.extend(pair.map(|rule| rule.jump(instance.chain("MSS"))));
    }
    let marks = [vec![all(apart::ROLE)], mss, vec![all("LIMITIN")]].concat();
    let mut raw = vec![from("RAW"), not_from("SRC")];
    raw.extend(from_each("CT"));
    let mut jumps = vec![
        jump(TableName::Raw, "PREROUTING", raw),
        jump(TableName::Mangle, "PREROUTING", from_each("LIMIT")),
        jump(TableName::Mangle, "FORWARD", marks),
        jump(TableName::Nat, "POSTROUTING", vec![all("NAT")]),
        jump(
            TableName::Filter,
            "INPUT",
            vec![from("HOST"), not_from("SRC")],
        ),
        jump(TableName::Filter, "FORWARD", forward()),
    ];
    if docker_user {
        jumps.push(jump(TableName::Filter, DOCKER_USER, forward()));
    }
    let made = chains(carried);
    for jump in &mut jumps {
        let leads = |rule: &Rule| made.iter().any(|(_, to)| rule.jump() == Some(&to.name));
        jump.rules.retain(leads);
    }
    jumps.retain(|jump| !jump.rules.is_empty());
    jumps
}

/// Before any DNAT: drops packets from our VMs to any address of the host, or from a source that is not ours.
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

/// Drops packets that have an isolated VM's address but did not arrive on a link of ours: another program has made such a link a port of a
/// bridge, or has taken it over otherwise. Packets that the host sends to itself arrive on `lo`.
fn astray(carried: &Carried<'_>) -> Vec<Rule> {
    let drop = |pool: &Ipv4Network| Rule::when().src(*pool).then(Target::Drop);
    [Rule::when().in_if("lo").then(Target::Return)]
        .into_iter()
        .chain(carried.pools.iter().map(drop))
        .collect()
}

/// Only packets that `raw` has passed arrive here.
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

/// Packets from our isolated VMs: not to each other, not to VMs on bridges or CNI networks, and none that cannot be masqueraded.
fn out(carried: &Carried<'_>) -> Vec<Rule> {
    let to_isolated = Rule::when().out_if(carried.instance.link_wildcard());
    let mut rules = vec![to_isolated.then(Target::Drop)];
    for side in carried.sides {
        let to_side = Rule::when().out_if(&side.bridge);
        let rule = match side.standing {
            Standing::Ours => to_side,
            Standing::Hosted | Standing::Joined => to_side.dst(side.subnet),
        };
        push_once(&mut rules, rule.then(Target::Drop));
    }
    let to_plugged = |subnet: &Ipv4Network| Rule::when().dst(*subnet).then(Target::Drop);
    rules.extend(carried.plugged.iter().map(to_plugged));
    rules.push(Rule::when().ctstate(NOT_TRANSLATED).then(Target::Drop));
    rules.extend(to_foreign(carried, &Rule::when()));
    rules.push(Rule::when().then(Target::Accept));
    rules
}

/// Packets that belong to no flow are not masqueraded: they would leave with a VM's private address.
const NOT_TRANSLATED: [CtState; 2] = [CtState::Invalid, CtState::Untracked];

/// Behind an unmanaged bridge of this host, such as Docker's, are the containers of its owner. The owner's rules, which are evaluated after
/// ours, decide who may reach them.
fn to_foreign(carried: &Carried<'_>, from: &Match) -> Vec<Rule> {
    let leave = |bridge: &String| from.clone().out_if(bridge).then(Target::Return);
    let sides = carried.sides;
    let other = carried.foreign.iter();
    let other = other.filter(|name| sides.iter().all(|side| side.bridge != **name));
    other.map(leave).collect()
}

/// Bridges that this host routes for.
fn routed_bridges(sides: &[Side]) -> BTreeSet<&str> {
    let routed = sides
        .iter()
        .filter(|side| side.standing != Standing::Joined);
    routed.map(|side| side.bridge.as_str()).collect()
}

/// Packets to our VMs: only replies.
fn back_in() -> Vec<Rule> {
    vec![
        Rule::when()
            .ctstate([CtState::Established, CtState::Related])
            .then(Target::Accept),
        Rule::when().then(Target::Drop),
    ]
}

/// Packets from and to VMs on bridges, whatever the policy of the host's chain; Docker sets it to DROP.
fn over_bridges(carried: &Carried<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for Side {
        bridge,
        subnet,
        standing,
    } in carried.sides
    {
        let (from, to) = (
            Rule::when().in_if(bridge).src(*subnet),
            Rule::when().out_if(bridge).dst(*subnet),
        );
        let routed = match standing {
            Standing::Ours => Some(Rule::when().in_if(bridge)),
            Standing::Hosted => Some(from.clone()),
            // Nothing is translated there.
            Standing::Joined => None,
        };
        if let Some(routed) = routed {
            let leaving = routed.clone().not_out_if(bridge);
            push_once(
                &mut rules,
                leaving.ctstate(NOT_TRANSLATED).then(Target::Drop),
            );
            for rule in to_foreign(carried, &routed) {
                push_once(&mut rules, rule);
            }
        }
        let pair = match standing {
            Standing::Ours => [Rule::when().in_if(bridge), Rule::when().out_if(bridge)],
            Standing::Hosted => [from, to],
            Standing::Joined => [from.out_if(bridge), to.in_if(bridge)],
        };
        for rule in pair {
            push_once(&mut rules, rule.then(Target::Accept));
        }
    }
    rules
}

fn nat(carried: &Carried<'_>) -> Vec<Rule> {
    let wildcard = carried.instance.link_wildcard();
    let masquerade = |subnet: Ipv4Network, but: &str| {
        Rule::when()
            .src(subnet)
            .not_out_if(but)
            .then(Target::Masquerade)
    };
    let pools = carried.pools.iter();
    let mut rules: Vec<Rule> = pools.map(|pool| masquerade(*pool, &wildcard)).collect();
    for side in carried.sides {
        match side.standing {
            Standing::Ours | Standing::Hosted => {
                push_once(&mut rules, masquerade(side.subnet, &side.bridge));
            }
            Standing::Joined => {}
        }
    }
    rules
}

/// Two subnets on a bridge may need the same rule.
pub(super) fn push_once(rules: &mut Vec<Rule>, rule: Rule) {
    if !rules.contains(&rule) {
        rules.push(rule);
    }
}

fn mss(carried: &Carried<'_>) -> Vec<Rule> {
    match carried.pools.is_empty() && routed_bridges(carried.sides).is_empty() {
        true => Vec::new(),
        false => vec![Rule::when().tcp_syn().then(Target::ClampMss)],
    }
}
