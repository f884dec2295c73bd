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

use std::collections::BTreeSet;

use ipnetwork::Ipv4Network;

use super::apart;
use super::limits;
use super::rule_input::{BridgeKind, BridgeSubnet, RuleInput, push_once};
use super::state::Jump;
use crate::api::policy::{self, Entry};
use crate::host::rule::{AddrType, Chain, CtState, Match, Protocol, Rule, TableName, Target};

/// A chain of ours and its table.
pub type TableChain = (TableName, Chain);

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
pub fn chains(input: &RuleInput<'_>) -> Vec<TableChain> {
    let label = input.instance.host_network_label().to_string();
    let isolated = |rules: Vec<Rule>| match input.pools.is_empty() {
        true => Vec::new(),
        false => rules,
    };
    let mut chains = vec![
        (TableName::Raw, "RAW", isolated(raw(input))),
        (TableName::Raw, "CT", limits::timeouts(input)),
        (TableName::Raw, "SRC", isolated(spoofed_sources(input))),
        (TableName::Mangle, "MSS", mss(input)),
        (TableName::Mangle, "LIMIT", limits::from_vms(input)),
        (TableName::Mangle, "NEAR", limits::by_destination(input)),
        (TableName::Mangle, "ODD", limits::unknown_sources(input)),
        (TableName::Mangle, "LAN", limits::to_neighbours(input)),
        (TableName::Mangle, limits::REFUSED, limits::refused(input)),
        (TableName::Mangle, "LIMITIN", limits::to_vms(input)),
        (TableName::Mangle, apart::ROLE, apart::rules(input)),
        (TableName::Nat, "NAT", nat(input)),
        (TableName::Filter, "OUT", isolated(from_isolated(input))),
        (TableName::Filter, "IN", isolated(to_isolated())),
        (TableName::Filter, "HOST", isolated(to_host(input))),
        (TableName::Filter, "SRC", isolated(spoofed_sources(input))),
        (TableName::Filter, "BR", bridge_forward(input)),
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
            (table, Chain::user(input.instance.chain(role), rules))
        })
        .collect()
}

