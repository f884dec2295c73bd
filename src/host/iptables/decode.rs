//! Decoding of a rule: what a supported rule contains, and the kernel formats of x_tables extensions.
//! Out of scope: nf_tables expressions.
//!
//! Formats: linux/netfilter/xt_*.h, linux/netfilter_ipv4/ipt_*.h; native byte order unless said otherwise.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

pub use super::draft::{Decoded, Unknown, array, once};
use super::limits;
use super::netlink::text;
use super::uapi::*;
use crate::host::rule::{
    AddrType, CtState, LinkGroup, Match, Protocol, Reject, Rule, Target, TcpFlags, Test,
};

/// The rule, if the decoded parts form a supported one.
pub fn complete(when: Match, then: Option<Target>) -> Result<Rule, Unknown> {
    match then {
        Some(then) if fits(&when, &then) => Ok(when.then(then)),
        _ => Err(Unknown),
    }
}

/// The display text of a foreign rule. Built only when needed, because most rules are supported.
#[derive(Default)]
pub struct ForeignText {
    parts: Vec<String>,
    digest: blake3::Hasher,
}

impl ForeignText {
    /// Adds a part of the rule; `bytes` distinguish two foreign rules.
    pub fn add(&mut self, part: impl Into<String>, bytes: &[u8]) {
        self.parts.push(part.into());
        self.digest.update(bytes);
    }

    /// The rule.
    pub fn foreign(self) -> Rule {
        let digest = self.digest.finalize().to_hex();
        Rule::Foreign(format!("[{}] #{}", self.parts.join("] ["), &digest[..8]))
    }
}

/// Whether options that need a protocol have it: a kernel rule may match bytes of any protocol, a supported rule does not.
fn fits(when: &Match, then: &Target) -> bool {
    let protocol = when.protocol;
    let ports = when.dport.is_none() || matches!(protocol, Some(Protocol::Tcp | Protocol::Udp));
    let icmp = when.icmp_type.is_none() || protocol == Some(Protocol::Icmp);
    let needs_tcp = when.tcp_flags.is_some()
        || matches!(
            then,
            Target::Reject(Reject::TcpReset) | Target::ClampMss | Target::Timeout(_)
        );
    ports && icmp && (!needs_tcp || protocol == Some(Protocol::Tcp))
}

/// A test with the kernel's "inverted" flag.
pub fn test<T>(value: T, inverted: Inverted) -> Test<T> {
    match inverted {
        Inverted::No => Test::Is(value),
        Inverted::Yes => Test::Not(value),
    }
}

/// Whether a condition is inverted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inverted {
    /// Not inverted.
    No,
    /// Inverted.
    Yes,
}

impl From<bool> for Inverted {
    fn from(inverted: bool) -> Self {
        match inverted {
            true => Self::Yes,
            false => Self::No,
        }
    }
}

/// An IP protocol number.
pub fn protocol(number: u8) -> Result<Protocol, Unknown> {
    match i32::from(number) {
        libc::IPPROTO_ICMP => Ok(Protocol::Icmp),
        libc::IPPROTO_TCP => Ok(Protocol::Tcp),
        libc::IPPROTO_UDP => Ok(Protocol::Udp),
        _ => Err(Unknown),
    }
}

/// A network from an address and a mask in network byte order. A non-contiguous mask is not supported.
pub fn network(address: [u8; 4], mask: [u8; 4]) -> Result<Ipv4Network, Unknown> {
    Ipv4Network::with_netmask(Ipv4Addr::from(address), Ipv4Addr::from(mask))
        .ok()
        .filter(|network| network.network() == network.ip())
        .ok_or(Unknown)
}

/// A link name that is compared completely or as a prefix. A complete name that ends in `+` cannot be written.
pub fn link(name: &[u8], name_match: Exact) -> Result<String, Unknown> {
    let name = std::str::from_utf8(name).map_err(|_| Unknown)?;
    match name_match {
        Exact::Full if !name.ends_with('+') => Ok(name.to_owned()),
        Exact::Prefix => Ok(format!("{name}+")),
        Exact::Full => Err(Unknown),
    }
}

