//! Reads the tables of iptables from nf_tables, over netlink.
//! Out of scope: the meaning of a rule's expressions.

use std::io;
use std::ops::ControlFlow;

use super::expr;
use super::netlink::{Message, Netfilter, attr, be32, text};
use super::uapi::*;
use crate::host::rule::{Chain, Generation, Policy, Rule, Ruleset, Table, TableName};
use crate::host::{Error, Kind};

/// The maximum number of attempts of a dump that is interrupted by changes.
const ATTEMPTS: usize = 16;

/// Reads tables of family `ip`, and their generation.
pub fn read(
    netfilter: &mut Netfilter,
    tables: &[TableName],
) -> Result<(Ruleset, Option<Generation>), Error> {
    let (tables, generation) = read_consistently(netfilter, |netfilter| {
        read_once(netfilter, libc::AF_INET as u8, tables)
    })?;
    Ok((Ruleset::new(tables), Some(Generation::of_id(generation))))
}

/// The existing chains with these names, of family `ip`; of a builtin one the first [`FIRST_RULES`] rules. The cost does not
/// depend on the rest of the tables.
pub fn read_named(names: &[(TableName, String)]) -> Result<Ruleset, Error> {
    let (tables, _) = read_consistently(&mut Netfilter::open()?, |netfilter| {
        read_named_once(netfilter, names)
    })?;
    Ok(Ruleset::new(tables))
}

/// The maximum number of rules of a builtin chain that [`read_named`] reads: the jumps of sliced come first.
const FIRST_RULES: usize = 256;

