//! What a VM on a bridge may send, as a program that filters every frame before the bridge receives it. Pure.
//! Out of scope: attaching it to a TAP (`host::tc`).
//!
//! # What passes
//! Untagged frames from the VM's own Ethernet address, and of these:
//! - IPv4 from the VM's own address, except for packets that configure others: no DHCP server (UDP from port 67 or to port 68), no ICMP
//!   redirect or router advertisement, no IGMP query, no PIM. A DHCP client's 0.0.0.0 does not pass either: addresses are assigned by
//!   lease, and no server would answer. A later fragment has no ports; only its addresses are checked.
//! - ARP requests and replies for Ethernet and IPv4 if the sender has the VM's own addresses, or 0.0.0.0, with which a host probes for its
//!   own address (RFC 5227 section 1.1).
//! - IPv6 as described in [`ipv6`]: neighbour discovery for the VM's own addresses only.
//!
//! Frames to 01:80:c2:00:00:0X are dropped: the kernel receives them at the port itself.
//!
//! Every other EtherType is dropped: spanning tree, LLDP, EAPOL, PPPoE and so on are protocols of switches and access concentrators, and
//! VLAN tags, one or two, in the frame or in its metadata, would bypass the checks.
//!
//! # Port isolation
//! The bridge isolates isolated ports from each other, but not from the host, which routes: a guest could send a frame with its neighbour's
//! IP address to the host, and the host would forward it. The host receives frames to the bridge's MAC and to that of the TAP itself
//! (`eth_type_trans` has set `PACKET_HOST` before the bridge handles the frame; for another port's MAC it has set `PACKET_OTHERHOST`, which
//! no protocol accepts). So [`PortIsolation`] lets only these frames pass to these two MACs:
//! - ARP;
//! - IPv4 for the host's own addresses on the bridge and for what is beyond the bridge's subnet, without options (a source route is one);
//! - IPv6 for the host's own addresses on the bridge, without extension headers: the host routes no IPv6 of such a guest.
//!
//! All other frames are dropped, including tags after a tag: the kernel removes more than one (`__netif_receive_skb_core`).
//!
//! # Why
//! A program that reads beyond the end of a frame returns 0, which means that the frame is *accepted*. So each part checks the length
//! first. Frames pass with [`PASS`], not `ACCEPT`, so that filters of other programs still see them.
//!
//! [`PASS`]: crate::host::tc::PASS

mod assemble;
mod ipv6;
mod isolated;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::network::Mac;
use crate::host::tc::Insn;

pub use isolated::program_isolated;

use self::assemble::Line::{At, Do, Returns, Test};
use self::assemble::To::{Drop, Next, Part, Pass};
use self::assemble::{Line, assemble, op};

/// The parts of the program, as jump targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Port,
    Host,
    HostIpv6,
    /// The instructions after the host's IPv6 address of this index.
    After(usize),
    Check,
    Reserved,
    Ipv4,
    Tagged,
    Icmp(Tag),
    Igmp(Tag),
    Arp,
    ArpKind,
    Ipv6(ipv6::Label),
}

/// Where a packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// After the Ethernet header.
    None,
    /// After a VLAN tag that the kernel has left in the frame.
    One,
}

impl Tag {
    fn payload(self) -> u32 {
        match self {
            Self::None => PAYLOAD,
            Self::One => PAYLOAD + 4,
        }
    }
}

/// EtherTypes (IANA).
const IPV4: u32 = 0x0800;
const ARP: u32 = 0x0806;
const IPV6: u32 = 0x86dd;

/// Protocol numbers (IANA).
const ICMP: u32 = 1;
const IGMP: u32 = 2;
const UDP: u32 = 17;
const PIM: u32 = 103;
const ICMPV6: u32 = 58;
const HOP_BY_HOP: u32 = 0;
/// Routing, fragment, authentication, destination options, mobility, HIP, Shim6 (RFC 7045 section 4).
const EXTENSIONS: [u32; 7] = [43, 44, 51, 60, 135, 139, 140];

/// Ports (IANA).
const DHCP_SERVER: u32 = 67;
const DHCP_CLIENT: u32 = 68;

