//! Which IPv6 packets of a guest pass. Pure.
//! Out of scope: Ethernet addresses, which are evaluated before.
//!
//! # What passes from a guest that may send from its own addresses only
//! IPv6 addresses are not leased. What follows from the VM's MAC can be verified: the interface identifier derived from it (RFC 4291,
//! appendix A), with which Linux forms its link-local address and, from a router's prefix, further ones. So an address with that identifier
//! is the VM's own, and
//! - a link-local source is the VM's own address, whatever the packet is;
//! - neighbour solicitations come from an own address, or from `::` and are then for an own address (duplicate address detection);
//! - neighbour advertisements come from own addresses, are for own addresses, and do not have the router flag;
//! - the option with a link-layer address contains the VM's MAC. Messages have the fixed formats of RFC 4861 with one option at most: a
//!   program without loops cannot parse a list. (Linux sends duplicate address detection with a nonce, RFC 7527.)
//! - of other ICMPv6, echo and errors pass. Messages of routers do not: advertisements and redirects, MLD queries, router discovery for
//!   multicast, renumbering;
//! - reports of group members (MLD) pass from the VM's link-local address and from `::`. Only they have an extension header, of a fixed
//!   format: others could hide messages of a router (RFC 7113);
//! - UDP passes, except from ports of DHCPv6 servers and to ports of DHCPv6 clients.
//!
//! A guest that forms its addresses in another way (RFC 7217, RFC 8981) cannot be resolved by its neighbours under `antispoof`.

use super::assemble::Line::{At, Do, Returns, Test};
use super::assemble::To::{Drop, Next, Part, Pass};
use super::assemble::{Line, op};
use super::{
    BEHIND_IPV6, EXTENSIONS, HOP_BY_HOP, ICMPV6, IPV6_NEXT_HEADER, Label as All, PAYLOAD, UDP,
    at_least, is_mac,
};
use crate::api::network::Mac;

/// The parts of the program for IPv6, as jump targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Own,
    LinkLocal,
    Sourced,
    Unspecified,
    Detection,
    HopByHop,
    Icmpv6,
    Echo,
    Neighbour,
    Solicitation,
    Advertisement,
    OptionMac,
    Router,
    RouterMac,
    Udpv6,
    Any,
    AnyHopByHop,
    AnyIcmpv6,
    AnyUdpv6,
}

/// ICMPv6 types (RFC 4861, 2710, 3810, 4286).
const ROUTER_SOLICITATION: u32 = 133;
const ROUTER_ADVERTISEMENT: u32 = 134;
const SOLICITATION: u32 = 135;
const ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
const ECHO: [u32; 2] = [128, 129];
const MLD_QUERY: u32 = 130;
const MULTICAST_ROUTERS: [u32; 2] = [151, 153];
const RENUMBERING: u32 = 138;
const MLD_REPORTS: [u32; 3] = [131, 132, 143];

/// Ports (IANA).
const DHCPV6_CLIENT: u32 = 546;
const DHCPV6_SERVER: u32 = 547;

/// Offsets, in bytes from the beginning of the frame.
const LENGTH: u32 = PAYLOAD + 4;
const SOURCE: u32 = PAYLOAD + 8;
/// In neighbour discovery (RFC 4861 section 4).
const FLAGS: u32 = BEHIND_IPV6 + 4;
const TARGET: u32 = BEHIND_IPV6 + 8;
const OPTION: u32 = BEHIND_IPV6 + 24;
const ROUTER_OPTION: u32 = BEHIND_IPV6 + 8;

/// The first two bytes of options: type and length in units of eight bytes.
const SOURCE_MAC: u32 = 0x0101;
const TARGET_MAC: u32 = 0x0201;
const NONCE: u32 = 0x0e01;
/// The header of hop-by-hop options of an MLD report: ICMPv6 follows, eight bytes, the option "router alert" of MLD (RFC 2711).
const ALERT: u32 = 0x3a00_0502;

fn to(label: Label) -> super::assemble::To<All> {
    Part(All::Ipv6(label))
}

fn at(label: Label) -> Line<All> {
    At(All::Ipv6(label))
}

/// From a guest that may send from its own addresses only.
pub(super) fn own(mac: Mac) -> Vec<Line<All>> {
    let id = identifier(mac);
    [
        source(id),
        unspecified(id),
        hop_by_hop(Label::HopByHop),
        upper(),
        neighbour(mac, id),
        udp(Label::Udpv6),
    ]
    .concat()
}

