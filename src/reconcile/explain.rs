//! Finds the rule that decides about a packet that a VM sends, and the line of the YAML that the rule was compiled from. Pure.
//! Out of scope: reading the addresses of the host (an argument), output for users.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use crate::api::network::Block;
use crate::api::policy::{self, Entry, Origin, Packet, Policy, Verdict};
use crate::api::view::Explanation;
use crate::api::vm::Vm;
use crate::host::iptables::Translations;
use crate::host::rule::{Protocol, Rule, Ruleset, TableName, Test};
use crate::owner::{self, Instance, link_group};

use super::firewall::rules::POLICY;
use super::ground::apart;
use super::translation::{self, Fate, Incoming};

/// Everything on the path of the packet.
pub struct Way<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// The block of the VM.
    pub block: Block,
    /// The policy of the VM.
    pub policy: &'a Policy,
    /// The rules of the VM.
    pub ruleset: &'a Ruleset,
    /// The instance that owns the chains on the host.
    pub instance: &'a Instance,
    /// The addresses of the host.
    pub host_addresses: &'a [Ipv4Addr],
    /// Subnets of VMs in other modes, of all daemons on the host.
    pub closed: &'a [Ipv4Network],
    /// The link of a VM of any daemon that the host would forward the packet to.
    pub neighbour: Option<&'a str>,
    /// The destination NAT rules of the host.
    pub translations: &'a [Translations],
}

/// Evaluates a packet that leaves the VM with the VM's source address and MAC. `text` is the displayed form of the packet.
pub fn explain(way: &Way<'_>, packet: &Packet, text: String) -> Explanation {
    let policy = way.policy;
    let (verdict, place, rule, entry) = match packet.destination == way.block.gateway() {
        true => to_gateway(way, packet),
        false => onwards(way, policy, packet),
    };
    Explanation {
        vm: way.vm.meta.name.clone(),
        packet: text,
        verdict,
        rule,
        place,
        entry,
    }
}

type Decision = (Verdict, String, String, String);

fn to_gateway(way: &Way<'_>, packet: &Packet) -> Decision {
    let entry = "the gateway of the VM accepts ping only".to_owned();
    let place = "namespace INPUT".to_owned();
    match packet.transport {
        None => {
            let rule = way.ruleset.rules(TableName::Filter, "INPUT").first();
            let rule = rule
                .map(|rule| format!("-A INPUT {rule}"))
                .unwrap_or_default();
            (Verdict::Allow, place, rule, entry)
        }
        Some(_) => (Verdict::Deny, place, "-P INPUT DROP".to_owned(), entry),
    }
}

fn onwards(way: &Way<'_>, policy: &Policy, packet: &Packet) -> Decision {
    let (verdict, origin) = policy.judge(packet);
    let at_host = way.host_addresses.contains(&packet.destination);
    match (verdict, at_host) {
        (Verdict::Allow, true) => match at_the_host(way, policy, packet) {
            (Verdict::Allow, place, rule, entry) => {
                unless_translated(way, packet, (Verdict::Allow, place, rule, entry))
            }
            denied => denied,
        },
        (Verdict::Allow, false) if among_other_vms(way, packet).is_some() => {
            to_other_vms(way, packet)
        }
        (Verdict::Allow | Verdict::Deny, _) => {
            let rule = rule_of(way.ruleset, packet);
            let place = format!("namespace {POLICY}");
            let found = (verdict, place, rule, origin.to_string());
            match verdict {
                Verdict::Allow => unless_translated(way, packet, found),
                Verdict::Deny => found,
            }
        }
    }
}

