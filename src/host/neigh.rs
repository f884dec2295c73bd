//! Neighbour entries.
//! Out of scope: the desired state.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Error;
use super::error::absent_is_none;
use super::netlink::{self, Handle};

/// A permanent IPv4 neighbour: never resolved by ARP, never expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neigh {
    /// The link.
    pub index: u32,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its MAC.
    pub mac: [u8; 6],
}

/// The permanent IPv4 neighbours of all links.
pub async fn list(handle: &Handle) -> Result<Vec<Neigh>, Error> {
    dump(handle, read).await
}

async fn dump(
    handle: &Handle,
    read: impl Fn(&NeighbourMessage) -> Option<Neigh>,
) -> Result<Vec<Neigh>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    let response = handle
        .dump(RouteNetlinkMessage::GetNeighbour(message))
        .await
        .map_err(|e| Error::io("list", "neighbours", e))?;
    let mut neighbours = Vec::new();
    for part in response {
        let RouteNetlinkMessage::NewNeighbour(message) = part else {
            return Err(netlink::unexpected("list", "neighbours"));
        };
        neighbours.extend(read(&message));
    }
    Ok(neighbours)
}

/// All resolved IPv4 neighbours of all links, permanent or not.
pub async fn list_resolved(handle: &Handle) -> Result<Vec<Neigh>, Error> {
    let resolved = |message: &NeighbourMessage| match message.header.state {
        NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed => None,
        _ => address(message),
    };
    dump(handle, resolved).await
}

/// The permanent IPv4 neighbour with this address on a link. One request, independent of the number of neighbours.
pub async fn get(handle: &Handle, index: u32, ip: Ipv4Addr) -> Result<Option<Neigh>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
    let response = handle
        .get(RouteNetlinkMessage::GetNeighbour(message))
        .await
        .map_err(|e| Error::io("get neighbour", ip.to_string(), e));
    match absent_is_none(response)? {
        None => Ok(None),
        Some(Some(RouteNetlinkMessage::NewNeighbour(message))) => Ok(read(&message)),
        Some(_) => Err(netlink::unexpected("get neighbour", ip.to_string())),
    }
}

/// Adds a permanent neighbour, replacing an existing entry for the address.
pub async fn replace(handle: &Handle, neigh: Neigh) -> Result<(), Error> {
    handle
        .change(
            RouteNetlinkMessage::NewNeighbour(to_message(neigh)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map_err(|e| Error::io("add neighbour", neigh.ip.to_string(), e))
}

/// Deletes a neighbour. `Absent` if it does not exist.
pub async fn delete(handle: &Handle, neigh: Neigh) -> Result<(), Error> {
    handle
        .change(RouteNetlinkMessage::DelNeighbour(to_message(neigh)), 0)
        .await
        .map_err(|e| Error::io("delete neighbour", neigh.ip.to_string(), e))
}

fn to_message(neigh: Neigh) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = neigh.index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(neigh.ip)),
        NeighbourAttribute::LinkLayerAddress(neigh.mac.to_vec()),
    ];
    message
}

fn read(message: &NeighbourMessage) -> Option<Neigh> {
    match message.header.state {
        NeighbourState::Permanent => address(message),
        _ => None,
    }
}

fn address(message: &NeighbourMessage) -> Option<Neigh> {
    let ip = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
        _ => None,
    });
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    Some(Neigh {
        index: message.header.ifindex,
        ip: ip?,
        mac: mac?,
    })
}
