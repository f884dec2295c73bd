//! What keeps isolated VMs apart from every other VM on the host, also from those of other daemons, and from what the host translates. Pure.
//! Out of scope: the other rules of the host ([`super::rules`]).
//!
//! # Why
//! - These rules only drop, and stand in `mangle FORWARD`, which packets pass before `filter FORWARD` and after the destination was
//!   translated (`NF_IP_PRI_MANGLE`, `NF_IP_PRI_NAT_DST`). So no ACCEPT that comes first, be it another daemon's, a plugin's or
//!   Docker's, lets past what they drop, and it does not matter whose rules come first.
//! - A daemon knows the names of its own links only. Links of all daemons have groups in common ([`link_group`]), from birth: a
//!   daemon's rules about its isolated VMs hold against links that other daemons make later.
//! - A bridge that is not ours and the links of a CNI plugin have no group of ours, because they are not ours to change. There the daemon
//!   whose VMs are on them closes its own VMs' subnets to isolated VMs of every daemon.
//! - The lists of a VM are asked in its namespace, about the destination that the guest names. What the host then sends elsewhere (DNAT,
//!   REDIRECT, NETMAP, a published port, a service address) was allowed or dropped under another name: it is dropped. The answers to
//!   masqueraded packets are not meant: of such a flow only the source is translated.

use super::rules::{Carried, Side, Standing, push_once};
use crate::host::rule::{CtState, LinkGroup, Match, Rule, Target};
use crate::owner::link_group;

/// What the chain is called behind the daemon's prefix.
pub const ROLE: &str = "APART";

/// All of the chain.
pub(super) fn rules(carried: &Carried<'_>) -> Vec<Rule> {
    let any = LinkGroup::under(link_group::ANY, link_group::MASK);
    let drop = |when: Match| when.then(Target::Drop);
    let mut rules = Vec::new();
    if !carried.pools.is_empty() {
        let ours = carried.instance.link_wildcard();
        rules.extend([
            drop(Rule::when().in_if(&ours).out_group(any)),
            drop(Rule::when().out_if(&ours).in_group(any)),
            drop(translated(&ours)),
        ]);
    }
    let isolated = LinkGroup::only(link_group::ISOLATED);
    for Side {
        bridge,
        subnet,
        standing,
    } in carried.sides
    {
        let (to, from) = (Rule::when().out_if(bridge), Rule::when().in_if(bridge));
        let (to, from) = match standing {
            Standing::Ours => (to, from),
            Standing::Hosted | Standing::Joined => (to.dst(*subnet), from.src(*subnet)),
        };
        push_once(&mut rules, drop(to.in_group(isolated)));
        push_once(&mut rules, drop(from.out_group(isolated)));
    }
    for subnet in carried.plugged {
        rules.push(drop(Rule::when().dst(*subnet).in_group(isolated)));
        rules.push(drop(Rule::when().src(*subnet).out_group(isolated)));
    }
    rules
}

/// What comes from isolated VMs and was sent elsewhere by the host.
fn translated(ours: &str) -> Match {
    Rule::when().in_if(ours).ctstate([CtState::Dnat])
}
