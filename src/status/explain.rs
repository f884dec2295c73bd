//! Finds the rule that decides about a packet that a VM sends, and the line of the YAML that the rule was compiled from. Pure.
//! Out of scope: observing the host (an argument), evaluating a chain ([`super::traverse`]), output for users.
//!
//! # Why
//! The verdict is that of the compiled rules, in the order of the kernel's hooks, and the entry is read from the rule that decided: neither
//! can differ from what the firewall does. Nothing here knows the policy.

use std::net::Ipv4Addr;

use super::traverse::{End, HookPacket, PacketLink, Traversal, traverse};
use crate::api::network::{Block, Mac};
use crate::api::policy::{self, Origin, Policy, Verdict};
use crate::api::view::Explanation;
use crate::api::vm::Vm;
use crate::host::iptables::Translations;
use crate::host::rule::{AddrType, Match, Protocol, Rule, Ruleset, TableName, Target, Test};
use crate::owner::{Instance, TAP, UPLINK};
use crate::reconcile::firewall::isolated::rules::{ALLOW, DENY, POLICY};
use crate::reconcile::host_network::apart;
use crate::reconcile::host_network::rules::is_opening;

/// A VM, and everything on the path of its packets.
pub struct PacketPath<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// The block of the VM.
    pub block: Block,
    /// The MAC of the VM.
    pub guest_mac: Mac,
    /// The rules of the VM's namespace.
    pub ruleset: &'a Ruleset,
    /// The host.
    pub host: &'a HostPath,
    /// What is to be known besides the decision.
    pub note: Option<String>,
}

/// What a packet passes on the host.
pub struct HostPath {
    /// The daemon that owns the VM.
    pub instance: Instance,
    /// The link on which the packet arrives.
    pub in_link: PacketLink,
    /// The rules of the daemon in the host's tables, and those of other daemons that concern isolated VMs.
    pub ruleset: Ruleset,
    /// The destination NAT rules of the host, as far as they could be read.
    pub nat_tables: Vec<Translations>,
    /// The addresses of the host.
    pub addresses: Vec<Ipv4Addr>,
    /// The type of the destination address.
    pub destination_type: AddrType,
    /// The link that the host forwards the packet to; `None`: it has no route.
    pub out_link: Option<PacketLink>,
}

/// Evaluates a packet that leaves the VM with the VM's source address and MAC. `displayed` is the displayed form of the packet.
pub fn explain(path: &PacketPath<'_>, packet: &policy::Packet, displayed: String) -> Explanation {
    let decision = path.in_namespace(packet);
    let decision = match (decision.verdict, path.is_local(packet.destination)) {
        (Verdict::Allow, false) => path.on_host(packet, decision),
        (Verdict::Allow, true) | (Verdict::Deny, _) => decision,
    };
    let is_forwarded = decision.verdict == Verdict::Allow && !path.is_local(packet.destination);
    let no_route = (is_forwarded && path.host.out_link.is_none())
        .then(|| "the host has no route to it".to_owned());
    Explanation {
        vm: path.vm.meta.name.clone(),
        packet: displayed,
        verdict: decision.verdict,
        rule: decision.rule,
        chain: decision.place,
        entry: decision.entry,
        note: path.note.clone().or(no_route),
    }
}

/// The rule that decided.
struct Decision {
    verdict: Verdict,
    place: String,
    rule: String,
    entry: String,
}

/// A change of the destination by the host.
struct Translation {
    place: String,
    rule: String,
    /// The new address and port, if the packet is for the host itself.
    to_host: Option<(Ipv4Addr, Option<u16>)>,
}

