//! Evaluates one nf_tables rule for one packet: registers, headers, sets.
//! Out of scope: reading rules and sets from the kernel.
//!
//! If the value of a register is unknown, the result of a comparison with it is unknown, never a match or a mismatch.

use std::collections::HashMap;

use super::decode;
use super::netlink::{attr, be32, text};
use super::probe::Probe;

/// The result of an expression.
pub(super) enum Step {
    /// Evaluation continues with the next expression.
    Next,
    /// The same, but it is unknown whether the rule matches.
    Unknown,
    /// The rule does not match.
    NoMatch,
    /// The rule's verdict.
    Verdict(Verdict),
}

/// The verdict for a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Continue,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// A set or a verdict map.
pub(super) struct Set {
    intervals: bool,
    concatenated: bool,
    elements: Vec<Element>,
    catch_all: Option<Element>,
}

#[derive(Clone)]
struct Element {
    key: Vec<u8>,
    is_interval_end: bool,
    verdict: Option<Verdict>,
}

/// `NFT_SET_INTERVAL`, `NFT_SET_CONCAT`.
const INTERVAL: u32 = 4;
const CONCAT: u32 = 0x80;

impl Set {
    pub(super) fn new(flags: u32) -> Self {
        Self {
            intervals: flags & INTERVAL != 0,
            concatenated: flags & CONCAT != 0,
            elements: Vec::new(),
            catch_all: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    /// Adds an element, as the kernel encodes it in a message.
    pub(super) fn push(&mut self, element: &[u8]) {
        let flags = attr(element, 3).and_then(be32).unwrap_or(0);
        let found = Element {
            key: value(element, 1).unwrap_or_default().to_vec(),
            is_interval_end: flags & 1 != 0,
            verdict: attr(element, 2).and_then(verdict),
        };
        match flags & 2 {
            0 => self.elements.push(found),
            // `NFT_SET_ELEM_CATCHALL`.
            _ => self.catch_all = Some(found),
        }
    }

    pub(super) fn sorted(mut self) -> Self {
        self.elements.sort_by(|a, b| a.key.cmp(&b.key));
        self
    }

    /// Each element begins an interval, which ends before the next element.
    fn find(&self, key: &[u8]) -> Option<&Element> {
        let fits = |element: &&Element| key.len() >= element.key.len();
        let found = match self.intervals {
            true => {
                let at = self.elements.partition_point(|element| {
                    element.key.as_slice() <= key.get(..element.key.len()).unwrap_or(key)
                });
                at.checked_sub(1).and_then(|at| self.elements.get(at))
            }
            false => {
                let matches = |element: &&Element| key.starts_with(&element.key);
                self.elements.iter().filter(fits).find(matches)
            }
        };
        let found = found.filter(|element| !element.is_interval_end);
        found.or(self.catch_all.as_ref())
    }
}

/// The state of the evaluation of a rule.
pub(super) struct Machine<'p> {
    probe: &'p Probe,
    /// The result of a comparison with the VM's address is unknown, because plugins write a rule for each address and the probe has only
    /// one.
    address_unknown: bool,
    /// By the number of the first four bytes; `None`: the value is unknown.
    registers: HashMap<u32, Option<Vec<u8>>>,
}

/// The position of the addresses in the IPv4 header.
const SRC: std::ops::Range<usize> = 12..16;
const DST: std::ops::Range<usize> = 16..20;

/// Arbitrary TCP ports of the packet.
const FROM_PORT: u16 = 40_000;
const TO_PORT: u16 = 443;

impl<'p> Machine<'p> {
    /// `own`: the rule is in the FORWARD chain of iptables itself.
    pub(super) fn new(probe: &'p Probe, in_own_chain: bool) -> Self {
        Self {
            probe,
            address_unknown: in_own_chain && probe.uses_cni,
            registers: HashMap::new(),
        }
    }

