//! Compiles a VM's policy to the rules of its namespace. Pure.
//! Out of scope: committing them.
//!
//! # Why
//! EVERY packet from the VM is evaluated, without an exception for established flows, so a destination that is removed from the list is
//! unreachable at once. Only packets to the VM are accepted because of the flow that they belong to.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::api::network::{Block, Mac};
use crate::api::policy::{self, Entry, METADATA, OnDeny, Origin, Policy, Verdict};
use crate::host::rule::{
    Chain, ConnLimit, CtState, Match, Policy as ChainPolicy, Protocol, Reject, Rule, Ruleset, Side,
    Table, TableName, Target,
};
use crate::owner::{TAP, UPLINK};
use crate::reconcile::limits::Limit;

/// The chain that contains the lists.
pub const POLICY: &str = "SLICE-POLICY";
/// The chain for denied packets.
pub const DENY: &str = "SLICE-DENY";
/// The chain for allowed packets: they pass, unless the VM has too many connections.
pub const ALLOW: &str = "SLICE-ALLOW";

/// The comment of the rules that drop what exceeds the limit.
pub const LIMIT: &str = "max_connections";

/// All rules of a VM's namespace.
pub fn compile(policy: &Policy, block: Block, guest_mac: Mac, limit: Limit) -> Ruleset {
    Ruleset::new([Table {
        name: TableName::Filter,
        chains: vec![
            Chain::builtin("INPUT", ChainPolicy::Drop, input(block, guest_mac)),
            Chain::builtin("FORWARD", ChainPolicy::Drop, forward(block, guest_mac)),
            Chain::builtin("OUTPUT", ChainPolicy::Drop, output(block)),
            Chain::user(POLICY, lists(policy)),
            Chain::user(ALLOW, allow(limit)),
            Chain::user(DENY, deny(policy.on_deny)),
        ],
    }])
}

/// The VM may ping its gateway, and reach nothing else in its namespace.
fn input(block: Block, guest_mac: Mac) -> Vec<Rule> {
    vec![
        Rule::when()
            .in_if(TAP)
            .src(host(block.guest()))
            .dst(host(block.gateway()))
            .mac_source(guest_mac.0)
            .echo_request()
            .jump(ALLOW),
    ]
}

/// The namespace itself sends to its VM only. An ICMP error goes to the source of the packet that caused it, and "time exceeded" is sent
/// before the forward chain is evaluated: to a spoofed source it would bypass every list.
fn output(block: Block) -> Vec<Rule> {
    vec![
        Rule::when()
            .out_if(TAP)
            .dst(host(block.guest()))
            .then(Target::Accept),
    ]
}

fn forward(block: Block, guest_mac: Mac) -> Vec<Rule> {
    vec![
        Rule::when()
            .in_if(UPLINK)
            .out_if(TAP)
            .ctstate([CtState::Established, CtState::Related])
            .then(Target::Accept),
        Rule::when()
            .in_if(TAP)
            .not_src(host(block.guest()))
            .then(Target::Drop),
        Rule::when()
            .in_if(TAP)
            .not_mac_source(guest_mac.0)
            .then(Target::Drop),
        Rule::when().in_if(TAP).out_if(UPLINK).jump(POLICY),
    ]
}

/// The ordered list of decisions; each rule's comment is the YAML entry that it was compiled from.
fn lists(policy: &Policy) -> Vec<Rule> {
    let mut rules = Vec::new();
    let exempt: Vec<Ipv4Addr> = match policy.allow_metadata {
        true => METADATA.to_vec(),
        false => Vec::new(),
    };
    // The opened addresses are exempt from the reserved ranges but not from the lists, so the lists are evaluated for them first.
    for address in &exempt {
        rules.extend(entries(policy, Some(*address)));
        rules.push(default_rule(policy, Some(*address)));
    }
    for network in policy::reserved() {
        let comment = Origin::Reserved(network).to_string();
        rules.push(Rule::when().dst(network).comment(comment).jump(DENY));
    }
    rules.extend(entries(policy, None));
    rules.push(default_rule(policy, None));
    rules
}