/// From a guest that may send from any address: all except messages that configure others.
pub(super) fn any() -> Vec<Line<All>> {
    let mut lines = vec![at(Label::Any)];
    lines.extend(at_least(BEHIND_IPV6));
    lines.extend([
        Do(op::LOAD_BYTE, IPV6_NEXT_HEADER),
        Test(op::EQUAL, ICMPV6, to(Label::AnyIcmpv6), Next),
        Test(op::EQUAL, UDP, to(Label::AnyUdpv6), Next),
        Test(op::EQUAL, HOP_BY_HOP, to(Label::AnyHopByHop), Next),
    ]);
    lines.extend(EXTENSIONS.map(|number| Test(op::EQUAL, number, Drop, Next)));
    lines.extend([Test(op::AT_LEAST, 0, Pass, Pass), at(Label::AnyIcmpv6)]);
    lines.extend(at_least(BEHIND_IPV6 + 4));
    lines.push(Do(op::LOAD_BYTE, BEHIND_IPV6));
    let routers = [MLD_QUERY, ROUTER_ADVERTISEMENT, REDIRECT, RENUMBERING];
    lines.extend(routers.map(|kind| Test(op::EQUAL, kind, Drop, Next)));
    lines.extend(MULTICAST_ROUTERS.map(|kind| Test(op::EQUAL, kind, Drop, Next)));
    lines.push(Test(op::AT_LEAST, 0, Pass, Pass));
    lines.extend(hop_by_hop(Label::AnyHopByHop));
    lines.extend(udp(Label::AnyUdpv6));
    lines
}

/// The two words of the interface identifier (RFC 4291, appendix A).
fn identifier(mac: Mac) -> [u32; 2] {
    let [a, b, c, d, e, f] = mac.0;
    [
        u32::from_be_bytes([a ^ 2, b, c, 0xff]),
        u32::from_be_bytes([0xfe, d, e, f]),
    ]
}

/// Drops frames with another identifier at this offset.
fn is_identifier(place: u32, [first, second]: [u32; 2]) -> [Line<All>; 4] {
    [
        Do(op::LOAD_WORD, place),
        Test(op::EQUAL, first, Next, Drop),
        Do(op::LOAD_WORD, place + 4),
        Test(op::EQUAL, second, Next, Drop),
    ]
}

fn source(id: [u32; 2]) -> Vec<Line<All>> {
    let mut lines = vec![at(Label::Own)];
    lines.extend(at_least(BEHIND_IPV6));
    lines.extend([
        Do(op::LOAD_BYTE, PAYLOAD),
        Do(op::AND, 0xf0),
        Test(op::EQUAL, 0x60, Next, Drop),
        Do(op::LOAD_WORD, SOURCE),
        Do(op::AND, 0xffc0_0000),
        Test(op::EQUAL, 0xfe80_0000, to(Label::LinkLocal), Next),
        // A multicast address is not a valid source.
        Test(op::AT_LEAST, 0xff00_0000, Drop, Next),
        Do(op::LOAD_WORD, SOURCE),
        Test(op::EQUAL, 0, Next, to(Label::Sourced)),
        Do(op::LOAD_WORD, SOURCE + 4),
        Test(op::EQUAL, 0, Next, to(Label::Sourced)),
        Do(op::LOAD_WORD, SOURCE + 8),
        Test(op::EQUAL, 0, Next, to(Label::Sourced)),
        Do(op::LOAD_WORD, SOURCE + 12),
        Test(op::EQUAL, 0, to(Label::Unspecified), to(Label::Sourced)),
        at(Label::LinkLocal),
        Do(op::LOAD_WORD, SOURCE),
        Test(op::EQUAL, 0xfe80_0000, Next, Drop),
        Do(op::LOAD_WORD, SOURCE + 4),
        Test(op::EQUAL, 0, Next, Drop),
    ]);
    lines.extend(is_identifier(SOURCE + 8, id));
    lines.extend([
        Do(op::LOAD_BYTE, IPV6_NEXT_HEADER),
        Test(
            op::EQUAL,
            HOP_BY_HOP,
            to(Label::HopByHop),
            to(Label::Sourced),
        ),
    ]);
    lines
}

/// A guest without an address checks for duplicates of its own address, solicits a router, or joins a group.
fn unspecified(id: [u32; 2]) -> Vec<Line<All>> {
    let mut lines = vec![
        at(Label::Unspecified),
        Do(op::LOAD_BYTE, IPV6_NEXT_HEADER),
        Test(op::EQUAL, HOP_BY_HOP, to(Label::HopByHop), Next),
        Test(op::EQUAL, ICMPV6, Next, Drop),
    ];
    lines.extend(at_least(BEHIND_IPV6 + 8));
    lines.extend([
        Do(op::LOAD_BYTE, BEHIND_IPV6),
        Test(op::EQUAL, SOLICITATION, to(Label::Detection), Next),
        Test(op::EQUAL, ROUTER_SOLICITATION, Next, Drop),
        Do(op::LOAD_HALF, LENGTH),
        Test(op::EQUAL, 8, Pass, Drop),
        at(Label::Detection),
    ]);
    lines.extend(at_least(OPTION));
    lines.extend(is_identifier(TARGET + 8, id));
    lines.extend(one_option(24, OPTION, NONCE, Pass));
    lines
}