/// How much of a name is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exact {
    /// All of it.
    Full,
    /// A prefix.
    Prefix,
}

/// An x_tables match.
pub fn xt_match(draft: &mut Match, name: &str, revision: u32, info: &[u8]) -> Decoded {
    match (name, revision) {
        ("comment", 0) => comment(draft, &text(info)),
        ("connlimit", 1) => limits::connlimit(draft, info),
        ("hashlimit", 3) => limits::hashlimit(draft, info),
        ("limit", 0) => limits::limit(draft, info),
        ("mac", 0) => mac(draft, info),
        ("conntrack", 3) => conntrack(draft, info),
        ("addrtype", 1) => addrtype(draft, info),
        ("devgroup", 0) => devgroup(draft, info),
        ("tcp", 0) => tcp(draft, info),
        ("udp", 0) => udp(draft, info),
        ("icmp", 0) => icmp(draft, info),
        _ => Err(Unknown),
    }
}

/// A comment, from the back end's storage location.
pub fn comment(draft: &mut Match, text: &str) -> Decoded {
    once(&mut draft.comment, text.to_owned())
}

/// `struct xt_mac_info { u8 srcaddr[6]; int invert; }`.
fn mac(draft: &mut Match, info: &[u8]) -> Decoded {
    let address = array(info, 0)?;
    let inverted = i32::from_ne_bytes(array(info, 8)?) != 0;
    once(&mut draft.mac_source, test(address, inverted.into()))
}

/// The states (`XT_CONNTRACK_STATE_*`) that `-m conntrack --ctstate` of revision 3 matches; `None`: it has other conditions, too.
pub fn conntrack_states(info: &[u8]) -> Option<u32> {
    let [flags, inverted, mask, _] = conntrack_masks(info).ok()?;
    // The flag of a rule that was written as `-m state` has no effect on matching.
    (flags & !XT_CONNTRACK_STATE_ALIAS == XT_CONNTRACK_STATE && inverted == 0)
        .then_some(u32::from(mask))
}

/// `struct xt_conntrack_mtinfo3`: ten `nf_inet_addr` of 16 bytes, expiry (2 x u32), l4proto and four ports (5 x u16),
/// then match_flags, invert_flags, state_mask and status_mask (4 x u16).
fn conntrack_masks(info: &[u8]) -> Result<[u16; 4], Unknown> {
    const FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
    let field = |index: usize| array(info, FLAGS + 2 * index).map(u16::from_ne_bytes);
    Ok([field(0)?, field(1)?, field(2)?, field(3)?])
}

fn conntrack(draft: &mut Match, info: &[u8]) -> Decoded {
    const STATUS: u16 = XT_CONNTRACK_STATUS;
    const CONFIRMED: u16 = IPS_CONFIRMED as u16;
    if conntrack_masks(info)? == [STATUS, STATUS, 0, CONFIRMED] && !draft.unconfirmed {
        draft.unconfirmed = true;
        return Ok(());
    }
    ct_state(draft, conntrack_states(info).ok_or(Unknown)?)
}

/// `XT_CONNTRACK_STATE_*`; the nf_tables expression `ct state` has the same lower four bits.
pub fn ct_state(draft: &mut Match, mask: u32) -> Decoded {
    const BITS: [(u32, CtState); 6] = [
        (XT_CONNTRACK_STATE_INVALID, CtState::Invalid),
        (XT_CONNTRACK_STATE_ESTABLISHED, CtState::Established),
        (XT_CONNTRACK_STATE_RELATED, CtState::Related),
        (XT_CONNTRACK_STATE_NEW, CtState::New),
        (XT_CONNTRACK_STATE_DNAT, CtState::Dnat),
        (XT_CONNTRACK_STATE_UNTRACKED, CtState::Untracked),
    ];
    bits(&mut draft.ctstate, mask, &BITS)
}

