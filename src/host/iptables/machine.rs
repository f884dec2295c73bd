//! Evaluates one nf_tables rule for one packet: registers, headers, sets.
//! Out of scope: reading rules and sets from the kernel.
//!
//! If the value of a register is unknown, the result of a comparison with it is unknown, never a match or a mismatch.

use std::collections::HashMap;

use super::decode;
use super::expr::value;
use super::netlink::{attr, be32, text};
use super::probe::Probe;
use super::uapi::*;

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

impl Set {
    pub(super) fn new(flags: u32) -> Self {
        Self {
            intervals: flags & NFT_SET_INTERVAL != 0,
            concatenated: flags & NFT_SET_CONCAT != 0,
            elements: Vec::new(),
            catch_all: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    /// Adds an element, as the kernel encodes it in a message.
    pub(super) fn push(&mut self, element: &[u8]) {
        let flags = attr(element, NFTA_SET_ELEM_FLAGS)
            .and_then(be32)
            .unwrap_or(0);
        let found = Element {
            key: value(element, NFTA_SET_ELEM_KEY)
                .unwrap_or_default()
                .to_vec(),
            is_interval_end: flags & NFT_SET_ELEM_INTERVAL_END != 0,
            verdict: attr(element, NFTA_SET_ELEM_DATA).and_then(verdict),
        };
        match flags & NFT_SET_ELEM_CATCHALL {
            0 => self.elements.push(found),
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
            // With a source register it sets the value.
            "meta" if attr(data, NFTA_META_SREG).is_some() => Step::Next,
            "ct" if attr(data, NFTA_CT_SREG).is_some() => Step::Next,
            "payload" if attr(data, NFTA_PAYLOAD_SREG).is_some() => Step::Next,
            "meta" => {
                let loaded = number(data, NFTA_META_KEY).and_then(|key| self.meta(key));
                self.load(data, NFTA_META_DREG, loaded)
            }
            "ct" => {
                let loaded = number(data, NFTA_CT_KEY).and_then(|key| self.conntrack(key));
                self.load(data, NFTA_CT_DREG, loaded)
            }
            "payload" => {
                let loaded = self.payload(data);
                self.load(data, NFTA_PAYLOAD_DREG, loaded)
            }
            "bitwise" => {
                let loaded = self.bitwise(data);
                self.load(data, NFTA_BITWISE_DREG, loaded)
            }
            "byteorder" => self.load(data, NFTA_BYTEORDER_DREG, None),
            "immediate" => match attr(data, NFTA_IMMEDIATE_DATA).and_then(verdict) {
                Some(found) => Step::Verdict(found),
                None => {
                    let constant = value(data, NFTA_IMMEDIATE_DATA).map(<[u8]>::to_vec);
                    self.load(data, NFTA_IMMEDIATE_DREG, constant)
                }
            },
            "cmp" => matched(self.compare(data)),
            "range" => matched(self.range(data)),
            "lookup" => self.lookup(data, set),
            "reject" => Step::Verdict(Verdict::Drop),
            // A single packet never exceeds a limit.
            "limit" => match number(data, NFTA_LIMIT_FLAGS).unwrap_or(0) & NFT_LIMIT_F_INV {
                0 => Step::Next,
                _ => Step::NoMatch,
            },
            "counter" | "log" | "objref" | "last" | "flow_offload" | "notrack" => Step::Next,
            "target" => match attr(data, NFTA_TARGET_NAME).map(text).as_deref() {
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

    /// An extension of iptables.
    fn extension(&mut self, data: &[u8]) -> Step {
        let name = attr(data, NFTA_MATCH_NAME).map(text);
        match (name.as_deref(), number(data, NFTA_MATCH_REV)) {
            (Some("comment"), _) => Step::Next,
            (Some("conntrack"), Some(3)) => {
                let states = attr(data, NFTA_MATCH_INFO).and_then(decode::conntrack_states);
                matched(states.map(|states| states & self.state() != 0))
            }
            _ => Step::Unknown,
        }
    }

    /// A state is a bit (`NF_CT_STATE_BIT`, `XT_CONNTRACK_STATE_BIT`).
    fn state(&self) -> u32 {
        match self.probe.is_reply {
            true => XT_CONNTRACK_STATE_ESTABLISHED,
            false => XT_CONNTRACK_STATE_NEW,
        }
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
            bytes.resize(libc::IFNAMSIZ, 0);
            bytes
        };
        Some(match key {
            NFT_META_PROTOCOL => (libc::ETH_P_IP as u16).to_be_bytes().to_vec(),
            NFT_META_NFPROTO => vec![NFPROTO_IPV4],
            NFT_META_L4PROTO => vec![libc::IPPROTO_TCP as u8],
            // The packet has no fwmark.
            NFT_META_MARK => vec![0; 4],
            NFT_META_IIF => index(input.index),
            NFT_META_OIF => index(output.index),
            NFT_META_IIFNAME => name(&input.name),
            NFT_META_OIFNAME => name(&output.name),
            NFT_META_IIFTYPE | NFT_META_OIFTYPE => libc::ARPHRD_ETHER.to_ne_bytes().to_vec(),
            NFT_META_PKTTYPE => vec![libc::PACKET_HOST],
            _ => return None,
        })
    }

    /// `enum nft_ct_keys`.
    fn conntrack(&self, key: u32) -> Option<Vec<u8>> {
        let answers = self.probe.is_reply;
        let number = |number: u32| Some(number.to_ne_bytes().to_vec());
        match key {
            NFT_CT_STATE => number(self.state()),
            NFT_CT_DIRECTION => Some(vec![u8::from(answers)]),
            // No `IPS_DST_NAT`.
            NFT_CT_STATUS => number(match answers {
                true => IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED | IPS_SRC_NAT,
                false => 0,
            }),
            // The connection has no mark (`ct mark`).
            NFT_CT_MARK => number(0),
            _ => None,
        }
    }

    fn payload(&self, data: &[u8]) -> Option<Vec<u8>> {
        let base = number(data, NFTA_PAYLOAD_BASE)?;
        let header = match base {
            NFT_PAYLOAD_NETWORK_HEADER => self.ip_header().to_vec(),
            NFT_PAYLOAD_TRANSPORT_HEADER => self.tcp_header().to_vec(),
            _ => return None,
        };
        let offset = number(data, NFTA_PAYLOAD_OFFSET)? as usize;
        let length = number(data, NFTA_PAYLOAD_LEN)? as usize;
        if self.address_unknown && base == NFT_PAYLOAD_NETWORK_HEADER {
            let vm_address = if self.probe.is_reply { DST } else { SRC };
            if offset < vm_address.end && vm_address.start < offset.saturating_add(length) {
                return None;
            }
        }
        Some(header.get(offset..offset.checked_add(length)?)?.to_vec())
    }

    /// `struct iphdr`: version 4 and header length (5 x 4 bytes), total length, TTL, protocol, addresses.
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

    /// `struct tcphdr`: ports, header length (5 x 4 bytes), flags.
    fn tcp_header(&self) -> [u8; 20] {
        let (from, to, flags) = match self.probe.is_reply {
            false => (FROM_PORT, TO_PORT, TH_SYN),
            true => (TO_PORT, FROM_PORT, TH_SYN | TH_ACK),
        };
        let mut header = [0; 20];
        header[..2].copy_from_slice(&from.to_be_bytes());
        header[2..4].copy_from_slice(&to.to_be_bytes());
        (header[12], header[13]) = (0x50, flags);
        header
    }

    /// `NFT_BITWISE_BOOL`: `(value & mask) ^ xor`.
    fn bitwise(&self, data: &[u8]) -> Option<Vec<u8>> {
        if number(data, NFTA_BITWISE_OP).unwrap_or(NFT_BITWISE_BOOL) != NFT_BITWISE_BOOL {
            return None;
        }
        let mask = value(data, NFTA_BITWISE_MASK)?;
        let xor = value(data, NFTA_BITWISE_XOR)?;
        let bytes = self.get(data, NFTA_BITWISE_SREG)?.iter().zip(mask).zip(xor);
        Some(
            bytes
                .map(|((byte, mask), xor)| (byte & mask) ^ xor)
                .collect(),
        )
    }

    /// Bytes are compared in the order in which they are stored (`memcmp`).
    fn compare(&self, data: &[u8]) -> Option<bool> {
        let right = value(data, NFTA_CMP_DATA)?;
        let left = self.get(data, NFTA_CMP_SREG)?.get(..right.len())?;
        Some(match number(data, NFTA_CMP_OP)? {
            NFT_CMP_EQ => left == right,
            NFT_CMP_NEQ => left != right,
            NFT_CMP_LT => left < right,
            NFT_CMP_LTE => left <= right,
            NFT_CMP_GT => left > right,
            NFT_CMP_GTE => left >= right,
            _ => return None,
        })
    }

    fn range(&self, data: &[u8]) -> Option<bool> {
        let from = value(data, NFTA_RANGE_FROM_DATA)?;
        let to = value(data, NFTA_RANGE_TO_DATA)?;
        let found = self.get(data, NFTA_RANGE_SREG)?.get(..from.len())?;
        let within = from <= found && found <= to;
        Some(within == (number(data, NFTA_RANGE_OP)? == NFT_RANGE_EQ))
    }

    fn lookup(&mut self, data: &[u8], set: Option<&Set>) -> Step {
        let inverted = number(data, NFTA_LOOKUP_FLAGS).unwrap_or(0) & NFT_LOOKUP_F_INV != 0;
        let known = set.filter(|set| !set.concatenated);
        let (Some(set), Some(key)) = (known, self.get(data, NFTA_LOOKUP_SREG)) else {
            self.load(data, NFTA_LOOKUP_DREG, None);
            return Step::Unknown;
        };
        match (set.find(key), attr(data, NFTA_LOOKUP_DREG).is_some()) {
            (Some(element), true) => match element.verdict.clone() {
                Some(verdict) => Step::Verdict(verdict),
                None => self.load(data, NFTA_LOOKUP_DREG, None),
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

/// Numbers 1 to 4 denote registers of 16 bytes, those from 8 on the same memory as registers of 4 bytes (`enum nft_registers`).
fn register(data: &[u8], kind: u16) -> Option<u32> {
    Some(match number(data, kind)? {
        old @ NFT_REG_1..=NFT_REG_4 => (old - NFT_REG_1) * (NFT_REG_SIZE / NFT_REG32_SIZE),
        new => new.checked_sub(NFT_REG32_00)?,
    })
}

/// `NFTA_DATA_VERDICT`: the code, and the chain.
fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = attr(data, NFTA_DATA_VERDICT)?;
    let code = attr(verdict, NFTA_VERDICT_CODE).and_then(be32)?;
    let chain = attr(verdict, NFTA_VERDICT_CHAIN).map(text);
    Some(match code as i32 {
        libc::NF_DROP => Verdict::Drop,
        libc::NFT_JUMP => Verdict::Jump(chain.unwrap_or_default()),
        libc::NFT_GOTO => Verdict::Goto(chain.unwrap_or_default()),
        libc::NFT_RETURN => Verdict::Return,
        libc::NFT_CONTINUE | libc::NFT_BREAK => Verdict::Continue,
        _ => Verdict::Accept,
    })
}