/// Nothing after the message's own `length` bytes, or one option of eight bytes and this kind.
fn one_option(
    length: u32,
    place: u32,
    kind: u32,
    then: super::assemble::To<All>,
) -> Vec<Line<All>> {
    let mut lines = vec![
        Do(op::LOAD_HALF, LENGTH),
        Test(op::EQUAL, length, Pass, Next),
        Test(op::EQUAL, length + 8, Next, Drop),
    ];
    lines.extend(at_least(place + 8));
    lines.extend([Do(op::LOAD_HALF, place), Test(op::EQUAL, kind, then, Drop)]);
    lines
}

/// One header of eight bytes, then a message of a group member.
fn hop_by_hop(label: Label) -> Vec<Line<All>> {
    let mut lines = vec![at(label)];
    lines.extend(at_least(BEHIND_IPV6 + 8 + 4));
    lines.extend([
        Do(op::LOAD_WORD, BEHIND_IPV6),
        Test(op::EQUAL, ALERT, Next, Drop),
        Do(op::LOAD_HALF, BEHIND_IPV6 + 4),
        Test(op::EQUAL, 0, Next, Drop),
        Do(op::LOAD_BYTE, BEHIND_IPV6 + 8),
    ]);
    lines.extend(MLD_REPORTS.map(|kind| Test(op::EQUAL, kind, Pass, Next)));
    lines.push(Test(op::AT_LEAST, 0, Drop, Drop));
    lines
}

/// From the VM's link-local address, or from a source with an unknown prefix.
fn upper() -> Vec<Line<All>> {
    let mut lines = vec![
        at(Label::Sourced),
        Do(op::LOAD_BYTE, IPV6_NEXT_HEADER),
        Test(op::EQUAL, ICMPV6, to(Label::Icmpv6), Next),
        Test(op::EQUAL, UDP, to(Label::Udpv6), Next),
        Test(op::EQUAL, HOP_BY_HOP, Drop, Next),
    ];
    lines.extend(EXTENSIONS.map(|number| Test(op::EQUAL, number, Drop, Next)));
    lines.extend([Test(op::AT_LEAST, 0, Pass, Pass), at(Label::Icmpv6)]);
    lines.extend(at_least(BEHIND_IPV6 + 4));
    lines.extend([
        Do(op::LOAD_BYTE, BEHIND_IPV6),
        // Errors are 1 to 4.
        Test(op::AT_LEAST, 5, to(Label::Echo), Next),
        Test(op::AT_LEAST, 1, Pass, Drop),
        at(Label::Echo),
    ]);
    lines.extend(ECHO.map(|kind| Test(op::EQUAL, kind, Pass, Next)));
    lines.extend([
        Test(op::EQUAL, ROUTER_SOLICITATION, to(Label::Router), Next),
        Test(op::EQUAL, SOLICITATION, to(Label::Neighbour), Next),
        Test(op::EQUAL, ADVERTISEMENT, to(Label::Neighbour), Drop),
    ]);
    lines
}

fn neighbour(mac: Mac, id: [u32; 2]) -> Vec<Line<All>> {
    let mut lines = vec![at(Label::Neighbour)];
    lines.extend(at_least(OPTION));
    lines.extend(is_identifier(SOURCE + 8, id));
    lines.extend([
        Do(op::LOAD_BYTE, BEHIND_IPV6),
        Test(
            op::EQUAL,
            ADVERTISEMENT,
            to(Label::Advertisement),
            to(Label::Solicitation),
        ),
        at(Label::Solicitation),
    ]);
    lines.extend(one_option(24, OPTION, SOURCE_MAC, to(Label::OptionMac)));
    lines.extend([
        at(Label::Advertisement),
        Do(op::LOAD_BYTE, FLAGS),
        // The router flag.
        Test(op::HAS_BITS, 0x80, Drop, Next),
    ]);
    lines.extend(is_identifier(TARGET + 8, id));
    lines.extend(one_option(24, OPTION, TARGET_MAC, to(Label::OptionMac)));
    lines.push(at(Label::OptionMac));
    lines.extend(is_mac(OPTION + 2, mac));
    lines.extend([Test(op::AT_LEAST, 0, Pass, Pass), at(Label::Router)]);
    lines.extend(at_least(ROUTER_OPTION));
    lines.extend(is_identifier(SOURCE + 8, id));
    lines.extend(one_option(
        8,
        ROUTER_OPTION,
        SOURCE_MAC,
        to(Label::RouterMac),
    ));
    lines.push(at(Label::RouterMac));
    lines.extend(is_mac(ROUTER_OPTION + 2, mac));
    lines.extend([Test(op::AT_LEAST, 0, Pass, Pass), Returns]);
    lines
}

fn udp(label: Label) -> Vec<Line<All>> {
    let mut lines = vec![at(label)];
    lines.extend(at_least(BEHIND_IPV6 + 8));
    lines.extend([
        Do(op::LOAD_HALF, BEHIND_IPV6),
        Test(op::EQUAL, DHCPV6_SERVER, Drop, Next),
        Do(op::LOAD_HALF, BEHIND_IPV6 + 2),
        Test(op::EQUAL, DHCPV6_CLIENT, Drop, Pass),
    ]);
    lines
}
