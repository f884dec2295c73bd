//! Routes.
//! Out of scope: the desired state.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;

use super::Error;
use super::netlink::{self, Handle};
use super::rule::AddrType;

/// The protocol number of the routes that sliced creates: unassigned in `/etc/iproute2/rt_protos`, and above the kernel's
/// and the routing daemons'.
pub const PROTOCOL: u8 = 171;

/// An IPv4 unicast route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination; `0.0.0.0/0` is the default route.
    pub dst: Ipv4Network,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The outgoing link; `None` for a multipath route.
    pub link: Option<u32>,
    /// The scope.
    pub scope: Scope,
    /// Whether the next hop is considered on-link independent of the link's addresses (`RTNH_F_ONLINK`).
    pub next_hop: NextHop,
    /// The originator; [`PROTOCOL`] for sliced, 2 for the kernel.
    pub protocol: u8,
    /// Lower values have priority.
    pub metric: u32,
}

/// The scope of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Any destination, through a next hop.
    Global,
    /// Hosts on the link.
    Link,
    /// Another scope, by its number.
    Other(u8),
}

/// How a next hop is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// There must be a route to it.
    Routed,
    /// It is on the link; this is not verified.
    OnLink,
}

impl Route {
    /// A default route with [`PROTOCOL`] through a next hop that is on `link` independent of the link's addresses.
    pub fn default_via(gateway: Ipv4Addr, link: u32) -> Self {
        Self {
            dst: DEFAULT,
            gateway: Some(gateway),
            link: Some(link),
            scope: Scope::Global,
            next_hop: NextHop::OnLink,
            protocol: PROTOCOL,
            metric: 0,
        }
    }

    /// A route with [`PROTOCOL`] to hosts that are on `link`.
    pub fn on_link(dst: Ipv4Network, link: u32) -> Self {
        Self {
            dst,
            gateway: None,
            link: Some(link),
            scope: Scope::Link,
            next_hop: NextHop::Routed,
            protocol: PROTOCOL,
            metric: 0,
        }
    }
}

const DEFAULT: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// Looks up the route of packets to `ip`: the link, and the next hop if there is one. `None`: unreachable.
/// One request, independent of the number of routes.
pub async fn lookup(
    handle: &Handle,
    ip: Ipv4Addr,
) -> Result<Option<(u32, Option<Ipv4Addr>)>, Error> {
    let Some(found) = get(handle, ip).await? else {
        return Ok(None);
    };
    let mut next = (0, None);
    for attribute in found.attributes {
        match attribute {
            RouteAttribute::Oif(index) => next.0 = index,
            RouteAttribute::Gateway(RouteAddress::Inet(via)) => next.1 = Some(via),
            _ => {}
        }
    }
    Ok(Some(next))
}

/// The type of an address, as `-m addrtype --dst-type` matches it, and the link that packets to it leave on. `None`: unreachable.
pub async fn destination(handle: &Handle, ip: Ipv4Addr) -> Result<Option<(AddrType, u32)>, Error> {
    let Some(found) = get(handle, ip).await? else {
        return Ok(None);
    };
    let kind = match found.header.kind {
        RouteType::Local => AddrType::Local,
        RouteType::Broadcast => AddrType::Broadcast,
        RouteType::Anycast => AddrType::Anycast,
        RouteType::Multicast => AddrType::Multicast,
        _ => AddrType::Unicast,
    };
    let link = found
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    Ok(Some((kind, link.unwrap_or(0))))
}

/// The route that the kernel uses for a packet of the host itself. `None`: unreachable.
async fn get(handle: &Handle, ip: Ipv4Addr) -> Result<Option<RouteMessage>, Error> {
    let message = request(ip);
    match handle.get(RouteNetlinkMessage::GetRoute(message)).await {
        Ok(Some(RouteNetlinkMessage::NewRoute(found))) => Ok(Some(found)),
        Ok(_) => Err(netlink::unexpected("look up the route to", ip.to_string())),
        Err(e) if is_unreachable(&e) => Ok(None),
        Err(e) => Err(Error::io("look up the route to", ip.to_string(), e)),
    }
}

/// The route that the kernel selects for packets to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedRoute {
    /// The destination.
    pub dst: Ipv4Network,
    /// The table.
    pub table: u32,
    /// The outgoing link, if there is one.
    pub link: Option<u32>,
}

/// The route and table that match packets to `ip` (`RTM_F_FIB_MATCH`). `None`: no route matches.
pub async fn match_route(handle: &Handle, ip: Ipv4Addr) -> Result<Option<MatchedRoute>, Error> {
    let mut message = request(ip);
    // Without LookupTable the kernel always returns the main table (`inet_rtm_getroute`).
    message.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
    match handle.get(RouteNetlinkMessage::GetRoute(message)).await {
        Ok(Some(RouteNetlinkMessage::NewRoute(found))) => {
            let Route { dst, link, .. } = read(&found)?;
            let tables = found
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Table(table) => Some(*table),
                    _ => None,
                });
            let table = tables.unwrap_or_else(|| u32::from(found.header.table));
            Ok(Some(MatchedRoute { dst, table, link }))
        }
        Ok(_) => Err(netlink::unexpected("look up the route to", ip.to_string())),
        // No route, or an unreachable, prohibit or blackhole route.
        Err(e) if is_unreachable(&e) => Ok(None),
        Err(e) => Err(Error::io("look up the route to", ip.to_string(), e)),
    }
}