fn read_named_once(
    netfilter: &mut Netfilter,
    names: &[(TableName, String)],
) -> Result<Vec<Table>, Error> {
    let family = libc::AF_INET as u8;
    let dormant = dormant_tables(netfilter, family)?;
    let mut tables: Vec<Table> = Vec::new();
    for (name, chain) in names {
        let in_table = name.to_string();
        let query = Message::new(NFT_MSG_GETCHAIN, 0, family)
            .text(NFTA_CHAIN_TABLE, &in_table)
            .text(NFTA_CHAIN_NAME, chain);
        let mut found = match netfilter.get(query) {
            Ok(attributes) => one_chain(*name, &attributes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("read", format!("chain {chain}"), error)),
        };
        let limit = found.policy.map_or(usize::MAX, |_| FIRST_RULES);
        let query = Message::new(NFT_MSG_GETRULE, 0, family)
            .text(NFTA_RULE_TABLE, &in_table)
            .text(NFTA_RULE_CHAIN, chain);
        netfilter.dump_until("packet filter rules", query, |rule| {
            let has_name = |kind, name: &str| attr(rule, kind).map(text).as_deref() == Some(name);
            if has_name(NFTA_RULE_TABLE, &in_table) && has_name(NFTA_RULE_CHAIN, chain) {
                found.rules.push(expr::rule(rule));
            }
            match found.rules.len() < limit {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        if dormant.contains(&in_table) {
            found.rules.insert(0, dormant_rule());
        }
        match tables.iter_mut().find(|table| table.name == *name) {
            Some(table) => table.chains.push(found),
            None => tables.push(Table {
                name: *name,
                chains: vec![found],
            }),
        }
    }
    Ok(tables)
}

/// The rule that is inserted at the top of every chain of a dormant table.
fn dormant_rule() -> Rule {
    Rule::Foreign("the table is dormant".into())
}

/// The number of packets that each rule of a chain of `filter` has matched.
pub fn counted(chain: &str) -> Result<Vec<(Rule, u64)>, Error> {
    let read = |netfilter: &mut Netfilter| {
        let mut counters = Vec::new();
        let query = Message::new(NFT_MSG_GETRULE, 0, libc::AF_INET as u8)
            .text(NFTA_RULE_TABLE, &TableName::Filter.to_string())
            .text(NFTA_RULE_CHAIN, chain);
        netfilter.dump("packet filter rules", query, |rule| {
            let string = |kind| attr(rule, kind).map(text);
            // The kernel does not filter by chain if there is no table with this name.
            if string(NFTA_RULE_CHAIN).as_deref() == Some(chain) {
                counters.push((expr::rule(rule), expr::packets(rule)));
            }
        })?;
        Ok(counters)
    };
    read_consistently(&mut Netfilter::open()?, read).map(|(counted, _)| counted)
}

/// [`read`], in family `ip6`.
pub fn read_ipv6(netfilter: &mut Netfilter, tables: &[TableName]) -> Result<Ruleset, Error> {
    let (tables, _) = read_consistently(netfilter, |netfilter| {
        read_once(netfilter, libc::AF_INET6 as u8, tables)
    })?;
    Ok(Ruleset::new(tables))
}

/// The names of all tables of a family, including those not written by iptables.
pub fn tables(family: u8) -> Result<Vec<String>, Error> {
    let read = |netfilter: &mut Netfilter| {
        let mut names = Vec::new();
        let query = Message::new(NFT_MSG_GETTABLE, 0, family);
        netfilter.dump("packet filter tables", query, |table| {
            names.extend(attr(table, NFTA_TABLE_NAME).map(text));
        })?;
        Ok(names)
    };
    read_consistently(&mut Netfilter::open()?, read).map(|(names, _)| names)
}

/// The result of `read` at one generation, and that generation. [`Busy`](Kind::Busy): there was a commit during each attempt.
pub(super) fn read_consistently<T>(
    netfilter: &mut Netfilter,
    mut read: impl FnMut(&mut Netfilter) -> Result<T, Error>,
) -> Result<(T, u32), Error> {
    let fail = |e| Error::io("list", "packet filter rules", e);
    for _ in 0..ATTEMPTS {
        let before = netfilter.generation().map_err(fail)?;
        match read(netfilter) {
            Err(error) if error.kind == Kind::Busy => {}
            Err(error) => return Err(error),
            Ok(found) if netfilter.base_seq().map_err(fail)? == before => {
                return Ok((found, before));
            }
            Ok(_) => {}
        }
    }
    Err(fail(io::Error::from_raw_os_error(libc::EAGAIN)))
}

fn read_once(
    netfilter: &mut Netfilter,
    family: u8,
    names: &[TableName],
) -> Result<Vec<Table>, Error> {
    let dormant = dormant_tables(netfilter, family)?;
    let mut tables = chains(netfilter, family, names)?;
    for table in &mut tables {
        let name = table.name.to_string();
        let query = Message::new(NFT_MSG_GETRULE, 0, family).text(NFTA_RULE_TABLE, &name);
        netfilter.dump("packet filter rules", query, |rule| {
            let string = |kind| attr(rule, kind).map(text);
            let chain = string(NFTA_RULE_CHAIN)
                .and_then(|chain| table.chains.iter_mut().find(|found| found.name == chain));
            // A chain that was created between the two dumps is ignored; the generation check detects it.
            if let Some(chain) = chain.filter(|_| string(NFTA_RULE_TABLE).as_ref() == Some(&name)) {
                chain.rules.push(expr::rule(rule));
            }
        })?;
        if dormant.contains(&name) {
            for chain in &mut table.chains {
                chain.rules.insert(0, dormant_rule());
            }
        }
    }
    Ok(tables)
}

/// Dormant tables: their chains are inactive (`NFT_TABLE_F_DORMANT`).
fn dormant_tables(netfilter: &mut Netfilter, family: u8) -> Result<Vec<String>, Error> {
    let mut dormant = Vec::new();
    let query = Message::new(NFT_MSG_GETTABLE, 0, family);
    netfilter.dump("packet filter tables", query, |table| {
        let flags = attr(table, NFTA_TABLE_FLAGS).and_then(be32).unwrap_or(0);
        if flags & NFT_TABLE_F_DORMANT != 0 {
            dormant.extend(attr(table, NFTA_TABLE_NAME).map(text));
        }
    })?;
    Ok(dormant)
}

fn chains(netfilter: &mut Netfilter, family: u8, names: &[TableName]) -> Result<Vec<Table>, Error> {
    let mut tables: Vec<Table> = names
        .iter()
        .map(|&name| Table {
            name,
            chains: Vec::new(),
        })
        .collect();
    let query = Message::new(NFT_MSG_GETCHAIN, 0, family);
    netfilter.dump("packet filter chains", query, |chain| {
        let table = attr(chain, NFTA_CHAIN_TABLE).map(text);
        let table = tables
            .iter_mut()
            .find(|found| table == Some(found.name.to_string()));
        if let Some(table) = table {
            let chain = one_chain(table.name, chain);
            table.chains.push(chain);
        }
    })?;
    Ok(tables)
}

fn one_chain(table: TableName, attributes: &[u8]) -> Chain {
    let name = attr(attributes, NFTA_CHAIN_NAME)
        .map(text)
        .unwrap_or_default();
    let Some(hook) = attr(attributes, NFTA_CHAIN_HOOK) else {
        return Chain::user(name, Vec::new());
    };
    let number = |bytes, kind| attr(bytes, kind).and_then(be32);
    let policy = match number(attributes, NFTA_CHAIN_POLICY) {
        Some(NF_DROP) => Policy::Drop,
        _ => Policy::Accept,
    };
    let found = (
        number(hook, NFTA_HOOK_HOOKNUM).unwrap_or(u32::MAX),
        number(hook, NFTA_HOOK_PRIORITY).unwrap_or(0) as i32,
        attr(attributes, NFTA_CHAIN_TYPE)
            .map(text)
            .unwrap_or_default(),
    );
    let rules = match builtin(table, &name) {
        Some((hook, priority, kind)) if found == (hook, priority, kind.to_owned()) => Vec::new(),
        _ => vec![Rule::Foreign(format!(
            "hook {} priority {} type {}",
            found.0, found.1, found.2
        ))],
    };
    Chain::builtin(name, policy, rules)
}

/// The hook, priority and type of a builtin chain of iptables (`nft_ipv4` tables of iptables-nft;
/// linux/netfilter.h, linux/netfilter_ipv4.h). A chain with this name at another hook does not filter these packets.
pub fn builtin(table: TableName, chain: &str) -> Option<(u32, i32, &'static str)> {
    let hook = match chain {
        "PREROUTING" => NF_INET_PRE_ROUTING,
        "INPUT" => NF_INET_LOCAL_IN,
        "FORWARD" => NF_INET_FORWARD,
        "OUTPUT" => NF_INET_LOCAL_OUT,
        "POSTROUTING" => NF_INET_POST_ROUTING,
        _ => return None,
    };
    Some(match (table, chain) {
        (TableName::Raw, _) => (hook, libc::NF_IP_PRI_RAW, "filter"),
        (TableName::Mangle, "OUTPUT") => (hook, libc::NF_IP_PRI_MANGLE, "route"),
        (TableName::Mangle, _) => (hook, libc::NF_IP_PRI_MANGLE, "filter"),
        (TableName::Filter, _) => (hook, libc::NF_IP_PRI_FILTER, "filter"),
        (TableName::Nat, "PREROUTING" | "OUTPUT") => (hook, libc::NF_IP_PRI_NAT_DST, "nat"),
        (TableName::Nat, _) => (hook, libc::NF_IP_PRI_NAT_SRC, "nat"),
    })
}