/// The jumps into our chains; each must be first in its chain.
pub fn jumps(input: &RuleInput<'_>, docker_user: bool) -> Vec<Jump> {
    let instance = input.instance;
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
    let bridges: BTreeSet<&str> = input
        .bridge_subnets
        .iter()
        .map(|s| s.bridge.as_str())
        .collect();
    // Once for each link that carries packets of VMs.
    let from_each = |role: &str| {
        let on_bridge = |bridge: &&str| Rule::when().in_if(*bridge).jump(instance.chain(role));
        let isolated = (!input.pools.is_empty()).then(|| from(role));
        let rules = isolated.into_iter();
        rules
            .chain(bridges.iter().map(on_bridge))
            .collect::<Vec<_>>()
    };
    // A packet that arrives at a port of a bridge enters the host as the bridge's packet.
    let not_from = |role: &str| Rule::when().not_in_if(&ours).jump(instance.chain(role));
    let mut mss = vec![from("MSS"), to("MSS")];
    if input.pools.is_empty() {
        mss.clear();
    }
    for bridge in routed_bridges(input.bridge_subnets) {
        let (out, back) = (Rule::when().in_if(bridge), Rule::when().out_if(bridge));
        let pair = [out.not_out_if(bridge), back.not_in_if(bridge)];
        mss.extend(pair.map(|rule| rule.jump(instance.chain("MSS"))));
    }
    let forward_rules = [vec![all(apart::ROLE)], mss, vec![all("LIMITIN")]].concat();
    let mut raw = vec![from("RAW"), not_from("SRC")];
    raw.extend(from_each("CT"));
    let mut jumps = vec![
        jump(TableName::Raw, "PREROUTING", raw),
        jump(TableName::Mangle, "PREROUTING", from_each("LIMIT")),
        jump(TableName::Mangle, "FORWARD", forward_rules),
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
    let written = chains(input);
    for jump in &mut jumps {
        let leads_to_written =
            |rule: &Rule| written.iter().any(|(_, to)| rule.jump() == Some(&to.name));
        jump.rules.retain(leads_to_written);
    }
    jumps.retain(|jump| !jump.rules.is_empty());
    jumps
}

/// Before any DNAT: drops packets from our VMs to any address of the host, or from a source that is not ours.
fn raw(input: &RuleInput<'_>) -> Vec<Rule> {
    let host_ports = host_port_rules(input, &Target::Return);
    let local_addresses = [AddrType::Local, AddrType::Broadcast]
        .map(|kind| Rule::when().dst_type([kind]).then(Target::Drop));
    let sources = input
        .pools
        .iter()
        .map(|pool| Rule::when().src(*pool).then(Target::Return));
    host_ports
        .into_iter()
        .chain(local_addresses)
        .chain(sources)
        .chain([Rule::when().then(Target::Drop)])
        .collect()
}

/// Drops packets that have an isolated VM's address but did not arrive on a link of ours: another program has made such a link a port of a
/// bridge, or has taken it over otherwise. Packets that the host sends to itself arrive on `lo`.
fn spoofed_sources(input: &RuleInput<'_>) -> Vec<Rule> {
    let drop = |pool: &Ipv4Network| Rule::when().src(*pool).then(Target::Drop);
    [Rule::when().in_if("lo").then(Target::Return)]
        .into_iter()
        .chain(input.pools.iter().map(drop))
        .collect()
}

/// Only packets that `raw` has passed arrive here.
fn to_host(input: &RuleInput<'_>) -> Vec<Rule> {
    let mut rules = host_port_rules(input, &Target::Accept);
    rules.push(Rule::when().then(Target::Drop));
    rules
}

fn host_port_rules(input: &RuleInput<'_>, target: &Target) -> Vec<Rule> {
    let opening = |(pool, entry): &(Ipv4Network, Entry)| opening_rules(*pool, entry, target);
    input.host_ports.iter().flat_map(opening).collect()
}

/// The rules that one entry of an `allow` list is compiled to, for a pool: two without a protocol.
fn opening_rules(pool: Ipv4Network, entry: &Entry, target: &Target) -> Vec<Rule> {
    let Some(ports) = entry.ports else {
        return Vec::new();
    };
    let protocols: &[Protocol] = match entry.protocol {
        Some(policy::Protocol::Tcp) => &[Protocol::Tcp],
        Some(policy::Protocol::Udp) => &[Protocol::Udp],
        None => &[Protocol::Tcp, Protocol::Udp],
    };
    let rule = |protocol: &Protocol| {
        Rule::when()
            .src(pool)
            .dst(entry.network)
            .dport(*protocol, ports.first..=ports.last)
            .then(target.clone())
    };
    protocols.iter().map(rule).collect()
}

/// Whether a rule, which may have a label, was compiled from this entry, which opens an address of the host.
pub fn is_opening(rule: &Rule, pool: Ipv4Network, entry: &Entry) -> bool {
    let Rule::Known { when, then } = rule else {
        return false;
    };
    let unlabelled = Match {
        comment: None,
        ..(**when).clone()
    };
    entry.may_allow_host_access()
        && opening_rules(pool, entry, then).contains(&unlabelled.then(then.clone()))
}

/// Packets from our isolated VMs: not to each other, not to VMs on bridges or CNI networks, and none that cannot be masqueraded.
fn from_isolated(input: &RuleInput<'_>) -> Vec<Rule> {
    let to_isolated = Rule::when().out_if(input.instance.link_wildcard());
    let mut rules = vec![to_isolated.then(Target::Drop)];
    for bridge_subnet in input.bridge_subnets {
        let to_side = Rule::when().out_if(&bridge_subnet.bridge);
        let rule = match bridge_subnet.kind {
            BridgeKind::Managed => to_side,
            BridgeKind::UnmanagedLocalGateway | BridgeKind::UnmanagedRemoteGateway => {
                to_side.dst(bridge_subnet.subnet)
            }
        };
        push_once(&mut rules, rule.then(Target::Drop));
    }
    let to_cni = |subnet: &Ipv4Network| Rule::when().dst(*subnet).then(Target::Drop);
    rules.extend(input.cni_subnets.iter().map(to_cni));
    rules.push(Rule::when().ctstate(NOT_TRANSLATED).then(Target::Drop));
    rules.extend(to_foreign(input, &Rule::when()));
    rules.push(Rule::when().then(Target::Accept));
    rules
}

/// Packets that belong to no flow are not masqueraded: they would leave with a VM's private address.
const NOT_TRANSLATED: [CtState; 2] = [CtState::Invalid, CtState::Untracked];

/// Behind an unmanaged bridge of this host, such as Docker's, are the containers of its owner. The owner's rules, which are evaluated after
/// ours, decide who may reach them.
fn to_foreign(input: &RuleInput<'_>, from: &Match) -> Vec<Rule> {
    let return_to_owner = |bridge: &String| from.clone().out_if(bridge).then(Target::Return);
    let bridge_subnets = input.bridge_subnets;
    let foreign = input.foreign.iter();
    let other = foreign.filter(|name| {
        bridge_subnets
            .iter()
            .all(|bridge_subnet| bridge_subnet.bridge != **name)
    });
    other.map(return_to_owner).collect()
}

/// Bridges that this host routes for.
fn routed_bridges(bridge_subnets: &[BridgeSubnet]) -> BTreeSet<&str> {
    let routed = bridge_subnets
        .iter()
        .filter(|bridge_subnet| bridge_subnet.kind != BridgeKind::UnmanagedRemoteGateway);
    routed.map(|side| side.bridge.as_str()).collect()
}

/// Packets to our VMs: only replies.
fn to_isolated() -> Vec<Rule> {
    vec![
        Rule::when()
            .ctstate([CtState::Established, CtState::Related])
            .then(Target::Accept),
        Rule::when().then(Target::Drop),
    ]
}

/// Packets from and to VMs on bridges, whatever the policy of the host's chain; Docker sets it to DROP.
fn bridge_forward(input: &RuleInput<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for BridgeSubnet {
        bridge,
        subnet,
        kind: mode,
    } in input.bridge_subnets
    {
        let (from, to) = (
            Rule::when().in_if(bridge).src(*subnet),
            Rule::when().out_if(bridge).dst(*subnet),
        );
        let routed = match mode {
            BridgeKind::Managed => Some(Rule::when().in_if(bridge)),
            BridgeKind::UnmanagedLocalGateway => Some(from.clone()),
            // Nothing is translated there.
            BridgeKind::UnmanagedRemoteGateway => None,
        };
        if let Some(routed) = routed {
            let leaving = routed.clone().not_out_if(bridge);
            push_once(
                &mut rules,
                leaving.ctstate(NOT_TRANSLATED).then(Target::Drop),
            );
            for rule in to_foreign(input, &routed) {
                push_once(&mut rules, rule);
            }
        }
        let pair = match mode {
            BridgeKind::Managed => [Rule::when().in_if(bridge), Rule::when().out_if(bridge)],
            BridgeKind::UnmanagedLocalGateway => [from, to],
            BridgeKind::UnmanagedRemoteGateway => [from.out_if(bridge), to.in_if(bridge)],
        };
        for rule in pair {
            push_once(&mut rules, rule.then(Target::Accept));
        }
    }
    rules
}

fn nat(input: &RuleInput<'_>) -> Vec<Rule> {
    let wildcard = input.instance.link_wildcard();
    let masquerade = |subnet: Ipv4Network, excluded_link: &str| {
        Rule::when()
            .src(subnet)
            .not_out_if(excluded_link)
            .then(Target::Masquerade)
    };
    let pools = input.pools.iter();
    let mut rules: Vec<Rule> = pools.map(|pool| masquerade(*pool, &wildcard)).collect();
    for bridge_subnet in input.bridge_subnets {
        match bridge_subnet.kind {
            BridgeKind::Managed | BridgeKind::UnmanagedLocalGateway => {
                push_once(
                    &mut rules,
                    masquerade(bridge_subnet.subnet, &bridge_subnet.bridge),
                );
            }
            BridgeKind::UnmanagedRemoteGateway => {}
        }
    }
    rules
}

fn mss(input: &RuleInput<'_>) -> Vec<Rule> {
    match input.pools.is_empty() && routed_bridges(input.bridge_subnets).is_empty() {
        true => Vec::new(),
        false => vec![Rule::when().tcp_syn().then(Target::ClampMss)],
    }
}
