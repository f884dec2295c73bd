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
    let packets = counter.and_then(|(_, data)| attr(data, 2)?.try_into().ok());
    packets.map_or(0, u64::from_be_bytes)
}

fn foreign(attributes: &[u8]) -> Rule {
    let mut sketch = ForeignText::default();
    for (name, data) in expressions(attributes).filter(|(name, _)| name != "counter") {
        match name.as_str() {
            "match" | "target" => {
                let extension = attr(data, 1).map(text).unwrap_or_default();
                sketch.add(format!("{name} {extension}"), data);
            }
            _ => sketch.add(name, data),
        }
    }
    if let Some(comment) = attr(attributes, NFTA_RULE_USERDATA).and_then(userdata_comment) {
        sketch.add("comment", comment.as_bytes());
    }
    sketch.foreign()
}

fn expressions(attributes: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    attrs(attr(attributes, NFTA_RULE_EXPRESSIONS).unwrap_or(&[])).map(|(_, expression)| {
        let name = attr(expression, NFTA_EXPR_NAME)
            .map(text)
            .unwrap_or_default();
        (name, attr(expression, NFTA_EXPR_DATA).unwrap_or(&[]))
    })
}

/// Newer iptables stores the comment in the rule's user data: type (0: comment), length, text (`libnftnl/udata.h`).
fn userdata_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
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
            "meta" => self.load(number(1)?, meta(number(2)?)?),
            "payload" => self.load(
                number(1)?,
                Source::Payload {
                    base: number(2)?,
                    offset: number(3)?,
                    length: number(4)?,
                },
            ),
            // `NFT_CT_STATE`.
            "ct" if number(2)? == 0 && attr(data, 3).is_none() => {
                self.load(number(1)?, Source::CtState)
            }
            "bitwise" => self.mask(data),
            "cmp" => {
                let value = attr(data, 3)
                    .and_then(|data| attr(data, 1))
                    .ok_or(Unknown)?;
                self.compare(number(1)?, number(2)?, value)
            }
            "range" => self.range(data),
            // A value for a later expression, not a verdict.
            "immediate" if constant(data).is_some() => {
                let value = constant(data).ok_or(Unknown)?;
                self.constants.push((number(1)?, value.to_vec()));
                Ok(())
            }
            // `NFT_NAT_DNAT`.
            "nat" if number(1)? == 1 => {
                let then = self.dnat(data);
                once(&mut self.target, then)
            }
            "redir" => once(&mut self.target, Target::Translate("REDIRECT".to_owned())),
            "limit" => super::limits::nft_limit(&mut self.when, data),
            "match" => {
                let name = attr(data, 1).map(text).ok_or(Unknown)?;
                decode::xt_match(
                    &mut self.when,
                    &name,
                    number(2)?,
                    attr(data, 3).ok_or(Unknown)?,
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
        let address = value(3).and_then(|bytes| array::<4>(bytes, 0).ok());
        let port = value(5).and_then(|bytes| array::<2>(bytes, 0).ok());
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
        let value = |kind| {
            attr(data, kind)
                .and_then(|data| attr(data, 1))
                .ok_or(Unknown)
        };
        let in_place = number(1) == number(2);
        let and_only = number(6).unwrap_or(0) == 0 && value(5)?.iter().all(|byte| *byte == 0);
        let register = self.register(number(1).ok_or(Unknown)?)?;
        match in_place && and_only && !register.compared {
            true => once(&mut register.mask, value(4)?.to_vec()),
            false => Err(Unknown),
        }
    }

    fn compare(&mut self, number: u32, op: u32, value: &[u8]) -> Decoded {
        let register = self.register(number)?;
        register.compared = true;
        let (source, mask) = (register.source, register.mask.clone());
        let when = &mut self.when;
        match (op, source, mask) {
            (EQUAL, source, mask) => equal(when, source, mask.as_deref(), Inverted::No, value),
            (NOT_EQUAL, source, mask) => equal(when, source, mask.as_deref(), Inverted::Yes, value),
            (AT_MOST, DEST_PORT, None) => {
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
            (AT_LEAST, DEST_PORT, None) => once(
                &mut when.dport,
                u16::from_be_bytes(array(value, 0)?)..=u16::MAX,
            ),
            _ => Err(Unknown),
        }
    }

    fn range(&mut self, data: &[u8]) -> Decoded {
        let number = |kind| attr(data, kind).and_then(be32).ok_or(Unknown);
        let port = |kind| {
            let value = attr(data, kind)
                .and_then(|data| attr(data, 1))
                .ok_or(Unknown)?;
            array(value, 0).map(u16::from_be_bytes)
        };
        let register = self.register(number(1)?)?;
        register.compared = true;
        match (register.source, &register.mask, number(2)?) {
            (DEST_PORT, None, EQUAL) => once(&mut self.when.dport, port(3)?..=port(4)?),
            _ => Err(Unknown),
        }
    }
}

const DEST_PORT: Source = Source::Payload {
    base: TRANSPORT,
    offset: 2,
    length: 2,
};

/// `NFT_CMP_EQ`, `NFT_RANGE_EQ`.
const EQUAL: u32 = 0;
/// `NFT_CMP_NEQ`.
const NOT_EQUAL: u32 = 1;
/// `NFT_CMP_LTE`.
const AT_MOST: u32 = 3;
/// `NFT_CMP_GTE`.
const AT_LEAST: u32 = 5;

/// `NFT_PAYLOAD_LL_HEADER`.
const LINK_LAYER: u32 = 0;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT: u32 = 2;

fn meta(key: u32) -> Result<Source, Unknown> {
    match key {
        6 => Ok(Source::InIf),
        7 => Ok(Source::OutIf),
        15 => Ok(Source::Family),
        16 => Ok(Source::L4Protocol),
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
        // `NFPROTO_IPV4`: always true for IPv4 packets.
        (Source::Family, None, Inverted::No) if first(value)? == 2 => Ok(()),
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
        ((NETWORK, 12, length @ 1..=4), mask, _) => {
            once(&mut when.src, test(network(length, mask, value)?, inverted))
        }
        ((NETWORK, 16, length @ 1..=4), mask, _) => {
            once(&mut when.dst, test(network(length, mask, value)?, inverted))
        }
        ((NETWORK, 9, 1), None, Inverted::No) => {
            once(&mut when.protocol, decode::protocol(first(value)?)?)
        }
        ((TRANSPORT, 2, 2), None, Inverted::No) => {
            let port = u16::from_be_bytes(array(value, 0)?);
            once(&mut when.dport, port..=port)
        }
        ((TRANSPORT, 0, 1), None, Inverted::No) if when.protocol == Some(Protocol::Icmp) => {
            once(&mut when.icmp_type, first(value)?)
        }
        ((TRANSPORT, 13, 1), Some(mask), Inverted::No) => {
            decode::tcp_flags(when, first(mask)?, first(value)?)
        }
        ((LINK_LAYER, 6, 6), None, _) => {
            once(&mut when.mac_source, test(array(value, 0)?, inverted))
        }
        _ => Err(Unknown),
    }
}

/// The data of an `immediate` that is not a verdict.
fn constant(data: &[u8]) -> Option<&[u8]> {
    attr(data, 2).and_then(|data| attr(data, 1))
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
            let verdict = attr(data, 2)
                .and_then(|data| attr(data, 2))
                .ok_or(Unknown)?;
            let code = attr(verdict, 1).and_then(be32).ok_or(Unknown)? as i32;
            match (code, attr(verdict, 2).map(text)) {
                (0, None) => Ok(Target::Drop),
                (1, None) => Ok(Target::Accept),
                (-5, None) => Ok(Target::Return),
                (-3, Some(chain)) => Ok(Target::Jump(chain)),
                _ => Err(Unknown),
            }
        }
        "target" => {
            let name = attr(data, 1).map(text).ok_or(Unknown)?;
            decode::xt_target(
                &name,
                number(2).ok_or(Unknown)?,
                attr(data, 3).ok_or(Unknown)?,
            )
        }
        // Type 0 is ICMP unreachable, whose code 13 is "administratively prohibited"; type 1 is a TCP reset.
        "reject" => match (number(1), attr(data, 2)) {
            (Some(0), Some([13])) => Ok(Target::Reject(Reject::IcmpAdminProhibited)),
            (Some(1), _) => Ok(Target::Reject(Reject::TcpReset)),
            _ => Err(Unknown),
        },
        "masq" if attrs(data).all(|(kind, value)| kind == 1 && be32(value) == Some(0)) => {
            Ok(Target::Masquerade)
        }
        _ => Err(Unknown),
    }
}