/// ICMP types, in the upper half of two bytes (RFC 792, 1256): redirect, router advertisement.
const ICMP_ROUTERS: [u32; 2] = [5 << 8, 9 << 8];
/// IGMP types, in the upper half of two bytes (RFC 1112, 2236, 3376): messages of group members.
const IGMP_MEMBERS: [u32; 4] = [0x12 << 8, 0x16 << 8, 0x17 << 8, 0x22 << 8];

/// The first four bytes of 01:80:c2:00:00:0X, the group addresses of bridges (IEEE 802.1D section 7.12.6).
const RESERVED: u32 = 0x0180_c200;
/// EtherTypes of VLAN tags: IEEE 802.1Q, 802.1ad, and older.
const TAGS: [u32; 3] = [0x8100, 0x88a8, 0x9100];

/// Offsets, in bytes from the beginning of the frame.
const SOURCE: u32 = 6;
const ETHERTYPE: u32 = 12;
const PAYLOAD: u32 = 14;
/// In an IPv4 header.
const IPV4_DESTINATION: u32 = PAYLOAD + 16;
/// In an IPv6 header.
const IPV6_NEXT_HEADER: u32 = PAYLOAD + 6;
const IPV6_DESTINATION: u32 = PAYLOAD + 24;
/// After an IPv6 header.
const BEHIND_IPV6: u32 = PAYLOAD + 40;

/// The maximum number of the host's addresses of each family in a program; further addresses cannot be reached.
const MAX_IPV4: usize = 32;
const MAX_IPV6: usize = 8;

/// The addresses that a program needs to isolate a port also from neighbours that the host would forward to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortIsolation {
    /// The bridge's MAC, at which the host receives frames.
    pub bridge: Mac,
    /// The TAP's MAC, at which the host receives frames, too.
    pub port: Mac,
    /// The subnet on the bridge.
    pub subnet: Ipv4Network,
    /// Its gateway: the host, or a router behind an unmanaged bridge.
    pub gateway: Ipv4Addr,
    /// The host's own addresses on the bridge.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub host_addresses: BTreeSet<IpAddr>,
}

/// The program for a VM's TAP that prevents spoofed addresses, and isolates the port if requested. It returns `PASS` or `DROP` of
/// [`crate::host::tc`].
pub fn program(mac: Mac, ip: Ipv4Addr, isolation: Option<&PortIsolation>) -> Vec<Insn> {
    let lines = [
        isolation.map(isolate_from_host).unwrap_or_default(),
        ethernet(mac),
        ipv4(ip),
        arp(mac, ip),
        ipv6::own(mac),
    ];
    assemble(&lines.concat())
}

/// The program for a VM's TAP that may send from any address, on an unmanaged bridge: all frames pass except those that configure others,
/// including the host, and those that could hide such frames. On a managed bridge the host's own settings prevent this. The port is
/// isolated if requested.
pub fn program_unmanaged(isolation: Option<&PortIsolation>) -> Vec<Insn> {
    let mut lines = isolation.map(isolate_from_host).unwrap_or_default();
    lines.extend(at_least(PAYLOAD));
    // Spanning trees, LLDP and similar protocols, and the registration of VLANs and groups (IEEE 802.1Q tables 8-1 and 10-1).
    lines.extend(not_to_bridges(0xffc0));
    lines.push(Do(op::LOAD_HALF, ETHERTYPE));
    // The kernel has removed the outermost tag.
    lines.extend(TAGS.map(|tag| Test(op::EQUAL, tag, Part(Label::Tagged), Next)));
    lines.extend([
        Test(op::EQUAL, IPV4, Part(Label::Ipv4), Next),
        Test(op::EQUAL, IPV6, Part(Label::Ipv6(ipv6::Label::Any)), Pass),
        At(Label::Ipv4),
    ]);
    lines.extend(ipv4_header(Tag::None));
    lines.extend(ipv4_upper(Tag::None));
    lines.extend(ipv6::any());
    // After two tags, IPv4 is checked, other protocols that configure nothing pass, and a third tag is dropped.
    lines.extend([Returns, At(Label::Tagged)]);
    lines.extend(at_least(PAYLOAD + 4));
    lines.push(Do(op::LOAD_HALF, ETHERTYPE + 4));
    lines.extend(TAGS.map(|tag| Test(op::EQUAL, tag, Drop, Next)));
    lines.extend([
        Test(op::EQUAL, IPV6, Drop, Next),
        Test(op::EQUAL, IPV4, Next, Pass),
    ]);
    lines.extend(ipv4_header(Tag::One));
    lines.extend(ipv4_upper(Tag::One));
    assemble(&lines)
}

