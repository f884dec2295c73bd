//! Decodes an nf_tables rule, one expression at a time; the registers record the source of each value.
//! Out of scope: reading from the kernel.
//!
//! Formats: linux/netfilter/nf_tables.h; numbers are big-endian, values compared with packets have the packet's byte order.

use std::ops::RangeInclusive;

use super::decode::{self, Decoded, Exact, ForeignText, Inverted, Unknown, array, once, test};
use super::netlink::{attr, attrs, be32, text};
use super::uapi::*;
use crate::host::rule::{Match, Protocol, Reject, Rule, Target};

/// The source of a register's value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    InIf,
    OutIf,
    L4Protocol,
    CtState,
    Family,
    Payload { base: u32, offset: u32, length: u32 },
}

struct Register {
    number: u32,
    source: Source,
    mask: Option<Vec<u8>>,
    compared: bool,
}

#[derive(Default)]
struct Machine {
    when: Match,
    target: Option<Target>,
    registers: Vec<Register>,
    constants: Vec<(u32, Vec<u8>)>,
}

/// Decodes the attributes of an `NFT_MSG_NEWRULE`.
pub fn rule(attributes: &[u8]) -> Rule {
    let mut decoder = Machine::default();
    decoder
        .run(attributes)
        .and_then(|()| decode::complete(decoder.when, decoder.target))
        .unwrap_or_else(|Unknown| foreign(attributes))
}

/// The number of packets in the rule's counter (`NFTA_COUNTER_PACKETS`); 0 without one.
pub fn packets(attributes: &[u8]) -> u64 {
    let counter = expressions(attributes).find(|(name, _)| name == "counter");
    let packets = counter.and_then(|(_, data)| attr(data, NFTA_COUNTER_PACKETS)?.try_into().ok());
    packets.map_or(0, u64::from_be_bytes)
}

fn foreign(attributes: &[u8]) -> Rule {
    let mut sketch = ForeignText::default();
    for (name, data) in expressions(attributes).filter(|(name, _)| name != "counter") {
        match name.as_str() {
            "match" => sketch.add(extension(&name, data, NFTA_MATCH_NAME), data),
            "target" => sketch.add(extension(&name, data, NFTA_TARGET_NAME), data),
            _ => sketch.add(name, data),
        }
    }
    if let Some(comment) = attr(attributes, NFTA_RULE_USERDATA).and_then(userdata_comment) {
        sketch.add("comment", comment.as_bytes());
    }
    sketch.foreign()
}

/// The text of an x_tables match or target, whose own name is the attribute `kind`.
fn extension(name: &str, data: &[u8], kind: u16) -> String {
    let extension = attr(data, kind).map(text).unwrap_or_default();
    format!("{name} {extension}")
}

fn expressions(attributes: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    attrs(attr(attributes, NFTA_RULE_EXPRESSIONS).unwrap_or(&[])).map(|(_, expression)| {
        let name = attr(expression, NFTA_EXPR_NAME)
            .map(text)
            .unwrap_or_default();
        (name, attr(expression, NFTA_EXPR_DATA).unwrap_or(&[]))
    })
}

/// The type of a comment in the user data of a rule (`libnftnl/udata.h`).
const NFTNL_UDATA_RULE_COMMENT: u8 = 0;

/// Newer iptables stores the comment in the rule's user data: type, length, text.
fn userdata_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            return Some(text(value));
        }
        data = &rest[usize::from(*length)..];
    }
    None
}

impl Machine {
    fn run(&mut self, attributes: &[u8]) -> Decoded {
        for (name, data) in expressions(attributes) {
            self.step(&name, data)?;
        }
        if let Some(comment) = attr(attributes, NFTA_RULE_USERDATA).and_then(userdata_comment) {
            decode::comment(&mut self.when, &comment)?;
        }
        match self.registers.iter().all(|register| register.compared) {
            true => Ok(()),
            false => Err(Unknown),
        }
    }

