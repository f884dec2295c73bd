//! Destination translation: the nat chains at the hook `prerouting` of all IPv4 tables, including those not written by iptables.
//! Out of scope: the evaluation for one packet.

use super::netlink::{Message, Netfilter, attr, be32, text};
use super::uapi::*;
use super::{Backend, Flavour, expr, nft};
use crate::host::Error;
use crate::host::rule::{Chain, TableName};

/// The families, and their names in `nft`.
const FAMILIES: [(u8, &str); 2] = [(NFPROTO_IPV4, "ip"), (NFPROTO_INET, "inet")];

/// `NF_IP_PRI_NAT_DST`, the hook priority of iptables.
const IPTABLES_PRIORITY: i32 = -100;

/// A table with a nat chain at the hook `prerouting`.
#[derive(Clone, Debug, PartialEq)]
pub struct Translations {
    /// `ip nat`.
    pub table: String,
    /// The base chain.
    pub entry: String,
    /// Lower values are evaluated first.
    pub priority: i32,
    /// All chains of the table.
    pub chains: Vec<Chain>,
}

impl Backend {
    /// Reads all of them, in order of priority.
    pub fn translations(&self) -> Result<Vec<Translations>, Error> {
        let mut found = match self.kind {
            Flavour::Nft => read_nft()?,
            Flavour::Legacy => {
                let tables = self.read_legacy(&[TableName::Nat])?;
                let of_iptables = tables.tables().iter().map(|table| Translations {
                    table: "ip nat".to_owned(),
                    entry: "PREROUTING".to_owned(),
                    priority: IPTABLES_PRIORITY,
                    chains: table.chains.clone(),
                });
                // A kernel with ip_tables only has no other tables.
                let others = read_nft().unwrap_or_default();
                of_iptables.chain(others).collect()
            }
        };
        found.sort_by_key(|found| found.priority);
        Ok(found)
    }
}

fn read_nft() -> Result<Vec<Translations>, Error> {
    let read = |netfilter: &mut Netfilter| {
        let mut found = Vec::new();
        for (family, name) in FAMILIES {
            found.extend(read_family(netfilter, family, name)?);
        }
        Ok(found)
    };
    nft::read_consistently(&mut Netfilter::open()?, read).map(|(found, _)| found)
}

fn read_family(
    netfilter: &mut Netfilter,
    family: u8,
    family_name: &str,
) -> Result<Vec<Translations>, Error> {
    let mut all: Vec<(String, Chain)> = Vec::new();
    let mut hooked: Vec<(String, String, i32)> = Vec::new();
    let query = Message::new(NFT_MSG_GETCHAIN, 0, family);
    netfilter.dump("packet filter chains", query, |chain| {
        let table = attr(chain, NFTA_CHAIN_TABLE).map(text).unwrap_or_default();
        let name = attr(chain, NFTA_CHAIN_NAME).map(text).unwrap_or_default();
        let number = |hook, kind| attr(hook, kind).and_then(be32);
        if let Some(hook) = attr(chain, NFTA_CHAIN_HOOK)
            && number(hook, NFTA_HOOK_HOOKNUM) == Some(NF_INET_PRE_ROUTING)
            && attr(chain, NFTA_CHAIN_TYPE).map(text).as_deref() == Some("nat")
        {
            let priority = number(hook, NFTA_HOOK_PRIORITY).unwrap_or(0) as i32;
            hooked.push((table.clone(), name.clone(), priority));
        }
        all.push((table, Chain::user(name, Vec::new())));
    })?;
    if hooked.is_empty() {
        return Ok(Vec::new());
    }
    let query = Message::new(NFT_MSG_GETRULE, 0, family);
    netfilter.dump("packet filter rules", query, |rule| {
        let string = |kind| attr(rule, kind).map(text).unwrap_or_default();
        let (table, chain) = (string(NFTA_RULE_TABLE), string(NFTA_RULE_CHAIN));
        let slot = all
            .iter_mut()
            .find(|(found, known)| *found == table && known.name == chain);
        if let Some((_, chain)) = slot {
            chain.rules.push(expr::rule(rule));
        }
    })?;
    let to_table = |(table, entry, priority): (String, String, i32)| {
        let own = all.iter().filter(|(of, _)| *of == table);
        Translations {
            chains: own.map(|(_, chain)| chain.clone()).collect(),
            table: format!("{family_name} {table}"),
            entry,
            priority,
        }
    };
    Ok(hooked.into_iter().map(to_table).collect())
}
