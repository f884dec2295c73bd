//! What an isolated VM may send to its own namespace. Pure.
//! Out of scope: where its packets may go ([`crate::reconcile::firewall::isolated::rules`]).
//!
//! # What passes
//! Untagged frames from the VM's own Ethernet address, and of these:
//! - IPv4 from the VM's own address;
//! - ARP requests for the gateway, and ARP replies, if the sender has the VM's own addresses, or 0.0.0.0, with which a host probes for its
//!   own address.
//!
//! # Why
//! `arp_process` creates a neighbour for every sender of a request for one of our addresses (`neigh_event_ns`), and the kernel keeps the
//! neighbours of all namespaces in one table of 1,024 entries. Here the only sender that passes is a permanent neighbour already, which is
//! not counted (`neigh_alloc`, `exempt_from_gc`). IPv6 is off in the namespace.

use std::net::Ipv4Addr;

use super::assemble::Line::{At, Do, Test};
use super::assemble::To::{Drop, Next, Part, Pass};
use super::assemble::{Line, assemble, op};
use super::{ARP, ETHERTYPE, IPV4, Label, PAYLOAD, SOURCE, at_least, is_mac};
use crate::api::network::Mac;
use crate::host::tc::Insn;

/// The program for the TAP in a VM's namespace.
pub fn program_isolated(mac: Mac, ip: Ipv4Addr, gateway: Ipv4Addr) -> Vec<Insn> {
    assemble(&[ethernet(mac), ipv4(ip), arp(mac, ip, gateway)].concat())
}

fn ethernet(mac: Mac) -> Vec<Line<Label>> {
    let mut lines = at_least(PAYLOAD);
    lines.extend([
        Do(op::LOAD_WORD, op::VLAN_TAG_PRESENT),
        Test(op::EQUAL, 0, Next, Drop),
    ]);
    lines.extend(is_mac(SOURCE, mac));
    lines.extend([
        Do(op::LOAD_HALF, ETHERTYPE),
        Test(op::EQUAL, IPV4, Part(Label::Ipv4), Next),
        Test(op::EQUAL, ARP, Part(Label::Arp), Drop),
    ]);
    lines
}

/// RFC 791.
fn ipv4(ip: Ipv4Addr) -> Vec<Line<Label>> {
    let mut lines = vec![At(Label::Ipv4)];
    lines.extend(at_least(PAYLOAD + 20));
    lines.extend([
        Do(op::LOAD_WORD, PAYLOAD + 12),
        Test(op::EQUAL, ip.to_bits(), Pass, Drop),
    ]);
    lines
}

/// RFC 826.
fn arp(mac: Mac, ip: Ipv4Addr, gateway: Ipv4Addr) -> Vec<Line<Label>> {
    let mut lines = vec![At(Label::Arp)];
    lines.extend(at_least(PAYLOAD + 28));
    lines.extend([
        // Ethernet and IPv4, with addresses of 6 and 4 bytes.
        Do(op::LOAD_WORD, PAYLOAD),
        Test(op::EQUAL, 1 << 16 | IPV4, Next, Drop),
        Do(op::LOAD_HALF, PAYLOAD + 4),
        Test(op::EQUAL, 0x0604, Next, Drop),
        // A request must be for the gateway.
        Do(op::LOAD_HALF, PAYLOAD + 6),
        Test(op::EQUAL, 2, Part(Label::ArpKind), Next),
        Test(op::EQUAL, 1, Next, Drop),
        Do(op::LOAD_WORD, PAYLOAD + 24),
        Test(op::EQUAL, gateway.to_bits(), Next, Drop),
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