/// `struct xt_addrtype_info_v1 { u16 source; u16 dest; u32 flags; }`, masks of `1 << RTN_*`.
fn addrtype(draft: &mut Match, info: &[u8]) -> Decoded {
    const BITS: [(u32, AddrType); 5] = [
        (1 << libc::RTN_UNICAST, AddrType::Unicast),
        (1 << libc::RTN_LOCAL, AddrType::Local),
        (1 << libc::RTN_BROADCAST, AddrType::Broadcast),
        (1 << libc::RTN_ANYCAST, AddrType::Anycast),
        (1 << libc::RTN_MULTICAST, AddrType::Multicast),
    ];
    let source = u16::from_ne_bytes(array(info, 0)?);
    let dest = u16::from_ne_bytes(array(info, 2)?);
    let flags = u32::from_ne_bytes(array(info, 4)?);
    match (source, flags) {
        (0, 0) => bits(&mut draft.dst_type, u32::from(dest), &BITS),
        _ => Err(Unknown),
    }
}

/// `struct xt_devgroup_info { u32 flags, src_group, src_mask, dst_group, dst_mask; }`.
fn devgroup(draft: &mut Match, info: &[u8]) -> Decoded {
    let field = |index: usize| array(info, 4 * index).map(u32::from_ne_bytes);
    let flags = field(0)?;
    if flags == 0 || flags & !(XT_DEVGROUP_MATCH_SRC | XT_DEVGROUP_MATCH_DST) != 0 {
        return Err(Unknown);
    }
    for (flag, at, slot) in [
        (XT_DEVGROUP_MATCH_SRC, 1, &mut draft.in_group),
        (XT_DEVGROUP_MATCH_DST, 3, &mut draft.out_group),
    ] {
        let (value, mask) = (field(at)?, field(at + 1)?);
        match flags & flag != 0 {
            // A value with bits outside its mask matches nothing; an empty mask matches everything.
            true if value & !mask == 0 && mask != 0 => {
                once(slot, LinkGroup::under(value, mask))?;
            }
            true => return Err(Unknown),
            false => {}
        }
    }
    Ok(())
}

fn bits<T: Copy + Ord>(
    set: &mut std::collections::BTreeSet<T>,
    mask: u32,
    known: &[(u32, T)],
) -> Decoded {
    let all = known.iter().fold(0, |all, (bit, _)| all | bit);
    if mask == 0 || mask & !all != 0 || !set.is_empty() {
        return Err(Unknown);
    }
    set.extend(
        known
            .iter()
            .filter(|(bit, _)| mask & bit != 0)
            .map(|(_, value)| *value),
    );
    Ok(())
}

/// `struct xt_tcp { u16 spts[2], dpts[2]; u8 option, flg_mask, flg_cmp, invflags; }`.
fn tcp(draft: &mut Match, info: &[u8]) -> Decoded {
    let [option, mask, compare, inverted] = array(info, 8)?;
    if option != 0 || inverted != 0 {
        return Err(Unknown);
    }
    if (mask, compare) != (0, 0) {
        tcp_flags(draft, mask, compare)?;
    }
    match (all_ports(info)?, draft.tcp_flags) {
        (true, Some(_)) => Ok(()),
        _ => ports(draft, info),
    }
}

/// `SYN,RST SYN`, as bits of the TCP header's byte 13.
pub fn tcp_flags(draft: &mut Match, mask: u8, compare: u8) -> Decoded {
    const SYN_RST: u8 = TH_SYN | TH_RST;
    match (mask, compare) {
        (SYN_RST, TH_SYN) => once(&mut draft.tcp_flags, TcpFlags::Syn),
        _ => Err(Unknown),
    }
}

