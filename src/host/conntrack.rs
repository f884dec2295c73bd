//! Connection tracking entries (flows) of the calling thread's network namespace: count, list, delete.
//! Out of scope: the desired state.
//!
//! Over ctnetlink (linux/netfilter/nfnetlink_conntrack.h), IPv4 only.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::Error;
use super::error::absent_is_done;
use super::iptables::netlink::{CONNTRACK, Message, NESTED, Netfilter, attr, be32};

// `enum cntl_msg_types` of linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET: u16 = CONNTRACK | 1;
const IPCTNL_MSG_CT_DELETE: u16 = CONNTRACK | 2;
const IPCTNL_MSG_CT_GET_STATS: u16 = CONNTRACK | 5;

// `enum ctattr_type`, `enum ctattr_tuple`, `enum ctattr_ip`, `enum ctattr_l4proto`.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

// `enum ctattr_stats_global`.
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;

/// A flow in its original direction, before address translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// The address of the initiator.
    pub src: Ipv4Addr,
    /// The destination address.
    pub dst: Ipv4Addr,
    /// Source port; 0 for a protocol without ports.
    pub sport: u16,
    /// Destination port; 0 for a protocol without ports.
    pub dport: u16,
    /// The kernel's ID, computed from its memory address and its tuple: another flow with the same tuple almost always has
    /// another ID.
    pub id: u32,
    /// The source address of replies: differs from `dst` if the destination was translated.
    pub reply_src: Ipv4Addr,
    tuple: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// The number of flows in this namespace. Cheap, whereas [`list`] walks a hash table that all namespaces share.
pub fn count() -> Result<u32, Error> {
    count_with(&mut Netfilter::open()?)
}

/// The same, over a socket that was opened in the namespace.
pub fn count_with(netfilter: &mut Netfilter) -> Result<u32, Error> {
    let stats = stats(netfilter)?;
    let count = attr(&stats, CTA_STATS_GLOBAL_ENTRIES).and_then(be32);
    count.ok_or_else(|| {
        Error::other(
            "count",
            "tracked flows",
            "no number in the kernel's response",
        )
    })
}

/// The maximum number of flows in a namespace, the same for all (`nf_conntrack_max`). `None`: the kernel reports no limit, for example
/// while connection tracking is not in use.
pub fn max() -> Option<u32> {
    be32(attr(
        &stats(&mut Netfilter::open().ok()?).ok()?,
        CTA_STATS_GLOBAL_MAX_ENTRIES,
    )?)
}

/// One message; the cost of a path below /proc/sys/net grows with the number of namespaces (`proc_sys_compare`).
fn stats(netfilter: &mut Netfilter) -> Result<Vec<u8>, Error> {
    let response = netfilter.get(Message::new(
        IPCTNL_MSG_CT_GET_STATS,
        0,
        libc::AF_UNSPEC as u8,
    ));
    response.map_err(|e| Error::io("count", "tracked flows", e))
}

/// This namespace's IPv4 flows. Flows that begin or end meanwhile may be missing.
pub fn list() -> Result<Vec<Flow>, Error> {
    let mut flows = Vec::new();
    let query = Message::new(IPCTNL_MSG_CT_GET, 0, libc::AF_INET as u8);
    Netfilter::open()?.dump("tracked flows", query, |entry| flows.extend(flow(entry)))?;
    Ok(flows)
}

/// This namespace's flows with one of the addresses as an endpoint, before or after the host's address translation. One walk over
/// the table, independent of the number of addresses.
pub fn list_by_addresses(addresses: &BTreeSet<Ipv4Addr>) -> Result<Vec<Flow>, Error> {
    let mut flows = Vec::new();
    if count()? == 0 {
        return Ok(flows);
    }
    let has_address = |flow: &Flow| {
        [flow.src, flow.dst, flow.reply_src]
            .iter()
            .any(|end| addresses.contains(end))
    };
    let query = Message::new(IPCTNL_MSG_CT_GET, 0, libc::AF_INET as u8);
    Netfilter::open()?.dump("tracked flows", query, |entry| {
        flows.extend(flow(entry).filter(has_address));
    })?;
    Ok(flows)
}

/// Deletes the flows in the calling thread's namespace with the same tuples as these from another one. A missing flow is not an error.
pub fn delete_same_tuples(flows: &[Flow]) -> Result<(), Error> {
    let mut socket = Netfilter::open()?;
    flows.iter().try_for_each(|flow| {
        let message = Message::new(IPCTNL_MSG_CT_DELETE, 0, libc::AF_INET as u8)
            .attr(CTA_TUPLE_ORIG | NESTED, &flow.tuple);
        absent_is_done(socket.request(message).map_err(|e| failed(flow, e)))
    })
}

/// Deletes flows, over one socket. A flow that no longer exists, or has another ID, is not an error.
pub fn delete(flows: &[Flow]) -> Result<(), Error> {
    let mut socket = Netfilter::open()?;
    flows
        .iter()
        .try_for_each(|flow| delete_with(&mut socket, flow))
}

fn delete_with(socket: &mut Netfilter, flow: &Flow) -> Result<(), Error> {
    let mut message = Message::new(IPCTNL_MSG_CT_DELETE, 0, libc::AF_INET as u8)
        .attr(CTA_TUPLE_ORIG | NESTED, &flow.tuple)
        .attr(CTA_ID, &flow.id.to_be_bytes());
    if let Some(zone) = &flow.zone {
        message = message.attr(CTA_ZONE, zone);
    }
    absent_is_done(socket.request(message).map_err(|e| failed(flow, e)))
}

fn failed(flow: &Flow, error: std::io::Error) -> Error {
    let Flow {
        protocol,
        src,
        dst,
        sport,
        dport,
        ..
    } = flow;
    let object = format!("the flow {src}:{sport} to {dst}:{dport} of protocol {protocol}");
    Error::io("delete", object, error)
}

fn flow(entry: &[u8]) -> Option<Flow> {
    let tuple = attr(entry, CTA_TUPLE_ORIG)?;
    let (ip, protocol) = (attr(tuple, CTA_TUPLE_IP)?, attr(tuple, CTA_TUPLE_PROTO)?);
    let reply = attr(attr(entry, CTA_TUPLE_REPLY)?, CTA_TUPLE_IP)?;
    let address = |ip, kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attr(ip, kind)?).ok()?));
    let port = |kind| {
        let bytes = attr(protocol, kind)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    Some(Flow {
        protocol: *attr(protocol, CTA_PROTO_NUM)?.first()?,
        src: address(ip, CTA_IP_V4_SRC)?,
        dst: address(ip, CTA_IP_V4_DST)?,
        reply_src: address(reply, CTA_IP_V4_SRC)?,
        sport: port(CTA_PROTO_SRC_PORT).unwrap_or(0),
        dport: port(CTA_PROTO_DST_PORT).unwrap_or(0),
        id: u32::from_be_bytes(attr(entry, CTA_ID)?.try_into().ok()?),
        tuple: tuple.to_vec(),
        zone: attr(entry, CTA_ZONE).map(<[u8]>::to_vec),
    })
}
