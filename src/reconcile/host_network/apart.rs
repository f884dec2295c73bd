//! Rules that isolate a VM from every other VM on the host and from destinations that the host translates to. Pure.
//! Out of scope: the other rules of the host ([`super::rules`]).
//!
//! # Why
//! - These rules only drop. They are in `mangle FORWARD`, which packets pass before `filter FORWARD` and after the destination was
//!   translated (`NF_IP_PRI_MANGLE`, `NF_IP_PRI_NAT_DST`). So no earlier ACCEPT, whether of another daemon, a plugin or Docker, lets a
//!   packet through that they drop, and the order of the rules of different programs does not matter.
//! - A daemon knows only the names of its own links. Links of all daemons have groups in common ([`link_group`]) from their creation: a
//!   daemon's rules for its isolated VMs also apply to links that other daemons create later.
//! - An unmanaged bridge and the links of a CNI plugin have no group of ours, because we must not change them. There the daemon that runs
//!   VMs on them closes the subnets of its own VMs to isolated VMs of every daemon.
//! - The lists of a VM are evaluated in its namespace, for the destination that the guest uses. What the host then sends elsewhere (DNAT,
//!   REDIRECT, NETMAP, a published port, a service address) was evaluated for another destination, so it is dropped. Replies to masqueraded
//!   packets are not affected: only the source of such a flow is translated.

use super::rule_input::{BridgeKind, BridgeSubnet, RuleInput, push_once};
use crate::host::rule::{CtState, LinkGroup, Match, Rule, Target};
use crate::owner::link_group;

/// The name of the chain after the daemon's prefix.
pub const ROLE: &str = "APART";

/// All rules of the chain.
pub(super) fn rules(input: &RuleInput<'_>) -> Vec<Rule> {
    let any = LinkGroup::under(link_group::ANY, link_group::MASK);
    let drop = |when: Match| when.then(Target::Drop);
    let mut rules = Vec::new();
    if !input.pools.is_empty() {
        let ours = input.instance.link_wildcard();
        rules.extend([
            drop(Rule::when().in_if(&ours).out_group(any)),
            drop(Rule::when().out_if(&ours).in_group(any)),
            drop(translated(&ours)),
        ]);
    }
    let isolated = LinkGroup::only(link_group::ISOLATED);
    for BridgeSubnet {
        bridge,
        subnet,
        kind: mode,
    } in input.bridge_subnets
    {
        let (to, from) = (Rule::when().out_if(bridge), Rule::when().in_if(bridge));
        let (to, from) = match mode {
            BridgeKind::Managed => (to, from),
            BridgeKind::UnmanagedLocalGateway | BridgeKind::UnmanagedRemoteGateway => {
                (to.dst(*subnet), from.src(*subnet))
            }
        };
        push_once(&mut rules, drop(to.in_group(isolated)));
        push_once(&mut rules, drop(from.out_group(isolated)));
    }
    for subnet in input.cni_subnets {
        rules.push(drop(Rule::when().dst(*subnet).in_group(isolated)));
        rules.push(drop(Rule::when().src(*subnet).out_group(isolated)));
    }
    rules
}

/// Matches packets from isolated VMs if the host has translated their destination.
fn translated(ours: &str) -> Match {
    Rule::when().in_if(ours).ctstate([CtState::Dnat])
}
