//! Determines whether destination NAT rules of the host, as far as they could be read, redirect a packet. Pure.
//! Out of scope: dropping such a packet ([`crate::reconcile::host_network::apart`]).

use std::net::Ipv4Addr;

use crate::api::policy::{self, Packet};
use crate::host::iptables::Translations;
use crate::host::rule::{AddrType, Chain, CtState, LinkGroup, Match, Protocol, Rule, Target, Test};
use crate::owner::link_group;

/// The maximum depth of jumps, as in the kernel (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

/// A packet of a VM that arrives at the host.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// The packet.
    pub packet: &'a Packet,
    /// The VM's address.
    pub source: Ipv4Addr,
    /// The host end of its veth.
    pub link: &'a str,
    /// The addresses of the host.
    pub host_addresses: &'a [Ipv4Addr],
}

/// The effect of the rules on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatResult {
    /// Its destination is unchanged.
    Unchanged,
    /// This rule changes its destination.
    Translated {
        /// The rule.
        rule: String,
        /// Its table and chain.
        place: String,
    },
    /// No decoded rule changes its destination, but this number of rules on its path could not be decoded.
    Unknown(usize),
}

/// Evaluates the rules for a packet.
pub fn evaluate(tables: &[Translations], incoming: Incoming<'_>) -> NatResult {
    let mut unknown = 0;
    for table in tables {
        let mut traversal = Traversal {
            table,
            incoming,
            unknown: 0,
        };
        if let ChainResult::Translated { rule, chain } = traversal.chain(&table.entry, 0) {
            return NatResult::Translated {
                rule,
                place: format!("{} {chain}", table.table),
            };
        }
        unknown += traversal.unknown;
    }
    match unknown {
        0 => NatResult::Unchanged,
        _ => NatResult::Unknown(unknown),
    }
}

struct Traversal<'a> {
    table: &'a Translations,
    incoming: Incoming<'a>,
    unknown: usize,
}

/// The result of a chain.
enum ChainResult {
    Translated { rule: String, chain: String },
    Terminated,
    Returned,
}

impl Traversal<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> ChainResult {
        let is_named_chain = |chain: &&Chain| chain.name == name;
        let Some(chain) = self.table.chains.iter().find(is_named_chain) else {
            return ChainResult::Returned;
        };
        for rule in &chain.rules {
            let (when, then) = match rule {
                Rule::Known { when, then } => (when, then),
                Rule::Foreign(_) => {
                    self.unknown += 1;
                    continue;
                }
            };
            if !self.matches(when) {
                continue;
            }
            match then {
                Target::Accept | Target::Drop | Target::Reject(_) => {
                    return ChainResult::Terminated;
                }
                Target::Return => return ChainResult::Returned,
                Target::Translate(_) => {
                    return ChainResult::Translated {
                        rule: rule.to_string(),
                        chain: name.to_owned(),
                    };
                }
                Target::Jump(to) if depth < MAX_DEPTH => match self.chain(to, depth + 1) {
                    ChainResult::Returned => {}
                    other => return other,
                },
                Target::Jump(_) | Target::Masquerade | Target::ClampMss | Target::Timeout(_) => {}
            }
        }
        ChainResult::Returned
    }

    fn matches(&self, when: &Match) -> bool {
        let Incoming {
            packet,
            source,
            link,
            host_addresses,
        } = self.incoming;
        let protocol = match packet.transport {
            None => Protocol::Icmp,
            Some((policy::Protocol::Tcp, _)) => Protocol::Tcp,
            Some((policy::Protocol::Udp, _)) => Protocol::Udp,
        };
        let port = packet.transport.and_then(|(_, port)| port);
        let dst_type = match host_addresses.contains(&packet.destination) {
            true => AddrType::Local,
            false => AddrType::Unicast,
        };
        let matches_group = |group: &LinkGroup| link_group::ISOLATED & group.mask == group.value;
        test_holds(&when.in_if, |name| matches_link(name, link))
            && when.out_if.is_none()
            && test_holds(&when.src, |network| network.contains(source))
            && test_holds(&when.dst, |network| network.contains(packet.destination))
            && when.protocol.is_none_or(|expected| expected == protocol)
            && when
                .dport
                .as_ref()
                .is_none_or(|ports| port.is_some_and(|port| ports.contains(&port)))
            && when.icmp_type.is_none_or(|kind| kind == 8)
            && (when.ctstate.is_empty() || when.ctstate.contains(&CtState::New))
            && (when.dst_type.is_empty() || when.dst_type.contains(&dst_type))
            && when.in_group.as_ref().is_none_or(matches_group)
            && when.out_group.is_none()
            && when.mac_source.is_none()
            // Rules with limits match only packets beyond the limit.
            && when.connlimit.is_none()
            && when.source_rate.is_none()
    }
}

fn test_holds<T>(test: &Option<Test<T>>, predicate: impl Fn(&T) -> bool) -> bool {
    match test {
        None => true,
        Some(Test::Is(value)) => predicate(value),
        Some(Test::Not(value)) => !predicate(value),
    }
}

fn matches_link(pattern: &str, link: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(beginning) => link.starts_with(beginning),
        None => pattern == link,
    }
}