/// The program for a VM's TAP that may send from any address, but is isolated.
pub fn program_isolated_port(isolation: &PortIsolation) -> Vec<Insn> {
    let mut lines = isolate_from_host(isolation);
    lines.push(Test(op::AT_LEAST, 0, Pass, Pass));
    assemble(&lines)
}

/// The digest of a program: 12 hexadecimal digits of a hash over its instructions.
pub fn digest(program: &[Insn]) -> String {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for insn in program {
        bytes.extend(insn.code.to_be_bytes());
        bytes.extend([insn.jt, insn.jf]);
        bytes.extend(insn.k.to_be_bytes());
    }
    blake3::hash(&bytes).to_hex()[..12].to_owned()
}

/// Frames that are not for the host, and those that the host may receive, go on to the following checks.
fn isolate_from_host(isolation: &PortIsolation) -> Vec<Line<Label>> {
    let (bridge, port) = (halves(isolation.bridge), halves(isolation.port));
    let next_check = Part(Label::Check);
    let mut lines = vec![
        Do(op::LOAD_LENGTH, 0),
        Test(op::AT_LEAST, PAYLOAD, Next, next_check),
        Do(op::LOAD_WORD, 0),
        Test(op::EQUAL, bridge.0, Next, Part(Label::Port)),
        Do(op::LOAD_HALF, 4),
        Test(op::EQUAL, bridge.1, Part(Label::Host), Next),
        At(Label::Port),
        Do(op::LOAD_WORD, 0),
        Test(op::EQUAL, port.0, Next, next_check),
        Do(op::LOAD_HALF, 4),
        Test(op::EQUAL, port.1, Next, next_check),
        At(Label::Host),
        Do(op::LOAD_HALF, ETHERTYPE),
        Test(op::EQUAL, ARP, next_check, Next),
        Test(op::EQUAL, IPV6, Part(Label::HostIpv6), Next),
        Test(op::EQUAL, IPV4, Next, Drop),
    ];
    lines.extend(ipv4_to_the_host(isolation));
    lines.extend(ipv6_to_the_host(isolation));
    lines.extend([Returns, At(Label::Check)]);
    lines
}

fn ipv4_to_the_host(isolation: &PortIsolation) -> Vec<Line<Label>> {
    let next_check = Part(Label::Check);
    let own = isolation
        .host_addresses
        .iter()
        .filter_map(|host| match host {
            IpAddr::V4(host) => Some(*host),
            IpAddr::V6(_) => None,
        });
    let mut lines = at_least(PAYLOAD + 20);
    lines.extend([
        Do(op::LOAD_BYTE, PAYLOAD),
        Test(op::EQUAL, 0x45, Next, Drop),
        Do(op::LOAD_WORD, IPV4_DESTINATION),
        Test(op::EQUAL, isolation.gateway.to_bits(), next_check, Next),
    ]);
    let own = own.filter(|host| isolation.subnet.contains(*host));
    lines.extend(
        own.take(MAX_IPV4)
            .map(|host| Test(op::EQUAL, host.to_bits(), next_check, Next)),
    );
    lines.extend([
        Do(op::AND, isolation.subnet.mask().to_bits()),
        Test(
            op::EQUAL,
            isolation.subnet.network().to_bits(),
            Drop,
            next_check,
        ),
    ]);
    lines
}