    fn step(&mut self, name: &str, data: &[u8]) -> Decoded {
        if self.target.is_some() {
            return Err(Unknown);
        }
        let number = |kind| attr(data, kind).and_then(be32).ok_or(Unknown);
        match name {
            "counter" => Ok(()),
            "meta" => self.load(number(NFTA_META_DREG)?, meta(number(NFTA_META_KEY)?)?),
            "payload" => self.load(
                number(NFTA_PAYLOAD_DREG)?,
                Source::Payload {
                    base: number(NFTA_PAYLOAD_BASE)?,
                    offset: number(NFTA_PAYLOAD_OFFSET)?,
                    length: number(NFTA_PAYLOAD_LEN)?,
                },
            ),
            "ct" if number(NFTA_CT_KEY)? == NFT_CT_STATE
                && attr(data, NFTA_CT_DIRECTION).is_none() =>
            {
                self.load(number(NFTA_CT_DREG)?, Source::CtState)
            }
            "bitwise" => self.mask(data),
            "cmp" => {
                let value = value(data, NFTA_CMP_DATA).ok_or(Unknown)?;
                self.compare(number(NFTA_CMP_SREG)?, number(NFTA_CMP_OP)?, value)
            }
            "range" => self.range(data),
            // A value for a later expression, not a verdict.
            "immediate" if constant(data).is_some() => {
                let value = constant(data).ok_or(Unknown)?;
                self.constants
                    .push((number(NFTA_IMMEDIATE_DREG)?, value.to_vec()));
                Ok(())
            }
            "nat" if number(NFTA_NAT_TYPE)? == NFT_NAT_DNAT => {
                let then = self.dnat(data);
                once(&mut self.target, then)
            }
            "redir" => once(&mut self.target, Target::Translate("REDIRECT".to_owned())),
            "limit" => super::limits::nft_limit(&mut self.when, data),
            "match" => {
                let name = attr(data, NFTA_MATCH_NAME).map(text).ok_or(Unknown)?;
                decode::xt_match(
                    &mut self.when,
                    &name,
                    number(NFTA_MATCH_REV)?,
                    attr(data, NFTA_MATCH_INFO).ok_or(Unknown)?,
                )
            }
            _ => {
                let target = verdict(name, data)?;
                once(&mut self.target, target)
            }
        }
    }

    /// DNAT to an address and a port from the rule; without them if they come from a map.
    fn dnat(&self, data: &[u8]) -> Target {
        let value = |kind| {
            let register = attr(data, kind).and_then(be32)?;
            let mut known = self.constants.iter().rev();
            known.find_map(|(number, value)| (*number == register).then_some(value))
        };
        let address = value(NFTA_NAT_REG_ADDR_MIN).and_then(|bytes| array::<4>(bytes, 0).ok());
        let port = value(NFTA_NAT_REG_PROTO_MIN).and_then(|bytes| array::<2>(bytes, 0).ok());
        let address = address.map(|bytes| std::net::Ipv4Addr::from(bytes).to_string());
        let port = port.map(|bytes| format!(":{}", u16::from_be_bytes(bytes)));
        let to = [address, port].map(Option::unwrap_or_default).concat();
        Target::Translate(format!("DNAT --to-destination {to}"))
    }

    fn load(&mut self, number: u32, source: Source) -> Decoded {
        if self
            .registers
            .iter()
            .any(|r| r.number == number && !r.compared)
        {
            return Err(Unknown);
        }
        self.registers.retain(|register| register.number != number);
        self.registers.push(Register {
            number,
            source,
            mask: None,
            compared: false,
        });
        Ok(())
    }

    fn register(&mut self, number: u32) -> Result<&mut Register, Unknown> {
        self.registers
            .iter_mut()
            .find(|register| register.number == number)
            .ok_or(Unknown)
    }

    /// `register = register & mask`, in place.
    fn mask(&mut self, data: &[u8]) -> Decoded {
        let number = |kind| attr(data, kind).and_then(be32);
        let value = |kind| value(data, kind).ok_or(Unknown);
        let in_place = number(NFTA_BITWISE_SREG) == number(NFTA_BITWISE_DREG);
        let and_only = number(NFTA_BITWISE_OP).unwrap_or(NFT_BITWISE_BOOL) == NFT_BITWISE_BOOL
            && value(NFTA_BITWISE_XOR)?.iter().all(|byte| *byte == 0);
        let register = self.register(number(NFTA_BITWISE_SREG).ok_or(Unknown)?)?;
        match in_place && and_only && !register.compared {
            true => once(&mut register.mask, value(NFTA_BITWISE_MASK)?.to_vec()),
            false => Err(Unknown),
        }
    }

    fn compare(&mut self, number: u32, op: u32, value: &[u8]) -> Decoded {
        let register = self.register(number)?;
        register.compared = true;
        let (source, mask) = (register.source, register.mask.clone());
        let when = &mut self.when;
        match (op, source, mask) {
            (NFT_CMP_EQ, source, mask) => equal(when, source, mask.as_deref(), Inverted::No, value),
            (NFT_CMP_NEQ, source, mask) => {
                equal(when, source, mask.as_deref(), Inverted::Yes, value)
            }
            (NFT_CMP_LTE, DEST_PORT, None) => {
                let first = match when.dport.take().map(RangeInclusive::into_inner) {
                    None => 0,
                    Some((first, u16::MAX)) => first,
                    Some(_) => return Err(Unknown),
                };
                once(
                    &mut when.dport,
                    first..=u16::from_be_bytes(array(value, 0)?),
                )
            }
            (NFT_CMP_GTE, DEST_PORT, None) => once(
                &mut when.dport,
                u16::from_be_bytes(array(value, 0)?)..=u16::MAX,
            ),
            _ => Err(Unknown),
        }
    }

