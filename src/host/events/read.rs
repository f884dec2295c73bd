//! Decodes the kernel's change notifications.
//! Out of scope: receiving them.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{HEADER, LinkChange, What};
use crate::host::link;
use crate::host::rule::Generation;

/// Missing in `libc`: an attribute of `include/uapi/linux/netconf.h`.
const NETCONFA_IFINDEX: u16 = 1;

pub(super) fn generation(message: &[u8]) -> Option<What> {
    let generation = Generation::of(message.get(HEADER..)?)?;
    Some(What::Rules { generation })
}

pub(super) fn change(message: &[u8]) -> Option<What> {
    // `nlmsg_type`.
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Some(read_link(message)),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(What::Addr {
            index: index(message)?,
        }),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE if family(message)? == libc::AF_INET6 => {
            // `rtm_table`. The main table is ignored: on a router it has very many routes.
            let is_local = *message.get(HEADER + 4)? == libc::RT_TABLE_LOCAL;
            let (index, _) = is_local.then(|| route(message)).flatten()?;
            Some(What::Ipv6 { index: index? })
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            let (index, dst) = route(message).unwrap_or_default();
            Some(What::Route { index, dst })
        }
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some(What::RoutingRule),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => is_configured(message)?.then_some(What::Neigh {
            index: index(message)?,
            ip: neighbour(message),
        }),
        libc::RTM_NEWQDISC | libc::RTM_DELQDISC | libc::RTM_NEWTFILTER | libc::RTM_DELTFILTER => {
            Some(What::Filter {
                index: index(message)?,
            })
        }
        libc::RTM_NEWNETCONF | libc::RTM_DELNETCONF if family(message)? == libc::AF_INET6 => {
            netconf_link(message).map(|index| What::Ipv6 { index })
        }
        libc::RTM_NEWNETCONF | libc::RTM_DELNETCONF => Some(What::Netconf {
            index: netconf_link(message),
        }),
        _ => None,
    }
}

/// `ifa_index` of `struct ifaddrmsg`, `ndm_ifindex` of `struct ndmsg` and `tcm_ifindex` of `struct tcmsg` have the same offset.
fn index(message: &[u8]) -> Option<u32> {
    let bytes = message.get(HEADER + 4..HEADER + 8)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// The first byte of every rtnetlink message's own header.
fn family(message: &[u8]) -> Option<i32> {
    message.get(HEADER).map(|family| i32::from(*family))
}

/// `NDA_DST`, after `struct ndmsg`.
fn neighbour(message: &[u8]) -> Option<Ipv4Addr> {
    if family(message)? != libc::AF_INET {
        return None;
    }
    let mut rest = message.get(HEADER + 12..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        if kind == libc::NDA_DST {
            let bytes: [u8; 4] = rest.get(4..8)?.try_into().ok()?;
            return Some(bytes.into());
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// `NETCONFA_IFINDEX`, the first attribute after `struct netconfmsg`, which has one byte; -1: all links, -2: the default for new links.
fn netconf_link(message: &[u8]) -> Option<u32> {
    let body = message.get(HEADER + 4..)?;
    let kind = u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?);
    let index = i32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    u32::try_from(index)
        .ok()
        .filter(|_| kind == NETCONFA_IFINDEX)
}

/// The outgoing link of a route, and its destination.
fn route(message: &[u8]) -> Option<(Option<u32>, Option<Ipv4Network>)> {
    let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
    ) = parsed.payload
    else {
        return None;
    };
    let (mut link, mut dst) = (None, Ipv4Addr::UNSPECIFIED);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => dst = *ip,
            _ => {}
        }
    }
    Some((
        link,
        Ipv4Network::new(dst, route.header.destination_prefix_length).ok(),
    ))
}

/// A link message that cannot be decoded may report any change.
fn read_link(message: &[u8]) -> What {
    let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
    let (message, deleted) = match parsed.map(|m| m.payload) {
        Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(m))) => (m, false),
        Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(m))) => (m, true),
        _ => return What::Overrun,
    };
    // A port that leaves its bridge is reported as deleted, but with family AF_BRIDGE.
    let deleted = deleted && message.header.interface_family != AddressFamily::Bridge;
    let link = link::read(message);
    What::Link(LinkChange {
        name: link.name,
        index: link.index,
        mac: link.mac,
        bridge: link.bridge.is_some() || link.kind.as_deref() == Some("bridge"),
        master: link.master,
        deleted,
        peer_nsid: link.peer_nsid,
    })
}

/// Whether a program configured this neighbour, rather than ARP or a learning bridge. An entry that is being
/// deleted is no longer permanent, but the message has the netlink port of the requester, which is 0 for changes made by the kernel.
fn is_configured(message: &[u8]) -> Option<bool> {
    // `nlmsg_pid`.
    let requester = u32::from_ne_bytes(message.get(12..16)?.try_into().ok()?);
    // `struct ndmsg` of `include/uapi/linux/neighbour.h`.
    let body = message.get(HEADER..)?;
    let family = i32::from(*body.first()?);
    let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
    // A bridge's static entries are `NUD_NOARP`.
    let permanent = match family {
        libc::AF_BRIDGE => libc::NUD_PERMANENT | libc::NUD_NOARP,
        _ => libc::NUD_PERMANENT,
    };
    Some(requester != 0 || state & permanent != 0)
}
