//! nf_tables chains at the hook `forward` that iptables does not write to: those of firewalld, and of manually written rules.
//! Out of scope: the effect of one rule on a packet ([`super::walk`]); the tables of iptables.
//!
//! # Why
//! Every base chain of a hook must accept a packet: an accept ends only its own chain (nft(8), "CHAINS"). No rule of sliced
//! can override a drop in another base chain, at any priority. So for each of them the verdict for a packet of a VM is computed by
//! evaluating the rules that such a packet traverses.
//!
//! The kernel has no list of the base chains of a hook (`NFNL_SUBSYS_HOOK` is an option of recent kernels), only one of all chains, of
//! which there may be thousands. It is read again when a table was added or its number of chains changed.

use parking_lot::Mutex;

use super::netlink::{Message, Netfilter, attr, be32, text};
pub use super::probe::{BaseChain, Link, Probe};
use super::uapi::*;
use super::walk::{Fate, Walk};
use super::{Flavour, nft};
use crate::host::Error;

const FAMILIES: [(u8, &str); 2] = [(NFPROTO_INET, "inet"), (NFPROTO_IPV4, "ip")];

/// The foreign chains, and which of them drop each probe.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// All base chains that were evaluated.
    pub chains: Vec<BaseChain>,
    /// For each probe, in order, the chains that drop or reject it.
    pub drops: Vec<Vec<BaseChain>>,
}

/// A table: family, name, handle, and how many chains, sets and objects it has (`NFTA_TABLE_USE`).
type TableState = (u8, String, Vec<u8>, u32);

/// The base chains of the last list, and the tables at that time.
#[derive(Debug, Default)]
pub struct ForwardChains(Mutex<Option<(Vec<TableState>, Vec<BaseChain>)>>);

impl ForwardChains {
    /// Evaluates the probes in the calling thread's namespace. Chains that iptables of this `flavour` writes to are not evaluated.
    pub fn evaluate(&self, flavour: Flavour, probes: &[Probe]) -> Result<Verdicts, Error> {
        let (found, _) = nft::read_consistently(&mut Netfilter::open()?, |netfilter| {
            let chains = self.list(netfilter, flavour)?;
            let mut verdicts = Verdicts {
                chains,
                drops: vec![Vec::new(); probes.len()],
            };
            for base in &verdicts.chains {
                let mut evaluation = Walk::new(netfilter, base);
                for (probe, drops) in probes.iter().zip(&mut verdicts.drops) {
                    if evaluation.fate(probe)? == Fate::Dropped {
                        drops.push(base.clone());
                    }
                }
            }
            if flavour == Flavour::Nft {
                evaluate_own_chain(netfilter, probes, &mut verdicts.drops)?;
            }
            Ok(verdicts)
        })?;
        Ok(found)
    }

    fn list(&self, netfilter: &mut Netfilter, flavour: Flavour) -> Result<Vec<BaseChain>, Error> {
        let tables = tables(netfilter)?;
        let mut cache = self.0.lock();
        if let Some((cached_tables, chains)) = &*cache
            && *cached_tables == tables
        {
            return Ok(chains.clone());
        }
        let mut chains = Vec::new();
        for (family, word) in FAMILIES {
            // A family without chains costs nothing.
            let query = Message::new(NFT_MSG_GETCHAIN, 0, family);
            netfilter.dump("packet filter chains", query, |attributes| {
                let in_active_table = |base: &BaseChain| {
                    let mut tables = tables.iter();
                    tables.any(|(of, name, ..)| *of == family && *name == base.table)
                };
                if let Some(base) = base_chain(attributes, word)
                    && !is_iptables(&base, flavour)
                    && in_active_table(&base)
                {
                    chains.push(base);
                }
            })?;
        }
        *cache = Some((tables, chains.clone()));
        Ok(chains)
    }
}

/// Evaluates packets of VMs that a CNI plugin connects in the FORWARD chain of iptables, if its policy is DROP (set by docker and ufw).
fn evaluate_own_chain(
    netfilter: &mut Netfilter,
    probes: &[Probe],
    drops: &mut [Vec<BaseChain>],
) -> Result<(), Error> {
    if !probes.iter().any(|probe| probe.uses_cni) {
        return Ok(());
    }
    let base = BaseChain::iptables_forward();
    let mut evaluation = Walk::new(netfilter, &base);
    if !evaluation.drops_by_policy()? {
        return Ok(());
    }
    let cni_probes = probes.iter().zip(drops).filter(|(probe, _)| probe.uses_cni);
    for (probe, drops) in cni_probes {
        if evaluation.fate(probe)? == Fate::Dropped {
            drops.push(base.clone());
        }
    }
    Ok(())
}

/// The tables with chains that an IPv4 packet may traverse: the chains of a dormant table are at no hook. The number of chains in `nat` of
/// iptables is ignored: Kubernetes adds and removes chains there all the time, at no hook.
fn tables(netfilter: &mut Netfilter) -> Result<Vec<TableState>, Error> {
    let mut tables = Vec::new();
    for (family, _) in FAMILIES {
        let query = Message::new(NFT_MSG_GETTABLE, 0, family);
        netfilter.dump("packet filter tables", query, |table| {
            let name = attr(table, NFTA_TABLE_NAME).map(text).unwrap_or_default();
            let handle = attr(table, NFTA_TABLE_HANDLE).unwrap_or_default().to_vec();
            let uses = attr(table, NFTA_TABLE_USE)
                .and_then(be32)
                .unwrap_or_default();
            let uses = match (family, name.as_str()) {
                (NFPROTO_IPV4, "nat") => 0,
                _ => uses,
            };
            if attr(table, NFTA_TABLE_FLAGS).and_then(be32).unwrap_or(0) & NFT_TABLE_F_DORMANT == 0
            {
                tables.push((family, name, handle, uses));
            }
        })?;
    }
    Ok(tables)
}

fn base_chain(attributes: &[u8], family: &str) -> Option<BaseChain> {
    let hook = attr(attributes, NFTA_CHAIN_HOOK)?;
    let at_forward = attr(hook, NFTA_HOOK_HOOKNUM).and_then(be32) == Some(NF_INET_FORWARD);
    let string = |kind| attr(attributes, kind).map(text).unwrap_or_default();
    (at_forward && string(NFTA_CHAIN_TYPE) == "filter").then(|| BaseChain {
        family: family.to_owned(),
        table: string(NFTA_CHAIN_TABLE),
        chain: string(NFTA_CHAIN_NAME),
    })
}

/// A chain to which iptables-nft writes the rules of sliced: its jumps come first there.
fn is_iptables(base: &BaseChain, flavour: Flavour) -> bool {
    let tables = ["filter", "mangle", "security"];
    let is_forward = base.family == "ip" && base.chain == "FORWARD";
    is_forward && flavour == Flavour::Nft && tables.contains(&base.table.as_str())
}
