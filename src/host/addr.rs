//! Addresses of links.
//! Out of scope: the desired state.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Error;
use super::netlink::{self, Handle};

/// An IPv4 address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addr {
    /// The link.
    pub index: u32,
    /// The address and the prefix length of its subnet.
    pub net: Ipv4Network,
}

/// The links to list the addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// All links.
    All,
    /// The link with this index.
    Index(u32),
}

/// The IPv4 addresses of one link or of all links.
pub async fn list(handle: &Handle, links: Of) -> Result<Vec<Addr>, Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let response = match links {
        Of::All => {
            let request = RouteNetlinkMessage::GetAddress(message);
            handle.dump(request).await
        }
        Of::Index(index) => {
            message.header.index = index;
            let question = RouteNetlinkMessage::GetAddress(message);
            handle.dump_single_link(question).await
        }
    };
    let answer = response.map_err(|e| Error::io("list", "addresses", e))?;
    answer.into_iter().map(read).collect()
}

/// The IPv4 addresses of all links, with the names of the links. A label that is not the name of the link starts with it and a colon
/// (ip-address(8)); the kernel sets the name if there is none, and changes it when the link is renamed (`inetdev_changename`).
pub async fn list_by_link(handle: &Handle) -> Result<Vec<(String, Addr)>, Error> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let response = handle.dump(RouteNetlinkMessage::GetAddress(message)).await;
    let answer = response.map_err(|e| Error::io("list", "addresses", e))?;
    let found = answer.into_iter().map(|part| {
        let link = link_of(&part);
        read(part).map(|addr| (link, addr))
    });
    found.collect()
}

/// The link that the label of an address names; empty if it has none.
fn link_of(part: &RouteNetlinkMessage) -> String {
    let RouteNetlinkMessage::NewAddress(message) = part else {
        return String::new();
    };
    let labels = message.attributes.iter();
    let label = labels.filter_map(|attribute| match attribute {
        AddressAttribute::Label(label) => Some(label.as_str()),
        _ => None,
    });
    let link = label.filter_map(|label| label.split(':').next()).next();
    link.unwrap_or_default().to_owned()
}

/// The addresses of a link, of both families, including tentative ones (duplicate address detection).
pub async fn list_all_of(handle: &Handle, index: u32) -> Result<BTreeSet<IpAddr>, Error> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = AddressMessage::default();
        message.header.family = family;
        message.header.index = index;
        let response = handle
            .dump_single_link(RouteNetlinkMessage::GetAddress(message))
            .await
            .map_err(|e| Error::io("list", "addresses", e))?;
        for part in response {
            let RouteNetlinkMessage::NewAddress(message) = part else {
                return Err(netlink::unexpected("list", "addresses"));
            };
            found.insert(
                local_address(&message).ok_or_else(|| netlink::unexpected("list", "addresses"))?,
            );
        }
    }
    Ok(found)
}

/// Adds an address, without a broadcast address. `Exists` if the link has it.
pub async fn add(handle: &Handle, addr: Addr) -> Result<(), Error> {
    handle
        .change(
            RouteNetlinkMessage::NewAddress(to_message(addr)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
        .map_err(|e| Error::io("add address", addr.net.to_string(), e))
}

/// Deletes an address. `Absent` if the link does not have it.
pub async fn delete(handle: &Handle, addr: Addr) -> Result<(), Error> {
    handle
        .change(RouteNetlinkMessage::DelAddress(to_message(addr)), 0)
        .await
        .map_err(|e| Error::io("delete address", addr.net.to_string(), e))
}

fn to_message(addr: Addr) -> AddressMessage {
    let ip = addr.net.ip();
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = addr.net.prefix();
    message.header.index = addr.index;
    message.header.scope = scope(ip);
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(ip)),
        AddressAttribute::Address(IpAddr::V4(ip)),
    ];
    message
}

/// Loopback addresses have host scope, as with `ip address`.
fn scope(ip: Ipv4Addr) -> AddressScope {
    match ip.is_loopback() {
        true => AddressScope::Host,
        false => AddressScope::Universe,
    }
}

fn read(response: RouteNetlinkMessage) -> Result<Addr, Error> {
    let fail = || netlink::unexpected("list", "addresses");
    let RouteNetlinkMessage::NewAddress(message) = response else {
        return Err(fail());
    };
    let Some(IpAddr::V4(local)) = local_address(&message) else {
        return Err(fail());
    };
    let net = Ipv4Network::new(local, message.header.prefix_len);
    Ok(Addr {
        index: message.header.index,
        net: net.map_err(|_| fail())?,
    })
}

/// LOCAL is the link's address; ADDRESS is the peer's on a point-to-point link, and the only attribute on other IPv6 links.
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |extract: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(extract)
    };
    find(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    })
    .or_else(|| {
        find(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}
