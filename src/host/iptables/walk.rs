//! Computes the verdict of an nf_tables chain for one packet: reads and evaluates the rules that the packet traverses.
//! Out of scope: listing chains.
//!
//! # Why
//! Unsupported expressions count as accepting, so that there are no false warnings. Formats: linux/netfilter/nf_tables.h.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use super::machine::{Machine, Set, Step, Verdict};
use super::netlink::{Message, Netfilter, attr, attrs, be32, text};
use super::probe::{BaseChain, Probe};
use super::uapi::*;
use crate::host::Error;

/// The maximum number of rules and set elements that are read for one base chain. Beyond it the result is unknown.
const MOST: usize = 1024;

/// The kernel's limit of nested jumps (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

/// The result for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is accepted.
    Passes,
    /// It is dropped.
    Dropped,
    /// It traverses more rules than are read.
    Unknown,
}

/// The result of a chain.
enum End {
    Accepted,
    Dropped,
    /// No verdict: evaluation continues in the calling chain.
    Returned,
    LimitExceeded,
}

/// One base chain and the cached rules and sets of its table.
pub(super) struct Walk<'n> {
    netfilter: &'n mut Netfilter,
    family: u8,
    base: &'n BaseChain,
    rules: HashMap<String, Vec<Vec<u8>>>,
    sets: HashMap<String, Option<Set>>,
    read: usize,
}

impl<'n> Walk<'n> {
    pub(super) fn new(netfilter: &'n mut Netfilter, base: &'n BaseChain) -> Self {
        Self {
            netfilter,
            family: if base.family == "inet" {
                NFPROTO_INET
            } else {
                NFPROTO_IPV4
            },
            base,
            rules: HashMap::new(),
            sets: HashMap::new(),
            read: 0,
        }
    }

    /// Whether the base chain drops packets that no rule accepts.
    pub(super) fn drops_by_policy(&mut self) -> Result<bool, Error> {
        Ok(self.policy()? == Some(Some(NF_DROP)))
    }

