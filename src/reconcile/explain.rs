//! Which rule decides about a packet that a VM sends, and which line of the YAML that rule came from. Pure.
//! Not here: what the host's addresses are (an argument), words around it.

use std::net::Ipv4Addr;

use crate::api::network::Block;
use crate::api::policy::{Entry, Origin, Packet, Policy, Verdict};
use crate::api::view::Explanation;
use crate::api::vm::Vm;
use crate::host::rule::{Rule, Ruleset, TableName};
use crate::owner::Instance;

use super::firewall::rules::{DENY, POLICY};

/// What the packet meets.
pub struct Way<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// Its block.
    pub block: Block,
    /// Its rules.
    pub ruleset: &'a Ruleset,
    /// Whose chains stand on the host.
    pub instance: &'a Instance,
    /// The host's own addresses.
    pub host_addresses: &'a [Ipv4Addr],
}

/// Judges a packet that leaves the VM with its own source address and MAC. `text` is the packet as it is to be shown.
pub fn explain(way: &Way<'_>, packet: &Packet, text: String) -> Explanation {
    let policy = way.vm.spec.network.policy();
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
    let entry = "the VM's own gateway answers ping, and nothing else".to_owned();
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
        (Verdict::Allow, true) => at_the_host(way, policy, packet),
        (Verdict::Allow | Verdict::Deny, _) => {
            let rule = rule_of(way.ruleset, &origin, packet);
            (
                verdict,
                format!("namespace {POLICY}"),
                rule,
                origin.to_string(),
            )
        }
    }
}

/// The namespace lets it go, the host's own rules have the last word.
fn at_the_host(way: &Way<'_>, policy: &Policy, packet: &Packet) -> Decision {
    let chain = way.instance.chain("RAW");
    let place = format!("host raw {chain}");
    let opening = policy
        .host_openings()
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
            "an address of the host itself: only an `allow` of that one address with a port opens it"
                .to_owned(),
        ),
    }
}

/// The first rule with that origin that is about the packet's protocol.
fn rule_of(ruleset: &Ruleset, origin: &Origin, packet: &Packet) -> String {
    let wanted = origin.to_string();
    let of_origin = |rule: &&Rule| rule.comment() == Some(wanted.as_str());
    let text = |rule: &Rule| format!("-A {POLICY} {rule}");
    let rules: Vec<String> = ruleset
        .rules(TableName::Filter, POLICY)
        .iter()
        .filter(of_origin)
        .map(text)
        .collect();
    let protocol = packet
        .transport
        .map(|(protocol, _)| format!("-p {protocol} "));
    let narrow = format!("-d {}/32 ", packet.destination);
    let fits = |rule: &&String| protocol.as_ref().is_none_or(|p| rule.contains(p.as_str()));
    rules
        .iter()
        .filter(fits)
        .find(|rule| rule.contains(&narrow))
        .or_else(|| rules.iter().find(fits))
        .or_else(|| rules.first())
        .cloned()
        .unwrap_or_else(|| format!("-A {POLICY} -j {DENY}"))
}