/// `struct xt_udp { u16 spts[2], dpts[2]; u8 invflags; }`.
fn udp(draft: &mut Match, info: &[u8]) -> Decoded {
    match array(info, 8)? {
        [0] => ports(draft, info),
        _ => Err(Unknown),
    }
}

/// Any source port, some destination ports. `-m tcp` without conditions still does not match fragments, so it differs from
/// no `-m tcp` and is not supported.
fn ports(draft: &mut Match, info: &[u8]) -> Decoded {
    let port = |at| array(info, at).map(u16::from_ne_bytes);
    let (source, dest) = (port(0)?..=port(2)?, port(4)?..=port(6)?);
    match source == (0..=u16::MAX) && !all_ports(info)? {
        true => once(&mut draft.dport, dest),
        false => Err(Unknown),
    }
}

fn all_ports(info: &[u8]) -> Result<bool, Unknown> {
    Ok(array(info, 0)? == [0, 0, 255, 255, 0, 0, 255, 255])
}

/// `struct ipt_icmp { u8 type; u8 code[2]; u8 invflags; }`.
fn icmp(draft: &mut Match, info: &[u8]) -> Decoded {
    match array(info, 0)? {
        // Type 255 with all codes matches any type.
        [kind, 0, 255, 0] if kind != 255 => once(&mut draft.icmp_type, kind),
        _ => Err(Unknown),
    }
}

/// An x_tables target.
pub fn xt_target(name: &str, revision: u32, info: &[u8]) -> Result<Target, Unknown> {
    match (name, revision) {
        // `enum ipt_reject_with`.
        ("REJECT", 0) => match u32::from_ne_bytes(array(info, 0)?) {
            IPT_TCP_RESET => Ok(Target::Reject(Reject::TcpReset)),
            IPT_ICMP_ADMIN_PROHIBITED => Ok(Target::Reject(Reject::IcmpAdminProhibited)),
            _ => Err(Unknown),
        },
        // `struct xt_tcpmss_info { u16 mss; }`.
        ("TCPMSS", 0) => match u16::from_ne_bytes(array(info, 0)?) {
            XT_TCPMSS_CLAMP_PMTU => Ok(Target::ClampMss),
            _ => Err(Unknown),
        },
        // `struct nf_nat_ipv4_multi_range_compat`: number of ranges, then flags, two addresses, two ports.
        ("DNAT", 0) => Ok(dnat(array(info, 4)?, array(info, 8)?, array(info, 16)?)),
        // `struct nf_nat_range`, and `nf_nat_range2`, which has it as a prefix: flags, two addresses of 16 bytes, ports.
        ("DNAT", 1 | 2) => Ok(dnat(array(info, 0)?, array(info, 4)?, array(info, 36)?)),
        ("REDIRECT" | "NETMAP", 0) => Ok(Target::Translate(name.to_owned())),
        ("CT", 2) => limits::timeout(info).map(Target::Timeout),
        // `struct nf_nat_ipv4_multi_range_compat`: one range, without flags.
        ("MASQUERADE", 0) => match (
            u32::from_ne_bytes(array(info, 0)?),
            u32::from_ne_bytes(array(info, 4)?),
        ) {
            (1, 0) => Ok(Target::Masquerade),
            _ => Err(Unknown),
        },
        _ => Err(Unknown),
    }
}

/// The first address and port of the new destination range.
fn dnat(flags: [u8; 4], address: [u8; 4], port: [u8; 2]) -> Target {
    let flags = u32::from_ne_bytes(flags);
    let address = match flags & NF_NAT_RANGE_MAP_IPS {
        0 => String::new(),
        _ => Ipv4Addr::from(address).to_string(),
    };
    let port = match flags & NF_NAT_RANGE_PROTO_SPECIFIED {
        0 => String::new(),
        _ => format!(":{}", u16::from_be_bytes(port)),
    };
    Target::Translate(format!("DNAT --to-destination {address}{port}"))
}