/// How the kernel would route a packet that is received on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// It is sent to this link.
    To(u32),
    /// It is refused, with this errno. EHOSTUNREACH: the link does not forward, or there is no route; EXDEV: the reverse route to its
    /// source does not use the link (`rp_filter`).
    Refused(i32),
}

/// Looks up the route of a packet from `source` to `ip` that is received on `link`.
pub async fn lookup_inbound(
    handle: &Handle,
    source: Ipv4Addr,
    ip: Ipv4Addr,
    link: u32,
) -> Result<Inbound, Error> {
    let mut message = request(ip);
    message.header.source_prefix_length = 32;
    message
        .attributes
        .push(RouteAttribute::Source(RouteAddress::Inet(source)));
    message.attributes.push(RouteAttribute::Iif(link));
    match handle.get(RouteNetlinkMessage::GetRoute(message)).await {
        Ok(Some(RouteNetlinkMessage::NewRoute(found))) => {
            let link = found
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
            Ok(Inbound::To(link.unwrap_or(0)))
        }
        Ok(_) => Err(netlink::unexpected("look up the route to", ip.to_string())),
        Err(e) => match e.raw_os_error() {
            Some(number) if is_unreachable(&e) => Ok(Inbound::Refused(number)),
            _ => Err(Error::io("look up the route to", ip.to_string(), e)),
        },
    }
}

fn request(ip: Ipv4Addr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::Inet(ip)));
    message
}

/// The errors of routes and rules of type unreachable, prohibit and blackhole, and of a link that does not forward.
fn is_unreachable(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::EXDEV)
    )
}

/// The unicast routes of the main table.
pub async fn list(handle: &Handle) -> Result<Vec<Route>, Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    let response = match handle.dump(RouteNetlinkMessage::GetRoute(message)).await {
        Ok(response) => response,
        // The kernel creates the main table of a namespace with its first route (`inet_dump_fib`).
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", "routes", e)),
    };
    let mut routes = Vec::new();
    for part in response {
        let RouteNetlinkMessage::NewRoute(message) = part else {
            return Err(netlink::unexpected("list", "routes"));
        };
        // The kernel may ignore the filter; a blackhole route has no link.
        if message.header.table == RouteHeader::RT_TABLE_MAIN
            && message.header.kind == RouteType::Unicast
        {
            routes.push(read(&message)?);
        }
    }
    Ok(routes)
}

/// Adds a route. `Exists` if there is one to the same destination with the same metric.
pub async fn add(handle: &Handle, route: &Route) -> Result<(), Error> {
    handle
        .change(
            RouteNetlinkMessage::NewRoute(to_message(route)),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
        .map_err(|e| Error::io("add route to", route.dst.to_string(), e))
}

/// Deletes the route that equals `route`. `Absent` if there is none.
pub async fn delete(handle: &Handle, route: &Route) -> Result<(), Error> {
    handle
        .change(RouteNetlinkMessage::DelRoute(to_message(route)), 0)
        .await
        .map_err(|e| Error::io("delete route to", route.dst.to_string(), e))
}

fn to_message(route: &Route) -> RouteMessage {
    // In the main table, of type unicast.
    let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .protocol(route.protocol.into())
        .scope(match route.scope {
            Scope::Global => RouteScope::Universe,
            Scope::Link => RouteScope::Link,
            Scope::Other(number) => number.into(),
        });
    if route.dst.prefix() > 0 {
        builder = builder.destination_prefix(route.dst.network(), route.dst.prefix());
    }
    if let Some(ip) = route.gateway {
        builder = builder.gateway(ip);
    }
    if let Some(index) = route.link {
        builder = builder.output_interface(index);
    }
    if route.metric > 0 {
        builder = builder.priority(route.metric);
    }
    match route.next_hop {
        NextHop::OnLink => builder.onlink().build(),
        NextHop::Routed => builder.build(),
    }
}

fn read(message: &RouteMessage) -> Result<Route, Error> {
    let mut dst = Ipv4Addr::UNSPECIFIED;
    let (mut gateway, mut link, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => dst = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    Ok(Route {
        dst: Ipv4Network::new(dst, message.header.destination_prefix_length)
            .map_err(|_| netlink::unexpected("list", "routes"))?,
        gateway,
        link,
        scope: match message.header.scope {
            RouteScope::Universe => Scope::Global,
            RouteScope::Link => Scope::Link,
            other => Scope::Other(other.into()),
        },
        next_hop: match message.header.flags.contains(RouteFlags::Onlink) {
            true => NextHop::OnLink,
            false => NextHop::Routed,
        },
        protocol: protocol_number(message.header.protocol),
        metric,
    })
}

fn protocol_number(protocol: RouteProtocol) -> u8 {
    protocol.into()
}