    fn range(&mut self, data: &[u8]) -> Decoded {
        let number = |kind| attr(data, kind).and_then(be32).ok_or(Unknown);
        let port = |kind| {
            let value = value(data, kind).ok_or(Unknown)?;
            array(value, 0).map(u16::from_be_bytes)
        };
        let register = self.register(number(NFTA_RANGE_SREG)?)?;
        register.compared = true;
        match (register.source, &register.mask, number(NFTA_RANGE_OP)?) {
            (DEST_PORT, None, NFT_RANGE_EQ) => once(
                &mut self.when.dport,
                port(NFTA_RANGE_FROM_DATA)?..=port(NFTA_RANGE_TO_DATA)?,
            ),
            _ => Err(Unknown),
        }
    }
}

const DEST_PORT: Source = Source::Payload {
    base: NFT_PAYLOAD_TRANSPORT_HEADER,
    offset: TCP_DEST,
    length: 2,
};

// Offsets of `h_source` in `struct ethhdr`; of `protocol`, `saddr` and `daddr` in `struct iphdr`; of `type` in `struct icmphdr`; of `dest`
// in `struct tcphdr` and `struct udphdr`, and of the flags in the former.
const ETH_SOURCE: u32 = 6;
const IP_PROTOCOL: u32 = 9;
const IP_SADDR: u32 = 12;
const IP_DADDR: u32 = 16;
const ICMP_TYPE: u32 = 0;
const TCP_DEST: u32 = 2;
const TCP_FLAGS: u32 = 13;
const ETH_ALEN: u32 = libc::ETH_ALEN as u32;

fn meta(key: u32) -> Result<Source, Unknown> {
    match key {
        NFT_META_IIFNAME => Ok(Source::InIf),
        NFT_META_OIFNAME => Ok(Source::OutIf),
        NFT_META_NFPROTO => Ok(Source::Family),
        NFT_META_L4PROTO => Ok(Source::L4Protocol),
        _ => Err(Unknown),
    }
}

fn equal(
    when: &mut Match,
    source: Source,
    mask: Option<&[u8]>,
    inverted: Inverted,
    value: &[u8],
) -> Decoded {
    match (source, mask, inverted) {
        (Source::InIf, None, _) => once(&mut when.in_if, test(link(value)?, inverted)),
        (Source::OutIf, None, _) => once(&mut when.out_if, test(link(value)?, inverted)),
        // Always true for IPv4 packets.
        (Source::Family, None, Inverted::No) if first(value)? == NFPROTO_IPV4 => Ok(()),
        (Source::L4Protocol, None, Inverted::No) => {
            once(&mut when.protocol, decode::protocol(first(value)?)?)
        }
        (Source::CtState, Some(mask), Inverted::Yes) => ct_state(when, mask, value),
        (
            Source::Payload {
                base,
                offset,
                length,
            },
            mask,
            _,
        ) => payload(when, (base, offset, length), mask, inverted, value),
        _ => Err(Unknown),
    }
}

fn first(value: &[u8]) -> Result<u8, Unknown> {
    array::<1>(value, 0).map(|[byte]| byte)
}

/// A value with a NUL is compared completely, otherwise as a prefix.
fn link(value: &[u8]) -> Result<String, Unknown> {
    match value.iter().position(|byte| *byte == 0) {
        Some(end) => decode::link(&value[..end], Exact::Full),
        None => decode::link(value, Exact::Prefix),
    }
}

/// `ct state & mask != 0`. From bit 4 on, nf_tables and x_tables use different states.
fn ct_state(when: &mut Match, mask: &[u8], value: &[u8]) -> Decoded {
    let mask = u32::from_ne_bytes(array(mask, 0)?);
    match mask <= 0xf && value.iter().all(|byte| *byte == 0) {
        true => decode::ct_state(when, mask),
        false => Err(Unknown),
    }
}