    pub(super) fn step(&mut self, name: &str, data: &[u8], set: Option<&Set>) -> Step {
        match name {
            // `NFTA_*_SREG`: it sets the value.
            "meta" | "ct" if attr(data, if name == "meta" { 3 } else { 4 }).is_some() => Step::Next,
            "payload" if attr(data, 5).is_some() => Step::Next,
            "meta" => {
                let loaded = number(data, 2).and_then(|key| self.meta(key));
                self.load(data, 1, loaded)
            }
            "ct" => {
                let loaded = number(data, 2).and_then(|key| self.conntrack(key));
                self.load(data, 1, loaded)
            }
            "payload" => {
                let loaded = self.payload(data);
                self.load(data, 1, loaded)
            }
            "bitwise" => {
                let loaded = self.bitwise(data);
                self.load(data, 2, loaded)
            }
            "byteorder" => self.load(data, 2, None),
            "immediate" => match attr(data, 2).and_then(verdict) {
                Some(found) => Step::Verdict(found),
                None => {
                    let constant = value(data, 2).map(<[u8]>::to_vec);
                    self.load(data, 1, constant)
                }
            },
            "cmp" => matched(self.compare(data)),
            "range" => matched(self.range(data)),
            "lookup" => self.lookup(data, set),
            "reject" => Step::Verdict(Verdict::Drop),
            // A single packet never exceeds a limit.
            "limit" => match number(data, 5).unwrap_or(0) & 1 {
                0 => Step::Next,
                _ => Step::NoMatch,
            },
            "counter" | "log" | "objref" | "last" | "flow_offload" | "notrack" => Step::Next,
            "target" => match attr(data, 1).map(text).as_deref() {
                Some("REJECT") => Step::Verdict(Verdict::Drop),
                Some(_) | None => Step::Next,
            },
            "match" => self.extension(data),
            "queue" => Step::Verdict(Verdict::Accept),
            _ => {
                self.registers.clear();
                Step::Unknown
            }
        }
    }

    /// An extension of iptables: `NFTA_MATCH_NAME`, `_REV` and `_INFO`.
    fn extension(&mut self, data: &[u8]) -> Step {
        let name = attr(data, 1).map(text);
        match (name.as_deref(), number(data, 2)) {
            (Some("comment"), _) => Step::Next,
            (Some("conntrack"), Some(3)) => {
                let states = attr(data, 3).and_then(decode::conntrack_states);
                matched(states.map(|states| states & self.state() != 0))
            }
            _ => Step::Unknown,
        }
    }

    /// A state is a bit: established 2, new 8 (`NF_CT_STATE_BIT`, `XT_CONNTRACK_STATE_BIT`).
    fn state(&self) -> u32 {
        if self.probe.is_reply { 2 } else { 8 }
    }

    fn load(&mut self, data: &[u8], kind: u16, loaded: Option<Vec<u8>>) -> Step {
        if let Some(register) = register(data, kind) {
            self.registers.insert(register, loaded);
        }
        Step::Next
    }

    fn get(&self, data: &[u8], kind: u16) -> Option<&[u8]> {
        self.registers.get(&register(data, kind)?)?.as_deref()
    }

    /// `enum nft_meta_keys`.
    fn meta(&self, key: u32) -> Option<Vec<u8>> {
        let (input, output) = (&self.probe.in_if, &self.probe.out_if);
        let index = |index: Option<u32>| index.unwrap_or(u32::MAX).to_ne_bytes().to_vec();
        let name = |name: &str| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        };
        Some(match key {
            // `ETH_P_IP`, `NFPROTO_IPV4`, `IPPROTO_TCP`.
            1 => 0x0800_u16.to_be_bytes().to_vec(),
            15 => vec![libc::AF_INET as u8],
            16 => vec![libc::IPPROTO_TCP as u8],
            // The packet has no fwmark.
            3 => vec![0; 4],
            4 => index(input.index),
            5 => index(output.index),
            6 => name(&input.name),
            7 => name(&output.name),
            // `ARPHRD_ETHER`.
            8 | 9 => 1_u16.to_ne_bytes().to_vec(),
            // `PACKET_HOST`.
            19 => vec![0],
            _ => return None,
        })
    }

    /// `enum nft_ct_keys`.
    fn conntrack(&self, key: u32) -> Option<Vec<u8>> {
        let answers = self.probe.is_reply;
        let number = |number: u32| Some(number.to_ne_bytes().to_vec());
        match key {
            0 => number(self.state()),
            1 => Some(vec![u8::from(answers)]),
            // `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_CONFIRMED`, `IPS_SRC_NAT`; no `IPS_DST_NAT`.
            2 => number(if answers { 0x1e } else { 0 }),
            // The connection has no mark (`ct mark`).
            3 => number(0),
            _ => None,
        }
    }

    fn payload(&self, data: &[u8]) -> Option<Vec<u8>> {
        let header = match number(data, 2)? {
            1 => self.ip_header().to_vec(),
            2 => self.tcp_header().to_vec(),
            _ => return None,
        };
        let (offset, length) = (number(data, 3)? as usize, number(data, 4)? as usize);
        if self.address_unknown && number(data, 2) == Some(1) {
            let vm_address = if self.probe.is_reply { DST } else { SRC };
            if offset < vm_address.end && vm_address.start < offset.saturating_add(length) {
                return None;
            }
        }
        Some(header.get(offset..offset.checked_add(length)?)?.to_vec())
    }