/// For a packet that the namespace accepts: the host drops it if it translates the destination, or if the route leads to another VM.
fn unless_translated(way: &Way<'_>, packet: &Packet, found: Decision) -> Decision {
    let link = owner::vm_names(way.instance, way.vm.meta.uid).host_link;
    let incoming = Incoming {
        packet,
        source: way.block.guest(),
        link: &link,
        host_addresses: way.host_addresses,
    };
    let chain = way.instance.chain(apart::ROLE);
    let ours = way.instance.link_wildcard();
    let dropped = |rule: String, entry: String| {
        let place = format!("host mangle {chain}");
        (Verdict::Deny, place, rule, entry)
    };
    match (translation::fate(way.translations, incoming), way.neighbour) {
        (Fate::Translated { rule, place }, _) => dropped(
            format!("-A {chain} -i {ours} -m conntrack --ctstate DNAT -j DROP"),
            format!(
                "the host translates the destination ({place}: {rule}), and allow and drop were evaluated for the original one"
            ),
        ),
        (_, Some(link)) => dropped(
            format!(
                "-A {chain} -i {ours} -m devgroup --dst-group {:#x}/{:#x} -j DROP",
                link_group::ANY,
                link_group::MASK
            ),
            format!("{link} leads to other VMs, which isolated VMs cannot reach"),
        ),
        (Fate::Untouched, None) => found,
        (Fate::Unknown(count), None) => {
            let (verdict, place, rule, entry) = found;
            let but = format!(
                "{entry}, unless the host translates the destination: {count} of its nat rules cannot be decoded, and packets that they translate are dropped ({chain})"
            );
            (verdict, place, rule, but)
        }
    }
}

/// For a packet to the host itself that the namespace accepts: the rules of the host decide.
fn at_the_host(way: &Way<'_>, policy: &Policy, packet: &Packet) -> Decision {
    let chain = way.instance.chain("RAW");
    let place = format!("host raw {chain}");
    let opening = policy
        .host_access_entries()
        .find(|entry: &Entry| entry.matches(packet));
    match opening {
        Some(entry) => {
            let index = policy.allow.iter().position(|e| *e == entry).unwrap_or(0);
            let rule = format!("-A {chain} -d {} -j RETURN", entry.network);
            (Verdict::Allow, place, rule, Origin::Allow(index, entry).to_string())
        }
        None => (
            Verdict::Deny,
            place,
            format!("-A {chain} -m addrtype --dst-type LOCAL -j DROP"),
            "an address of the host itself: only an `allow` entry with this single address and a port allows it"
                .to_owned(),
        ),
    }
}

fn among_other_vms(way: &Way<'_>, packet: &Packet) -> Option<Ipv4Network> {
    let mut closed = way.closed.iter();
    closed
        .find(|subnet| subnet.contains(packet.destination))
        .copied()
}

/// For a packet to a VM of another mode that the namespace accepts: the host drops it.
fn to_other_vms(way: &Way<'_>, packet: &Packet) -> Decision {
    let chain = way.instance.chain("OUT");
    let subnet = among_other_vms(way, packet).map(|subnet| subnet.to_string());
    let subnet = subnet.unwrap_or_default();
    (
        Verdict::Deny,
        format!("host FORWARD {chain}"),
        format!("-A {chain} to {subnet} -j DROP"),
        format!("{subnet} has VMs on a bridge or a CNI network, which isolated VMs cannot reach"),
    )
}

/// The rule of the policy that decides: as in the kernel, the first one that matches.
fn rule_of(ruleset: &Ruleset, packet: &Packet) -> String {
    let rules = ruleset.rules(TableName::Filter, POLICY);
    match rules.iter().find(|rule| matches(rule, packet)) {
        Some(rule) => format!("-A {POLICY} {rule}"),
        None => "-P FORWARD DROP".to_owned(),
    }
}

/// Whether a rule of the policy matches. These rules only match destination, protocol and port.
fn matches(rule: &Rule, packet: &Packet) -> bool {
    let Rule::Known { when, .. } = rule else {
        return false;
    };
    let transport = packet.transport.map(|(protocol, _)| match protocol {
        policy::Protocol::Tcp => Protocol::Tcp,
        policy::Protocol::Udp => Protocol::Udp,
    });
    let port = packet.transport.and_then(|(_, port)| port);
    let destination = match &when.dst {
        None => true,
        Some(Test::Is(network)) => network.contains(packet.destination),
        Some(Test::Not(network)) => !network.contains(packet.destination),
    };
    destination
        && (when.protocol.is_none() || when.protocol == transport)
        && when
            .dport
            .as_ref()
            .is_none_or(|ports| port.is_some_and(|port| ports.contains(&port)))
}
