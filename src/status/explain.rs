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

use super::translation::{self, Incoming, NatResult};
use crate::reconcile::firewall::isolated::rules::POLICY;
use crate::reconcile::host_network::apart;

/// Everything on the path of the packet.
pub struct PacketPath<'a> {
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
    pub other_vm_subnets: &'a [Ipv4Network],
    /// The link of a VM of any daemon that the host would forward the packet to.
    pub route_to_vm: Option<&'a str>,
    /// The destination NAT rules of the host.
    pub nat_tables: &'a [Translations],
}

/// Evaluates a packet that leaves the VM with the VM's source address and MAC. `text` is the displayed form of the packet.
pub fn explain(path: &PacketPath<'_>, packet: &Packet, displayed: String) -> Explanation {
    let policy = path.policy;
    let (verdict, place, rule, entry) = match packet.destination == path.block.gateway() {
        true => decide_to_gateway(path, packet),
        false => decide_forwarded(path, policy, packet),
    };
    Explanation {
        vm: path.vm.meta.name.clone(),
        packet: displayed,
        verdict,
        rule,
        chain: place,
        entry,
    }
}

type Decision = (Verdict, String, String, String);

fn decide_to_gateway(path: &PacketPath<'_>, packet: &Packet) -> Decision {
    let entry = "the gateway of the VM accepts ping only".to_owned();
    let place = "namespace INPUT".to_owned();
    match packet.transport {
        None => {
            let rule = path.ruleset.rules(TableName::Filter, "INPUT").first();
            let rule = rule
                .map(|rule| format!("-A INPUT {rule}"))
                .unwrap_or_default();
            (Verdict::Allow, place, rule, entry)
        }
        Some(_) => (Verdict::Deny, place, "-P INPUT DROP".to_owned(), entry),
    }
}

fn decide_forwarded(path: &PacketPath<'_>, policy: &Policy, packet: &Packet) -> Decision {
    let (verdict, origin) = policy.evaluate(packet);
    let is_host_address = path.host_addresses.contains(&packet.destination);
    match (verdict, is_host_address) {
        (Verdict::Allow, true) => match decide_to_host(path, policy, packet) {
            (Verdict::Allow, place, rule, entry) => {
                check_host_nat(path, packet, (Verdict::Allow, place, rule, entry))
            }
            denied => denied,
        },
        (Verdict::Allow, false) if other_vm_subnet(path, packet).is_some() => {
            deny_to_other_vms(path, packet)
        }
        (Verdict::Allow | Verdict::Deny, _) => {
            let rule = matching_rule(path.ruleset, packet);
            let place = format!("namespace {POLICY}");
            let decision = (verdict, place, rule, origin.to_string());
            match verdict {
                Verdict::Allow => check_host_nat(path, packet, decision),
                Verdict::Deny => decision,
            }
        }
    }
}

/// For a packet that the namespace accepts: the host drops it if it translates the destination, or if the route leads to another VM.
fn check_host_nat(path: &PacketPath<'_>, packet: &Packet, allowed: Decision) -> Decision {
    let link = owner::vm_names(path.instance, path.vm.meta.uid).host_link;
    let incoming = Incoming {
        packet,
        source: path.block.guest(),
        link: &link,
        host_addresses: path.host_addresses,
    };
    let chain = path.instance.chain(apart::ROLE);
    let vm_links = path.instance.link_wildcard();
    let deny = |rule: String, entry: String| {
        let place = format!("host mangle {chain}");
        (Verdict::Deny, place, rule, entry)
    };
    match (
        translation::evaluate(path.nat_tables, incoming),
        path.route_to_vm,
    ) {
        (NatResult::Translated { rule, place }, _) => deny(
            format!("-A {chain} -i {vm_links} -m conntrack --ctstate DNAT -j DROP"),
            format!(
                "the host translates the destination ({place}: {rule}), and allow and drop were evaluated for the original one"
            ),
        ),
        (_, Some(link)) => deny(
            format!(
                "-A {chain} -i {vm_links} -m devgroup --dst-group {:#x}/{:#x} -j DROP",
                link_group::ANY,
                link_group::MASK
            ),
            format!("{link} leads to other VMs, which isolated VMs cannot reach"),
        ),
        (NatResult::Unchanged, None) => allowed,
        (NatResult::Unknown(count), None) => {
            let (verdict, place, rule, entry) = allowed;
            let qualified_entry = format!(
                "{entry}, unless the host translates the destination: {count} of its nat rules cannot be decoded, and packets that they translate are dropped ({chain})"
            );
            (verdict, place, rule, qualified_entry)
        }
    }
}

/// For a packet to the host itself that the namespace accepts: the rules of the host decide.
fn decide_to_host(path: &PacketPath<'_>, policy: &Policy, packet: &Packet) -> Decision {
    let chain = path.instance.chain("RAW");
    let place = format!("host raw {chain}");
    let host_entry = policy
        .host_access_entries()
        .find(|entry: &Entry| entry.matches(packet));
    match host_entry {
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

fn other_vm_subnet(path: &PacketPath<'_>, packet: &Packet) -> Option<Ipv4Network> {
    let mut subnets = path.other_vm_subnets.iter();
    subnets
        .find(|subnet| subnet.contains(packet.destination))
        .copied()
}

/// For a packet to a VM of another mode that the namespace accepts: the host drops it.
fn deny_to_other_vms(path: &PacketPath<'_>, packet: &Packet) -> Decision {
    let chain = path.instance.chain("OUT");
    let subnet = other_vm_subnet(path, packet).map(|subnet| subnet.to_string());
    let subnet = subnet.unwrap_or_default();
    (
        Verdict::Deny,
        format!("host FORWARD {chain}"),
        format!("-A {chain} to {subnet} -j DROP"),
        format!("{subnet} has VMs on a bridge or a CNI network, which isolated VMs cannot reach"),
    )
}

/// The rule of the policy that decides: as in the kernel, the first one that matches.
fn matching_rule(ruleset: &Ruleset, packet: &Packet) -> String {
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