    fn ip_header(&self) -> [u8; 20] {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[3] = 40;
        header[8] = 63;
        header[9] = libc::IPPROTO_TCP as u8;
        header[SRC].copy_from_slice(&self.probe.src.octets());
        header[DST].copy_from_slice(&self.probe.dst.octets());
        header
    }

    fn tcp_header(&self) -> [u8; 20] {
        let (from, to, flags) = match self.probe.is_reply {
            false => (FROM_PORT, TO_PORT, 0x02),
            true => (TO_PORT, FROM_PORT, 0x12),
        };
        let mut header = [0; 20];
        header[..2].copy_from_slice(&from.to_be_bytes());
        header[2..4].copy_from_slice(&to.to_be_bytes());
        (header[12], header[13]) = (0x50, flags);
        header
    }

    /// `NFT_BITWISE_BOOL`: `(value & mask) ^ xor`.
    fn bitwise(&self, data: &[u8]) -> Option<Vec<u8>> {
        if number(data, 6).unwrap_or(0) != 0 {
            return None;
        }
        let (mask, xor) = (value(data, 4)?, value(data, 5)?);
        let bytes = self.get(data, 1)?.iter().zip(mask).zip(xor);
        Some(
            bytes
                .map(|((byte, mask), xor)| (byte & mask) ^ xor)
                .collect(),
        )
    }

    /// Bytes are compared in the order in which they are stored (`memcmp`).
    fn compare(&self, data: &[u8]) -> Option<bool> {
        let right = value(data, 3)?;
        let left = self.get(data, 1)?.get(..right.len())?;
        Some(match number(data, 2)? {
            0 => left == right,
            1 => left != right,
            2 => left < right,
            3 => left <= right,
            4 => left > right,
            5 => left >= right,
            _ => return None,
        })
    }

    fn range(&self, data: &[u8]) -> Option<bool> {
        let (from, to) = (value(data, 3)?, value(data, 4)?);
        let found = self.get(data, 1)?.get(..from.len())?;
        let within = from <= found && found <= to;
        Some(within == (number(data, 2)? == 0))
    }

    fn lookup(&mut self, data: &[u8], set: Option<&Set>) -> Step {
        let inverted = number(data, 5).unwrap_or(0) & 1 != 0;
        let known = set.filter(|set| !set.concatenated);
        let (Some(set), Some(key)) = (known, self.get(data, 2)) else {
            self.load(data, 3, None);
            return Step::Unknown;
        };
        match (set.find(key), attr(data, 3).is_some()) {
            (Some(element), true) => match element.verdict.clone() {
                Some(verdict) => Step::Verdict(verdict),
                None => self.load(data, 3, None),
            },
            (None, true) => Step::NoMatch,
            (found, false) => matched(Some(found.is_some() != inverted)),
        }
    }
}

fn matched(found: Option<bool>) -> Step {
    match found {
        Some(true) => Step::Next,
        Some(false) => Step::NoMatch,
        None => Step::Unknown,
    }
}

fn number(data: &[u8], kind: u16) -> Option<u32> {
    attr(data, kind).and_then(be32)
}

/// `NFTA_DATA_VALUE` within an attribute.
fn value(data: &[u8], kind: u16) -> Option<&[u8]> {
    attr(data, kind).and_then(|data| attr(data, 1))
}

/// Numbers 1 to 4 denote registers of 16 bytes, those from 8 on registers of 4 bytes (`enum nft_registers`).
fn register(data: &[u8], kind: u16) -> Option<u32> {
    Some(match number(data, kind)? {
        old @ 1..=4 => (old - 1) * 4,
        new => new.checked_sub(8)?,
    })
}

/// `NFTA_DATA_VERDICT`: the code, and the chain.
fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = attr(data, 2)?;
    let chain = || attr(verdict, 2).map(text).unwrap_or_default();
    Some(match attr(verdict, 1).and_then(be32)? as i32 {
        0 => Verdict::Drop,
        -3 => Verdict::Jump(chain()),
        -4 => Verdict::Goto(chain()),
        -5 => Verdict::Return,
        -1 | -2 => Verdict::Continue,
        _ => Verdict::Accept,
    })
}