fn ipv6_to_the_host(isolation: &PortIsolation) -> Vec<Line<Label>> {
    let own = isolation
        .host_addresses
        .iter()
        .filter_map(|host| match host {
            IpAddr::V4(_) => None,
            IpAddr::V6(host) => Some(*host),
        });
    let mut lines = vec![At(Label::HostIpv6)];
    lines.extend(at_least(BEHIND_IPV6));
    lines.extend([
        Do(op::LOAD_BYTE, IPV6_NEXT_HEADER),
        Test(op::EQUAL, HOP_BY_HOP, Drop, Next),
    ]);
    lines.extend(EXTENSIONS.map(|number| Test(op::EQUAL, number, Drop, Next)));
    for (number, host) in own.take(MAX_IPV6).enumerate() {
        lines.extend(match_ipv6_destination(host, Label::After(number)));
    }
    lines.push(Test(op::AT_LEAST, 0, Drop, Drop));
    lines
}

/// Jumps to [`Label::Check`] if the destination is that address, otherwise to `past`, after these lines. The last word is compared first,
/// because it differs the most.
fn match_ipv6_destination(host: Ipv6Addr, past: Label) -> Vec<Line<Label>> {
    let bits = host.to_bits();
    let mut lines = Vec::new();
    for (at, shift) in [(12, 0), (8, 32), (4, 64), (0, 96)] {
        let word = (bits >> shift & u128::from(u32::MAX)) as u32;
        let then = match at {
            0 => Part(Label::Check),
            _ => Next,
        };
        lines.push(Do(op::LOAD_WORD, IPV6_DESTINATION + at));
        lines.push(Test(op::EQUAL, word, then, Part(past)));
    }
    lines.push(At(past));
    lines
}

fn ethernet(mac: Mac) -> Vec<Line<Label>> {
    let mut lines = at_least(PAYLOAD);
    lines.extend([
        Do(op::LOAD_WORD, op::VLAN_TAG_PRESENT),
        Test(op::EQUAL, 0, Next, Drop),
    ]);
    lines.extend(is_mac(SOURCE, mac));
    lines.extend(not_to_bridges(0xfff0));
    lines.extend([
        Do(op::LOAD_HALF, ETHERTYPE),
        Test(op::EQUAL, IPV4, Part(Label::Ipv4), Next),
        Test(op::EQUAL, ARP, Part(Label::Arp), Next),
        Test(op::EQUAL, IPV6, Part(Label::Ipv6(ipv6::Label::Own)), Drop),
    ]);
    lines
}

/// Drops frames to the group addresses of bridges: 01:80:c2:00, followed by 0 under `mask`.
fn not_to_bridges(mask: u32) -> [Line<Label>; 6] {
    [
        Do(op::LOAD_WORD, 0),
        Test(op::EQUAL, RESERVED, Next, Part(Label::Reserved)),
        Do(op::LOAD_HALF, 4),
        Do(op::AND, mask),
        Test(op::EQUAL, 0, Drop, Next),
        At(Label::Reserved),
    ]
}

/// RFC 791, RFC 768.
fn ipv4(ip: Ipv4Addr) -> Vec<Line<Label>> {
    let mut lines = vec![At(Label::Ipv4)];
    lines.extend(ipv4_header(Tag::None));
    lines.extend([
        Do(op::LOAD_WORD, PAYLOAD + 12),
        Test(op::EQUAL, ip.to_bits(), Next, Drop),
    ]);
    lines.extend(ipv4_upper(Tag::None));
    lines
}

/// Version 4, and a header of at least five words.
fn ipv4_header(tag: Tag) -> Vec<Line<Label>> {
    let payload = tag.payload();
    let mut lines = at_least(payload + 20);
    lines.extend([
        Do(op::LOAD_BYTE, payload),
        Test(op::AT_LEAST, 0x45, Next, Drop),
        Test(op::AT_LEAST, 0x50, Drop, Next),
    ]);
    lines
}