/// The rules of both lists. `only`: restricted to that address.
fn entries(policy: &Policy, only: Option<Ipv4Addr>) -> Vec<Rule> {
    let allow = policy.allow.iter().enumerate().map(|(index, entry)| {
        (
            *entry,
            Origin::Allow(index, *entry),
            Target::Jump(ALLOW.into()),
        )
    });
    let drop = policy.drop.iter().enumerate().map(|(index, entry)| {
        (
            *entry,
            Origin::Drop(index, *entry),
            Target::Jump(DENY.into()),
        )
    });
    allow
        .chain(drop)
        .filter_map(|(entry, origin, target)| Some((restrict(entry, only)?, origin, target)))
        .flat_map(|(entry, origin, target)| matching(entry, &origin, &target))
        .collect()
}

/// The entry restricted to one address; `None` if it does not contain the address.
fn restrict(entry: Entry, only: Option<Ipv4Addr>) -> Option<Entry> {
    match only {
        None => Some(entry),
        Some(address) => entry.network.contains(address).then(|| Entry {
            network: host(address),
            ..entry
        }),
    }
}

/// The rules of one entry: two if it has ports and no protocol.
fn matching(entry: Entry, origin: &Origin, target: &Target) -> Vec<Rule> {
    let protocols: &[Option<Protocol>] = match (entry.protocol, entry.ports) {
        (Some(policy::Protocol::Tcp), _) => &[Some(Protocol::Tcp)],
        (Some(policy::Protocol::Udp), _) => &[Some(Protocol::Udp)],
        (None, Some(_)) => &[Some(Protocol::Tcp), Some(Protocol::Udp)],
        (None, None) => &[None],
    };
    protocols
        .iter()
        .map(|protocol| {
            let mut rule = Rule::when();
            if entry.network.prefix() > 0 {
                rule = rule.dst(entry.network);
            }
            rule = match (*protocol, entry.ports) {
                (Some(protocol), Some(ports)) => rule.dport(protocol, ports.first..=ports.last),
                (Some(protocol), None) => rule.protocol(protocol),
                (None, _) => rule,
            };
            rule.comment(origin.to_string()).then(target.clone())
        })
        .collect()
}

fn default_rule(policy: &Policy, only: Option<Ipv4Addr>) -> Rule {
    let rule = match only {
        None => Rule::when(),
        Some(address) => Rule::when().dst(host(address)),
    };
    let rule = rule.comment(Origin::Default.to_string());
    match policy.default_verdict() {
        Verdict::Allow => rule.jump(ALLOW),
        Verdict::Deny => rule.jump(DENY),
    }
}

/// Only packets that create an entry in the connection tracking table are counted; others belong to an existing entry. A denied packet does
/// not reach this chain and does not use up the limit.
fn allow(limit: Limit) -> Vec<Rule> {
    let open = |above| ConnLimit {
        above,
        prefix: 32,
        side: Side::Source,
    };
    let new = || Rule::when().unconfirmed();
    let too_many = |rule: Match| rule.comment(LIMIT).then(Target::Drop);
    vec![
        Rule::when()
            .ctstate([CtState::Established, CtState::Related])
            .then(Target::Accept),
        too_many(new().connlimit(open(limit.all()))),
        new()
            .protocol(Protocol::Tcp)
            .rate(limit.new_rate())
            .then(Target::Accept),
        too_many(new().protocol(Protocol::Tcp)),
        too_many(new().connlimit(open(limit.other_protocols()))),
        new().rate(limit.new_rate()).then(Target::Accept),
        too_many(new()),
        Rule::when().then(Target::Accept),
    ]
}

fn deny(on_deny: OnDeny) -> Vec<Rule> {
    match on_deny {
        OnDeny::Drop => vec![Rule::when().then(Target::Drop)],
        OnDeny::Reject => vec![
            Rule::when()
                .protocol(Protocol::Tcp)
                .then(Target::Reject(Reject::TcpReset)),
            Rule::when().then(Target::Reject(Reject::IcmpAdminProhibited)),
        ],
    }
}

/// One address as a network.
pub fn host(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

/// The digest of a ruleset: 12 hexadecimal digits of a hash over its text.
pub fn digest(ruleset: &Ruleset) -> String {
    let hash = blake3::hash(ruleset.to_string().as_bytes());
    hash.to_hex()[..12].to_owned()
}
