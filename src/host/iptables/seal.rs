//! IPv6 shut in the calling thread's network namespace: `ip6 filter` with policy DROP everywhere and not one rule.
//! Not here: IPv4.
//!
//! # Why
//! One batch over netlink instead of `ip6tables-restore`, which would be a second process for every VM. It is nf_tables
//! whichever back end `iptables` has, and seen as `ip6tables-nft -S`.

use super::netlink::{CREATE, Message, NESTED, NFTABLES, Netfilter, push_attr};
use super::{builtin_chains, nft};
use crate::host::Error;
use crate::host::rule::{Policy, TableName};

const NEWTABLE: u16 = NFTABLES;
const NEWCHAIN: u16 = NFTABLES | 3;
const DELRULE: u16 = NFTABLES | 8;

const TABLE: &str = "filter";
/// Builtin chains and their hooks (`enum nf_inet_hooks`).
const CHAINS: [(&str, u32); 3] = [("INPUT", 1), ("FORWARD", 2), ("OUTPUT", 3)];

/// Shuts IPv6, in one transaction. Also mends a seal that was broken: policies become DROP, rules go. A chain of one of
/// our three names that hooks elsewhere is an error.
pub fn seal_ipv6() -> Result<(), Error> {
    let family = libc::AF_INET6 as u8;
    let mut batch = vec![
        Message::new(NEWTABLE, CREATE, family)
            .text(1, TABLE)
            // Flags 0: awake.
            .attr(2, &0u32.to_be_bytes()),
    ];
    batch.extend(CHAINS.map(|(chain, hook)| {
        Message::new(NEWCHAIN, CREATE, family)
            .text(1, TABLE)
            .text(3, chain)
            .attr(4 | NESTED, &hook_attributes(hook))
            // NF_DROP.
            .attr(5, &0u32.to_be_bytes())
            .text(7, "filter")
    }));
    batch.extend(CHAINS.map(|(chain, _)| {
        Message::new(DELRULE, 0, family)
            .text(1, TABLE)
            .text(2, chain)
    }));
    Netfilter::open()?
        .batch(batch)
        .map_err(|e| Error::io("shut", "IPv6", e))
}

/// `NFTA_HOOK_HOOKNUM`, `NFTA_HOOK_PRIORITY` 0 (`NF_IP6_PRI_FILTER`).
fn hook_attributes(hook: u32) -> Vec<u8> {
    let mut attributes = Vec::with_capacity(16);
    push_attr(&mut attributes, 1, &hook.to_be_bytes());
    push_attr(&mut attributes, 2, &0i32.to_be_bytes());
    attributes
}

/// Whether IPv6 is shut: every builtin chain is hooked where it should be, drops, and holds no rule.
pub fn ipv6_sealed() -> Result<bool, Error> {
    let ruleset = nft::read_ipv6(&[TableName::Filter])?;
    Ok(builtin_chains(TableName::Filter).iter().all(|name| {
        ruleset
            .chain(TableName::Filter, name)
            .is_some_and(|chain| chain.policy == Some(Policy::Drop) && chain.rules.is_empty())
    }))
}