fn payload(
    when: &mut Match,
    field: (u32, u32, u32),
    mask: Option<&[u8]>,
    inverted: Inverted,
    value: &[u8],
) -> Decoded {
    match (field, mask, inverted) {
        ((NFT_PAYLOAD_NETWORK_HEADER, IP_SADDR, length @ 1..=4), mask, _) => {
            once(&mut when.src, test(network(length, mask, value)?, inverted))
        }
        ((NFT_PAYLOAD_NETWORK_HEADER, IP_DADDR, length @ 1..=4), mask, _) => {
            once(&mut when.dst, test(network(length, mask, value)?, inverted))
        }
        ((NFT_PAYLOAD_NETWORK_HEADER, IP_PROTOCOL, 1), None, Inverted::No) => {
            once(&mut when.protocol, decode::protocol(first(value)?)?)
        }
        ((NFT_PAYLOAD_TRANSPORT_HEADER, TCP_DEST, 2), None, Inverted::No) => {
            let port = u16::from_be_bytes(array(value, 0)?);
            once(&mut when.dport, port..=port)
        }
        ((NFT_PAYLOAD_TRANSPORT_HEADER, ICMP_TYPE, 1), None, Inverted::No)
            if when.protocol == Some(Protocol::Icmp) =>
        {
            once(&mut when.icmp_type, first(value)?)
        }
        ((NFT_PAYLOAD_TRANSPORT_HEADER, TCP_FLAGS, 1), Some(mask), Inverted::No) => {
            decode::tcp_flags(when, first(mask)?, first(value)?)
        }
        ((NFT_PAYLOAD_LL_HEADER, ETH_SOURCE, ETH_ALEN), None, _) => {
            once(&mut when.mac_source, test(array(value, 0)?, inverted))
        }
        _ => Err(Unknown),
    }
}

/// The data of an `immediate` that is not a verdict.
fn constant(data: &[u8]) -> Option<&[u8]> {
    value(data, NFTA_IMMEDIATE_DATA)
}

/// `NFTA_DATA_VALUE` within an attribute.
pub(super) fn value(data: &[u8], kind: u16) -> Option<&[u8]> {
    attr(data, kind).and_then(|data| attr(data, NFTA_DATA_VALUE))
}

/// The first `length` bytes of an address: for a prefix of whole bytes only these are compared, any other is masked.
fn network(
    length: u32,
    mask: Option<&[u8]>,
    value: &[u8],
) -> Result<ipnetwork::Ipv4Network, Unknown> {
    let length = length as usize;
    let widen = |bytes: &[u8]| {
        let mut wide = [0; 4];
        wide[..length].copy_from_slice(bytes.get(..length).ok_or(Unknown)?);
        Ok(wide)
    };
    let whole = [0xff; 4];
    decode::network(widen(value)?, widen(mask.unwrap_or(&whole))?)
}

fn verdict(name: &str, data: &[u8]) -> Result<Target, Unknown> {
    let number = |kind| attr(data, kind).and_then(be32);
    match name {
        "immediate" => {
            let verdict = attr(data, NFTA_IMMEDIATE_DATA)
                .and_then(|data| attr(data, NFTA_DATA_VERDICT))
                .ok_or(Unknown)?;
            let code = attr(verdict, NFTA_VERDICT_CODE)
                .and_then(be32)
                .ok_or(Unknown)? as i32;
            match (code, attr(verdict, NFTA_VERDICT_CHAIN).map(text)) {
                (libc::NF_DROP, None) => Ok(Target::Drop),
                (libc::NF_ACCEPT, None) => Ok(Target::Accept),
                (libc::NFT_RETURN, None) => Ok(Target::Return),
                (libc::NFT_JUMP, Some(chain)) => Ok(Target::Jump(chain)),
                _ => Err(Unknown),
            }
        }
        "target" => {
            let name = attr(data, NFTA_TARGET_NAME).map(text).ok_or(Unknown)?;
            decode::xt_target(
                &name,
                number(NFTA_TARGET_REV).ok_or(Unknown)?,
                attr(data, NFTA_TARGET_INFO).ok_or(Unknown)?,
            )
        }
        // The code is "administratively prohibited".
        "reject" => match (number(NFTA_REJECT_TYPE), attr(data, NFTA_REJECT_ICMP_CODE)) {
            (Some(NFT_REJECT_ICMP_UNREACH), Some([ICMP_PKT_FILTERED])) => {
                Ok(Target::Reject(Reject::IcmpAdminProhibited))
            }
            (Some(NFT_REJECT_TCP_RST), _) => Ok(Target::Reject(Reject::TcpReset)),
            _ => Err(Unknown),
        },
        "masq"
            if attrs(data)
                .all(|(kind, value)| kind == NFTA_MASQ_FLAGS && be32(value) == Some(0)) =>
        {
            Ok(Target::Masquerade)
        }
        _ => Err(Unknown),
    }
}