    /// The policy of the base chain, if it has one; `None`: the chain does not exist.
    fn policy(&mut self) -> Result<Option<Option<u32>>, Error> {
        let query = Message::new(NFT_MSG_GETCHAIN, 0, self.family)
            .text(NFTA_CHAIN_TABLE, &self.base.table)
            .text(NFTA_CHAIN_NAME, &self.base.chain);
        match self.netfilter.get(query) {
            Ok(chain) => Ok(Some(attr(&chain, NFTA_CHAIN_POLICY).and_then(be32))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", self.base.to_string(), error)),
        }
    }

    /// The result of the base chain for a packet.
    pub(super) fn fate(&mut self, probe: &Probe) -> Result<Fate, Error> {
        let Some(policy) = self.policy()? else {
            return Ok(Fate::Passes);
        };
        let chain = self.base.chain.clone();
        Ok(match self.chain(&chain, probe, 0)? {
            End::Accepted => Fate::Passes,
            End::Dropped => Fate::Dropped,
            End::Returned if policy == Some(NF_DROP) => Fate::Dropped,
            End::Returned => Fate::Passes,
            End::LimitExceeded => Fate::Unknown,
        })
    }

    fn chain(&mut self, name: &str, probe: &Probe, depth: usize) -> Result<End, Error> {
        if depth > MAX_DEPTH || !self.read_chain(name)? {
            return Ok(End::LimitExceeded);
        }
        let rules = self.rules.get(name).cloned().unwrap_or_default();
        for rule in &rules {
            let (certain, verdict) = self.rule(rule, probe)?;
            let (next, is_goto) = match verdict {
                Verdict::Continue => continue,
                Verdict::Accept => return Ok(End::Accepted),
                Verdict::Drop if certain => return Ok(End::Dropped),
                Verdict::Drop => continue,
                Verdict::Return if certain => return Ok(End::Returned),
                Verdict::Return => continue,
                Verdict::Jump(next) => (next, false),
                Verdict::Goto(next) => (next, true),
            };
            match self.chain(&next, probe, depth + 1)? {
                End::Accepted => return Ok(End::Accepted),
                End::Dropped if certain => return Ok(End::Dropped),
                End::LimitExceeded => return Ok(End::LimitExceeded),
                End::Returned if is_goto && certain => return Ok(End::Returned),
                End::Dropped | End::Returned => {}
            }
        }
        Ok(End::Returned)
    }

    /// The verdict of a rule, and whether it is certain that it matches.
    fn rule(&mut self, rule: &[u8], probe: &Probe) -> Result<(bool, Verdict), Error> {
        let mut evaluator = Machine::new(probe, self.base.is_iptables_forward());
        let mut certain = true;
        let expressions = attrs(attr(rule, NFTA_RULE_EXPRESSIONS).unwrap_or(&[]));
        for (_, expression) in expressions {
            let name = attr(expression, NFTA_EXPR_NAME)
                .map(text)
                .unwrap_or_default();
            let data = attr(expression, NFTA_EXPR_DATA).unwrap_or(&[]);
            let set = match name.as_str() {
                "lookup" => match attr(data, NFTA_LOOKUP_SET).map(text) {
                    Some(set) => self.set(&set)?,
                    None => None,
                },
                _ => None,
            };
            match evaluator.step(&name, data, set) {
                Step::Next => {}
                Step::Unknown => certain = false,
                Step::NoMatch => return Ok((true, Verdict::Continue)),
                Step::Verdict(verdict) => return Ok((certain, verdict)),
            }
        }
        Ok((certain, Verdict::Continue))
    }

    /// Reads a chain unless it is cached; false: it has too many rules.
    fn read_chain(&mut self, name: &str) -> Result<bool, Error> {
        if self.rules.contains_key(name) {
            return Ok(true);
        }
        let query = Message::new(NFT_MSG_GETRULE, 0, self.family)
            .text(NFTA_RULE_TABLE, &self.base.table)
            .text(NFTA_RULE_CHAIN, name);
        let mut rules = Vec::new();
        let limit = MOST.saturating_sub(self.read);
        self.netfilter
            .dump_until("packet filter rules", query, |rule| {
                if attr(rule, NFTA_RULE_CHAIN).map(text).as_deref() == Some(name) {
                    rules.push(rule.to_vec());
                }
                match rules.len() <= limit {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
        self.read += rules.len();
        let fits = rules.len() <= limit;
        if fits {
            self.rules.insert(name.to_owned(), rules);
        }
        Ok(fits)
    }

    /// A set; `None`: it could not be read or is too large.
    fn set(&mut self, name: &str) -> Result<Option<&Set>, Error> {
        if !self.sets.contains_key(name) {
            let set = self.read_set(name)?;
            self.sets.insert(name.to_owned(), set);
        }
        Ok(self.sets.get(name).and_then(Option::as_ref))
    }

    fn read_set(&mut self, name: &str) -> Result<Option<Set>, Error> {
        let table = &self.base.table;
        let query = Message::new(NFT_MSG_GETSET, 0, self.family)
            .text(NFTA_SET_TABLE, table)
            .text(NFTA_SET_NAME, name);
        let Ok(about) = self.netfilter.get(query) else {
            return Ok(None);
        };
        let flags = attr(&about, NFTA_SET_FLAGS).and_then(be32).unwrap_or(0);
        let mut set = Set::new(flags);
        let limit = MOST.saturating_sub(self.read);
        let query = Message::new(NFT_MSG_GETSETELEM, 0, self.family)
            .text(NFTA_SET_ELEM_LIST_TABLE, table)
            .text(NFTA_SET_ELEM_LIST_SET, name);
        self.netfilter
            .dump_until("elements of a set", query, |attributes| {
                for (_, element) in
                    attrs(attr(attributes, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or(&[]))
                {
                    set.push(element);
                }
                match set.len() <= limit {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
        self.read += set.len();
        Ok((set.len() <= limit).then(|| set.sorted()))
    }
}