impl PacketPath<'_> {
    /// Whether the namespace delivers packets to this address to itself.
    fn is_local(&self, destination: Ipv4Addr) -> bool {
        [
            self.block.gateway(),
            self.block.network().network(),
            self.block.broadcast(),
        ]
        .contains(&destination)
    }

    /// The tables of the namespace: it has only `filter`.
    fn in_namespace(&self, packet: &policy::Packet) -> Decision {
        let link = |name: &str| PacketLink {
            name: name.to_owned(),
            group: 0,
        };
        let destination = packet.destination;
        let (hook, out_link) = match self.block.network().contains(destination) {
            _ if self.is_local(destination) => ("INPUT", None),
            true => ("FORWARD", Some(link(TAP))),
            false => ("FORWARD", Some(link(UPLINK))),
        };
        let destination_type = match (destination == self.block.gateway(), hook) {
            (true, _) => AddrType::Local,
            (false, "INPUT") => AddrType::Broadcast,
            (false, _) => AddrType::Unicast,
        };
        let packet = HookPacket {
            mac: Some(self.guest_mac.0),
            destination_type,
            in_link: link(TAP),
            out_link,
            ..self.hook_packet(packet)
        };
        let traversal = traverse(self.ruleset.chains(TableName::Filter), hook, &packet);
        // Behind the rule that chose it, these chains only drop, reject or limit.
        let mut rules = traversal.rules.iter();
        let deciding = rules.rfind(|(chain, _)| ![ALLOW, DENY].contains(chain));
        let (chain, rule) = match deciding {
            Some((chain, rule)) => (*chain, appended(chain, rule)),
            None => (hook, format!("-P {hook} DROP")),
        };
        let comment = deciding.and_then(|(_, rule)| rule.comment());
        let entry = match (hook, chain, comment) {
            (_, POLICY, Some(origin)) => origin,
            ("INPUT", _, _) => "the gateway of the VM accepts ping only",
            _ => "packets of the VM are forwarded to other subnets only",
        };
        Decision {
            verdict: match traversal.end {
                End::Accepted => Verdict::Allow,
                End::Dropped | End::Translated | End::Returned => Verdict::Deny,
            },
            place: format!("namespace {chain}"),
            rule,
            entry: entry.to_owned(),
        }
    }

    /// The tables of the host, for a packet that the namespace accepts.
    fn on_host(&self, packet: &policy::Packet, allowed: Decision) -> Decision {
        let host = self.host;
        let mut packet = HookPacket {
            destination_type: host.destination_type,
            in_link: host.in_link.clone(),
            ..self.hook_packet(packet)
        };
        let mut undecided = 0;
        for table in [TableName::Raw, TableName::Mangle] {
            let traversal = traverse(host.ruleset.chains(table), "PREROUTING", &packet);
            undecided += traversal.unknown;
            if traversal.end == End::Dropped {
                return self.denied(table, &traversal, None);
            }
        }
        let (translation, unknown) = host.translation(&packet);
        let mut is_for_host = packet.destination_type == AddrType::Local;
        match &translation {
            Some(translation) => {
                packet.translated = true;
                is_for_host = translation.to_host.is_some();
                if let Some((address, port)) = translation.to_host {
                    packet.destination = address;
                    packet.port = port;
                    packet.destination_type = AddrType::Local;
                }
            }
            None => packet.out_link = host.out_link.clone().filter(|_| !is_for_host),
        }
        let hook = match is_for_host {
            true => "INPUT",
            false => "FORWARD",
        };
        let mut accepted = None;
        for table in [TableName::Mangle, TableName::Filter] {
            let traversal = traverse(host.ruleset.chains(table), hook, &packet);
            undecided += traversal.unknown;
            match traversal.end {
                End::Dropped => return self.denied(table, &traversal, translation.as_ref()),
                End::Accepted => accepted = Some((table, traversal)),
                End::Translated | End::Returned => {}
            }
        }
        let decision = match accepted.filter(|_| is_for_host) {
            Some((table, traversal)) => self.opened(table, &traversal),
            None => allowed,
        };
        self.qualified(decision, unknown, undecided)
    }

    /// The packet as the VM sends it, before any namespace has received it.
    fn hook_packet(&self, packet: &policy::Packet) -> HookPacket {
        HookPacket {
            source: self.block.guest(),
            mac: None,
            destination: packet.destination,
            destination_type: AddrType::Unicast,
            protocol: match packet.transport {
                None => Protocol::Icmp,
                Some((policy::Protocol::Tcp, _)) => Protocol::Tcp,
                Some((policy::Protocol::Udp, _)) => Protocol::Udp,
            },
            port: packet.transport.and_then(|(_, port)| port),
            in_link: self.host.in_link.clone(),
            out_link: None,
            translated: false,
        }
    }

    /// A rule of the host dropped the packet.
    fn denied(
        &self,
        table: TableName,
        traversal: &Traversal<'_>,
        translation: Option<&Translation>,
    ) -> Decision {
        let entry = match (translation, traversal.rules.last()) {
            (Some(translation), _) => format!(
                "the host translates the destination ({}: {}), and allow and drop were evaluated for the original one",
                translation.place, translation.rule
            ),
            (None, Some((_, Rule::Known { when, .. }))) => self.reason(when),
            (None, _) => NO_REASON.to_owned(),
        };
        host_decision(Verdict::Deny, table, traversal, entry)
    }

    /// Why a rule with these conditions drops the packet.
    fn reason(&self, when: &Match) -> String {
        let isolated = "which isolated VMs cannot reach";
        if self.host.destination_type == AddrType::Local {
            return "an address of the host itself: only an `allow` entry with this single address and a port allows it"
                .to_owned();
        }
        if when.dst_type.contains(&AddrType::Broadcast) {
            return "a broadcast address of the host's networks".to_owned();
        }
        if let Some(Test::Is(subnet)) = when.dst {
            return format!("{subnet} has VMs on a bridge or a CNI network, {isolated}");
        }
        match (&when.out_if, when.out_group, &self.host.out_link) {
            (Some(_), _, Some(link)) | (_, Some(_), Some(link)) => {
                format!("{} leads to other VMs, {isolated}", link.name)
            }
            _ => NO_REASON.to_owned(),
        }
    }

    /// A rule of the host accepted a packet to the host itself.
    fn opened(&self, table: TableName, traversal: &Traversal<'_>) -> Decision {
        let default = Policy::default();
        let policy = self.vm.spec.network.policy().unwrap_or(&default);
        let deciding = traversal.rules.last().map(|(_, rule)| *rule);
        let origin = policy.allow.iter().enumerate().find(|(_, entry)| {
            let is_origin = |rule: &Rule| {
                source_network(rule).is_some_and(|pool| is_opening(rule, pool, entry))
            };
            deciding.is_some_and(is_origin)
        });
        let entry = match origin {
            Some((index, entry)) => Origin::Allow(index, *entry).to_string(),
            // The rules of the host are those of all VMs of a range.
            None => "an `allow` entry of another VM of the range".to_owned(),
        };
        host_decision(Verdict::Allow, table, traversal, entry)
    }

    /// The decision, with what could not be decided.
    fn qualified(&self, mut decision: Decision, nat_rules: usize, rules: usize) -> Decision {
        if nat_rules > 0 {
            let chain = self.host.instance.chain(apart::ROLE);
            decision.entry += &format!(
                ", unless the host translates the destination: {nat_rules} of its nat rules cannot be decoded, and packets that they translate are dropped ({chain})"
            );
        }
        if rules > 0 {
            decision.entry += &format!(
                ", unless another daemon drops it: {rules} of its rules cannot be decoded"
            );
        }
        decision
    }
}