/// Drops packets that configure others. A fragment that is not the first has no header of the upper protocol.
fn ipv4_upper(tag: Tag) -> Vec<Line<Label>> {
    let payload = tag.payload();
    let (icmp, igmp) = (Label::Icmp(tag), Label::Igmp(tag));
    let mut lines = vec![
        Do(op::LOAD_BYTE, payload + 9),
        Test(op::EQUAL, ICMP, Part(icmp), Next),
        Test(op::EQUAL, IGMP, Part(igmp), Next),
        Test(op::EQUAL, PIM, Drop, Next),
        Test(op::EQUAL, UDP, Next, Pass),
        Do(op::LOAD_HALF, payload + 6),
        Test(op::HAS_BITS, 0x1fff, Pass, Next),
    ];
    lines.extend(upper_to_x(payload, 8));
    lines.extend([
        Do(op::LOAD_HALF_AT_X, payload),
        Test(op::EQUAL, DHCP_SERVER, Drop, Next),
        Do(op::LOAD_HALF_AT_X, payload + 2),
        Test(op::EQUAL, DHCP_CLIENT, Drop, Pass),
        At(icmp),
        Do(op::LOAD_HALF, payload + 6),
        Test(op::HAS_BITS, 0x1fff, Pass, Next),
    ]);
    lines.extend(upper_to_x(payload, 4));
    lines.extend([Do(op::LOAD_HALF_AT_X, payload), Do(op::AND, 0xff00)]);
    lines.extend(ICMP_ROUTERS.map(|kind| Test(op::EQUAL, kind, Drop, Next)));
    lines.extend([
        Test(op::AT_LEAST, 0, Pass, Pass),
        At(igmp),
        Do(op::LOAD_HALF, payload + 6),
        Test(op::HAS_BITS, 0x1fff, Drop, Next),
    ]);
    lines.extend(upper_to_x(payload, 8));
    lines.extend([Do(op::LOAD_HALF_AT_X, payload), Do(op::AND, 0xff00)]);
    lines.extend(IGMP_MEMBERS.map(|kind| Test(op::EQUAL, kind, Pass, Next)));
    lines.push(Test(op::AT_LEAST, 0, Drop, Drop));
    lines
}

/// X = the length of the IPv4 header; drops the frame if it has less than `length` bytes after it.
fn upper_to_x(payload: u32, length: u32) -> [Line<Label>; 6] {
    [
        Do(op::HEADER_LENGTH_TO_X, payload),
        Do(op::X_TO_A, 0),
        Do(op::ADD, payload + length),
        Do(op::LENGTH_TO_X, 0),
        Test(op::MORE_THAN_X, 0, Drop, Next),
        Do(op::HEADER_LENGTH_TO_X, payload),
    ]
}

/// RFC 826.
fn arp(mac: Mac, ip: Ipv4Addr) -> Vec<Line<Label>> {
    let mut lines = vec![At(Label::Arp)];
    lines.extend(at_least(PAYLOAD + 28));
    lines.extend([
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        Do(op::LOAD_WORD, PAYLOAD),
        Test(op::EQUAL, 1 << 16 | IPV4, Next, Drop),
        Do(op::LOAD_HALF, PAYLOAD + 4),
        Test(op::EQUAL, 0x0604, Next, Drop),
        // A request or a reply.
        Do(op::LOAD_HALF, PAYLOAD + 6),
        Test(op::EQUAL, 1, Part(Label::ArpKind), Next),
        Test(op::EQUAL, 2, Next, Drop),
        At(Label::ArpKind),
    ]);
    lines.extend(is_mac(PAYLOAD + 8, mac));
    lines.extend([
        Do(op::LOAD_WORD, PAYLOAD + 14),
        Test(op::EQUAL, ip.to_bits(), Pass, Next),
        Test(op::EQUAL, 0, Pass, Drop),
    ]);
    lines
}

/// Drops shorter frames; in bytes.
fn at_least(length: u32) -> Vec<Line<Label>> {
    vec![
        Do(op::LOAD_LENGTH, 0),
        Test(op::AT_LEAST, length, Next, Drop),
    ]
}

/// Drops frames with another address at this offset.
fn is_mac(at: u32, mac: Mac) -> [Line<Label>; 4] {
    let (first, rest) = halves(mac);
    [
        Do(op::LOAD_WORD, at),
        Test(op::EQUAL, first, Next, Drop),
        Do(op::LOAD_HALF, at + 4),
        Test(op::EQUAL, rest, Next, Drop),
    ]
}

/// The first four bytes and the last two.
fn halves(mac: Mac) -> (u32, u32) {
    let [a, b, c, d, e, f] = mac.0;
    let rest = u16::from_be_bytes([e, f]);
    (u32::from_be_bytes([a, b, c, d]), u32::from(rest))
}
