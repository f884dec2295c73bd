//! Forwarding entries (FDB) of bridges: which address is behind which port.
//! Out of scope: the desired state.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Error;
use super::error::absent_is_none;
use super::netlink::{self, Handle};

/// A forwarding entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The index of the port, or of the bridge itself for some of its own addresses.
    pub port: u32,
    /// The address behind it.
    pub mac: [u8; 6],
    /// Only on bridges with VLAN filtering.
    pub vlan: Option<u16>,
    /// Its origin and lifetime.
    pub kind: Sort,
}

/// Types of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The bridge's or the port's own address; frames to it are for the host (`permanent` in `bridge fdb`).
    Local,
    /// Never expires, but moves to any learning port that receives a frame from the address (`static`).
    Static,
    /// Never expires and never moves (`static sticky`).
    Sticky,
    /// Learned, expires.
    Learned,
}

impl Entry {
    /// An entry that does not move when another port receives a frame from the same address. The kernel moves entries that are only
    /// static (`br_fdb_update`): one frame on a learning port is sufficient.
    pub fn sticky(port: u32, mac: [u8; 6]) -> Self {
        Self {
            port,
            mac,
            vlan: None,
            kind: Sort::Sticky,
        }
    }
}

/// The entries of a port. The kernel walks through all entries of the bridge to select these: to check
/// whether one entry exists, [`get`] it. Also empty if the link is not a bridge port.
pub async fn list(handle: &Handle, port: u32) -> Result<Vec<Entry>, Error> {
    let mut message = blank();
    message.header.ifindex = port;
    let response = handle
        .dump_single_link(RouteNetlinkMessage::GetNeighbour(message))
        .await
        .map_err(|e| {
            Error::io(
                "list forwarding entries of port",
                format!("with index {port}"),
                e,
            )
        })?;
    let mut entries = Vec::new();
    for part in response {
        let RouteNetlinkMessage::NewNeighbour(message) = part else {
            return Err(netlink::unexpected("list", "forwarding entries"));
        };
        // The same dump contains the device's own address filter (NTF_SELF).
        if !message.header.flags.contains(NeighbourFlags::Own) {
            entries.extend(read(&message));
        }
    }
    Ok(entries)
}

/// The entry of a bridge for an address. One request, independent of the number of entries.
pub async fn get(handle: &Handle, bridge: u32, mac: [u8; 6]) -> Result<Option<Entry>, Error> {
    let mut message = blank();
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        NeighbourAttribute::Controller(bridge),
    ];
    let response = handle
        .get(RouteNetlinkMessage::GetNeighbour(message))
        .await
        .map_err(|e| Error::io("get forwarding entry", text(mac), e));
    match absent_is_none(response)? {
        None => Ok(None),
        Some(Some(RouteNetlinkMessage::NewNeighbour(message))) => read(&message)
            .map(Some)
            .ok_or_else(|| netlink::unexpected("get forwarding entry", text(mac))),
        Some(_) => Err(netlink::unexpected("get forwarding entry", text(mac))),
    }
}

/// Adds an entry to the bridge that `entry.port` is a port of, replacing an existing entry for the address.
pub async fn replace(handle: &Handle, entry: Entry) -> Result<(), Error> {
    handle
        .change(
            RouteNetlinkMessage::NewNeighbour(to_message(entry)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map_err(|e| Error::io("add forwarding entry", text(entry.mac), e))
}

/// Deletes an entry. `Absent` if the port has none for the address.
pub async fn delete(handle: &Handle, entry: Entry) -> Result<(), Error> {
    handle
        .change(RouteNetlinkMessage::DelNeighbour(to_message(entry)), 0)
        .await
        .map_err(|e| Error::io("delete forwarding entry", text(entry.mac), e))
}

fn blank() -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message
}

fn to_message(entry: Entry) -> NeighbourMessage {
    let mut message = blank();
    message.header.ifindex = entry.port;
    // NTF_MASTER: the table of the port's bridge, not of the port device itself.
    message.header.flags = NeighbourFlags::Controller;
    message.header.state = match entry.kind {
        Sort::Local => NeighbourState::Permanent,
        Sort::Static | Sort::Sticky => NeighbourState::Noarp,
        Sort::Learned => NeighbourState::Reachable,
    };
    if entry.kind == Sort::Sticky {
        message.header.flags |= NeighbourFlags::Sticky;
    }
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec())];
    message
        .attributes
        .extend(entry.vlan.map(NeighbourAttribute::Vlan));
    message
}

/// `None` if the address is not an Ethernet address.
fn read(message: &NeighbourMessage) -> Option<Entry> {
    let (mut mac, mut vlan) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::Vlan(number) => vlan = Some(*number),
            _ => {}
        }
    }
    let sticky = message.header.flags.contains(NeighbourFlags::Sticky);
    Some(Entry {
        port: message.header.ifindex,
        mac: mac?,
        vlan,
        kind: match message.header.state {
            NeighbourState::Permanent => Sort::Local,
            NeighbourState::Noarp if sticky => Sort::Sticky,
            NeighbourState::Noarp => Sort::Static,
            _ => Sort::Learned,
        },
    })
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