/// The entry of a drop by a rule that has no entry in the YAML.
const NO_REASON: &str = "the host's rules for VMs";

impl HostPath {
    /// How the host translates the destination, and the number of rules on the way that cannot be decided.
    fn translation(&self, packet: &HookPacket) -> (Option<Translation>, usize) {
        let mut unknown = 0;
        for table in &self.nat_tables {
            let traversal = traverse(&table.chains, &table.entry, packet);
            let (End::Translated, Some((chain, rule))) = (traversal.end, traversal.rules.last())
            else {
                unknown += traversal.unknown;
                continue;
            };
            let translation = Translation {
                place: format!("{} {chain}", table.table),
                rule: rule.to_string(),
                to_host: self.new_destination(rule, packet),
            };
            return (Some(translation), unknown);
        }
        (None, unknown)
    }

    /// The new address and port, if they are known and the address is one of the host.
    fn new_destination(&self, rule: &Rule, packet: &HookPacket) -> Option<(Ipv4Addr, Option<u16>)> {
        let Rule::Known {
            then: Target::Translate(text),
            ..
        } = rule
        else {
            return None;
        };
        let to = text.strip_prefix("DNAT --to-destination ")?;
        let (address, port) = match to.split_once(':') {
            Some((address, port)) => (address, Some(port.parse().ok()?)),
            None => (to, packet.port),
        };
        let address = address.parse().ok()?;
        self.addresses.contains(&address).then_some((address, port))
    }
}

fn host_decision(
    verdict: Verdict,
    table: TableName,
    traversal: &Traversal<'_>,
    entry: String,
) -> Decision {
    let (chain, rule) = match traversal.rules.last() {
        Some((chain, rule)) => (*chain, appended(chain, rule)),
        None => Default::default(),
    };
    Decision {
        verdict,
        place: format!("host {table} {chain}"),
        rule,
        entry,
    }
}

fn appended(chain: &str, rule: &Rule) -> String {
    format!("-A {chain} {rule}")
}

fn source_network(rule: &Rule) -> Option<ipnetwork::Ipv4Network> {
    match rule {
        Rule::Known { when, .. } => match when.src {
            Some(Test::Is(network)) => Some(network),
            Some(Test::Not(_)) | None => None,
        },
        Rule::Foreign(_) => None,
    }
}
