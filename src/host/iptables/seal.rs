//! Base chains, created over netlink in the calling thread's network namespace: to block IPv6, and for new IPv4 tables.
//! Out of scope: rules.
//!
//! # Why
//! IPv6 is blocked by one batch over netlink instead of `ip6tables-restore`, which would be a second process for every VM. It
//! uses nf_tables with either back end of `iptables`; `ip6tables-nft -S` shows it as `ip6 filter` with policy DROP in all chains
//! and no rules.

use std::io;

use super::netlink::{CREATE, EXCLUSIVE, Message, NESTED, Netfilter, push_attr};
use super::uapi::*;
use super::{builtin_chains, nft};
use crate::host::rule::{Policy, Ruleset, TableName};
use crate::host::{Error, Kind};

/// Blocks IPv6, in one transaction. Also repairs changes: sets the policies to DROP and removes rules. A builtin chain
/// with another hook is an error.
pub fn block_ipv6() -> Result<(), Error> {
    let family = libc::AF_INET6 as u8;
    let table = TableName::Filter;
    let chains = builtin_chains(table);
    let mut batch = vec![new_table(family, table, CREATE)];
    batch.extend(
        chains
            .iter()
            .map(|chain| new_chain(family, table, chain, Policy::Drop)),
    );
    batch.extend(chains.iter().map(|chain| {
        Message::new(NFT_MSG_DELRULE, 0, family)
            .text(NFTA_RULE_TABLE, &table.to_string())
            .text(NFTA_RULE_CHAIN, chain)
    }));
    commit(batch).map_err(|e| Error::io("block", "IPv6", e))
}

/// The result of [`begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The tables did not exist and were created with their builtin chains and policies, without rules.
    Now,
    /// One of them already existed: nothing was changed.
    Existed,
}

/// Creates the tables of `ruleset` in nf_tables, without rules, unless one of them exists.
pub fn begin(ruleset: &Ruleset) -> Result<Created, Error> {
    let family = libc::AF_INET as u8;
    let mut batch = Vec::new();
    for table in ruleset.tables() {
        batch.push(new_table(family, table.name, CREATE | EXCLUSIVE));
        batch.extend(
            builtin_chains(table.name).iter().map(|chain| {
                new_chain(family, table.name, chain, ruleset.policy(table.name, chain))
            }),
        );
    }
    // Checked first, because the kernel's error takes an RCU grace period (`__nf_tables_abort`): 8 ms.
    let existing = nft::tables(family)?;
    if ruleset
        .tables()
        .iter()
        .any(|table| existing.contains(&table.name.to_string()))
    {
        return Ok(Created::Existed);
    }
    let result = commit(batch).map_err(|e| Error::io("create", "packet filter tables", e));
    match result {
        Ok(()) => Ok(Created::Now),
        Err(error) if error.kind == Kind::Exists => Ok(Created::Existed),
        Err(error) => Err(error),
    }
}

fn commit(batch: Vec<Message>) -> io::Result<()> {
    match batch.is_empty() {
        true => Ok(()),
        false => Netfilter::open()
            .map_err(|error| error.source)?
            .batch(batch),
    }
}

fn new_table(family: u8, table: TableName, flags: u16) -> Message {
    Message::new(NFT_MSG_NEWTABLE, flags, family)
        .text(NFTA_TABLE_NAME, &table.to_string())
        // Flags 0: not dormant.
        .attr(NFTA_TABLE_FLAGS, &0u32.to_be_bytes())
}

fn new_chain(family: u8, table: TableName, chain: &str, policy: Policy) -> Message {
    let policy = match policy {
        Policy::Drop => NF_DROP,
        Policy::Accept => NF_ACCEPT,
    };
    let message = Message::new(NFT_MSG_NEWCHAIN, CREATE, family)
        .text(NFTA_CHAIN_TABLE, &table.to_string())
        .text(NFTA_CHAIN_NAME, chain);
    match nft::builtin(table, chain) {
        None => message,
        Some((hook, priority, kind)) => {
            let mut attributes = Vec::with_capacity(16);
            push_attr(&mut attributes, NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
            push_attr(&mut attributes, NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
            message
                .attr(NFTA_CHAIN_HOOK | NESTED, &attributes)
                .attr(NFTA_CHAIN_POLICY, &policy.to_be_bytes())
                .text(NFTA_CHAIN_TYPE, kind)
        }
    }
}

/// Whether IPv6 is blocked: every builtin chain has its hook, policy DROP and no rules.
pub fn is_ipv6_blocked() -> Result<bool, Error> {
    is_ipv6_blocked_with(&mut Netfilter::open()?)
}

/// The same, over a socket that was opened in the calling thread's namespace.
pub fn is_ipv6_blocked_with(netfilter: &mut Netfilter) -> Result<bool, Error> {
    let ruleset = nft::read_ipv6(netfilter, &[TableName::Filter])?;
    Ok(builtin_chains(TableName::Filter).iter().all(|name| {
        ruleset
            .chain(TableName::Filter, name)
            .is_some_and(|chain| chain.policy == Some(Policy::Drop) && chain.rules.is_empty())
    }))
}
