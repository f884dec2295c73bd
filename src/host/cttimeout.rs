//! Timeout policies of connection tracking for TCP over IPv4, in the calling thread's network namespace.
//! Out of scope: which timeouts; the rules that apply a policy.
//!
//! Over nfnetlink (linux/netfilter/nfnetlink_cttimeout.h, net/netfilter/nfnetlink_cttimeout.c).

use std::collections::BTreeMap;

use netlink_packet_core::NLM_F_REPLACE;

use super::Error;
use super::error::{absent_is_done, absent_is_none};
use super::iptables::netlink::{
    CREATE, Message, NESTED, Netfilter, TIMEOUTS, attr, attrs, be32, push_attr,
};

// `enum ctnl_timeout_msg_types` of linux/netfilter/nfnetlink_cttimeout.h.
const IPCTNL_MSG_TIMEOUT_NEW: u16 = TIMEOUTS;
const IPCTNL_MSG_TIMEOUT_GET: u16 = TIMEOUTS | 1;
const IPCTNL_MSG_TIMEOUT_DELETE: u16 = TIMEOUTS | 2;
const IPCTNL_MSG_TIMEOUT_DEFAULT_SET: u16 = TIMEOUTS | 3;
const IPCTNL_MSG_TIMEOUT_DEFAULT_GET: u16 = TIMEOUTS | 4;

// `enum ctattr_timeout`.
const CTA_TIMEOUT_NAME: u16 = 1;
const CTA_TIMEOUT_L3PROTO: u16 = 2;
const CTA_TIMEOUT_L4PROTO: u16 = 3;
const CTA_TIMEOUT_DATA: u16 = 4;

/// Seconds by state (`enum ctattr_timeout_tcp`).
pub type Timeouts = BTreeMap<u16, u32>;

/// The policy with this name; `None`: it does not exist.
pub fn get(name: &str) -> Result<Option<Timeouts>, Error> {
    let query =
        Message::new(IPCTNL_MSG_TIMEOUT_GET, 0, libc::AF_INET as u8).text(CTA_TIMEOUT_NAME, name);
    let found = Netfilter::open()?.get(query);
    let found = absent_is_none(found.map_err(|e| Error::io("get timeout policy", name, e)))?;
    Ok(found.map(|policy| decode(&policy)))
}

/// The timeouts of connections without a policy: `nf_conntrack_tcp_timeout_*` of the namespace, all in one message.
pub fn defaults() -> Result<Timeouts, Error> {
    let query = tcp(Message::new(
        IPCTNL_MSG_TIMEOUT_DEFAULT_GET,
        0,
        libc::AF_INET as u8,
    ));
    let found = Netfilter::open()?.get(query);
    found
        .map(|policy| decode(&policy))
        .map_err(|e| Error::io("get", "the default conntrack timeouts", e))
}

/// Sets the timeouts of connections without a policy; states that are not given keep their value.
pub fn set_defaults(timeouts: &Timeouts) -> Result<(), Error> {
    let message = tcp(Message::new(
        IPCTNL_MSG_TIMEOUT_DEFAULT_SET,
        0,
        libc::AF_INET as u8,
    ));
    let done =
        Netfilter::open()?.request(message.attr(CTA_TIMEOUT_DATA | NESTED, &encode(timeouts)));
    done.map_err(|e| Error::io("set", "the default conntrack timeouts", e))
}

fn tcp(message: Message) -> Message {
    message
        .attr(CTA_TIMEOUT_L3PROTO, &(libc::AF_INET as u16).to_be_bytes())
        .attr(CTA_TIMEOUT_L4PROTO, &[libc::IPPROTO_TCP as u8])
}

fn decode(policy: &[u8]) -> Timeouts {
    let data = attr(policy, CTA_TIMEOUT_DATA).unwrap_or(&[]);
    let seconds = attrs(data).filter_map(|(state, value)| Some((state, be32(value)?)));
    seconds.collect()
}

fn encode(timeouts: &Timeouts) -> Vec<u8> {
    let mut data = Vec::new();
    for (state, seconds) in timeouts {
        push_attr(&mut data, *state, &seconds.to_be_bytes());
    }
    data
}

/// Creates the policy, or sets the values of an existing one.
pub fn set(name: &str, timeouts: &Timeouts) -> Result<(), Error> {
    let message = |flags| {
        let message = Message::new(IPCTNL_MSG_TIMEOUT_NEW, flags, libc::AF_INET as u8)
            .text(CTA_TIMEOUT_NAME, name);
        tcp(message).attr(CTA_TIMEOUT_DATA | NESTED, &encode(timeouts))
    };
    // Entries that have the policy keep it, with the new values.
    let done = Netfilter::open()?.request(message(CREATE | NLM_F_REPLACE));
    done.map_err(|e| Error::io("set timeout policy", name, e))
}

/// Removes the policy. [`Busy`](super::Kind::Busy): a rule refers to it.
pub fn delete(name: &str) -> Result<(), Error> {
    let message = Message::new(IPCTNL_MSG_TIMEOUT_DELETE, 0, libc::AF_INET as u8)
        .text(CTA_TIMEOUT_NAME, name);
    let done = Netfilter::open()?.request(message);
    absent_is_done(done.map_err(|e| Error::io("delete timeout policy", name, e)))
}
