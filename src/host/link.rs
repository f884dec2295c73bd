//! Links: list, create a veth, change, rename, delete.
//! Out of scope: the desired state.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, Nla};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoPortData,
    InfoTun, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use super::iptables::netlink::{NESTED, push_attr};
use super::netlink::{self, Handle};
use super::netns::Netns;
use super::{Error, bridge, tap};

/// A link as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its interface index, in its namespace.
    pub index: u32,
    /// At most 15 bytes.
    pub name: String,
    /// `veth`, `tun`, `bridge`…; `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// The Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// `IFLA_IFALIAS`, which contains the label.
    pub alias: Option<String>,
    /// Whether it is administratively up (`IFF_UP`), independent of the carrier.
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
    /// The bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// The index of its other end or parent, in the namespace `peer_nsid`, or in this one if `None`.
    pub peer_index: Option<u32>,
    /// The ID of the namespace of its other end (`IFLA_LINK_NETNSID`).
    pub peer_nsid: Option<i32>,
    /// `IFLA_GROUP`, by which packet filters match links independent of their names; 0 by default.
    pub group: u32,
    /// Its IPv4 settings; `None` for a link without IPv4.
    pub ipv4: Option<Ipv4>,
    /// Its IPv6 settings; `None` if the kernel has no IPv6 or the link's MTU is too small for it.
    pub ipv6: Option<Ipv6>,
    /// Attributes of a TUN or TAP device.
    pub tun: Option<tap::TunInfo>,
    /// Attributes of a bridge.
    pub bridge: Option<bridge::BridgeInfo>,
    /// Its bridge port settings, if `master` is a bridge.
    pub port: Option<bridge::Port>,
}

/// A link's IPv4 settings: its own values of `net.ipv4.conf`, not combined with those of `all`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ipv4 {
    /// `forwarding`.
    pub forwarding: i32,
    /// `accept_redirects`.
    pub accept_redirects: i32,
    /// `secure_redirects`.
    pub secure_redirects: i32,
    /// `shared_media`.
    pub shared_media: i32,
    /// `accept_source_route`.
    pub accept_source_route: i32,
    /// `proxy_arp`.
    pub proxy_arp: i32,
    /// `arp_accept`.
    pub arp_accept: i32,
    /// `arp_announce`.
    pub arp_announce: i32,
    /// `arp_ignore`.
    pub arp_ignore: i32,
    /// `send_redirects`.
    pub send_redirects: i32,
    /// `rp_filter`.
    pub rp_filter: i32,
    /// `route_localnet`.
    pub route_localnet: i32,
    /// `proxy_arp_pvlan`.
    pub proxy_arp_pvlan: i32,
    /// `arp_filter`.
    pub arp_filter: i32,
    /// `bc_forwarding`.
    pub bc_forwarding: i32,
    /// `log_martians`.
    pub log_martians: i32,
}

/// A link's IPv6 settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// `disable_ipv6`: no IPv6 packet is received or sent.
    pub disabled: bool,
    /// `accept_ra`, `autoconf`, `accept_redirects` or `proxy_ndp` is set: the host accepts addresses, routes or next hops from received
    /// packets, or answers for other hosts.
    pub configurable: bool,
    /// The kernel generates no address for it, and so sends no router solicitations (`IN6_ADDR_GEN_MODE_NONE`).
    pub bare: bool,
}

/// Up or down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Carries no packets.
    #[default]
    Down,
    /// May carry packets.
    Up,
}

/// The initial attributes of a veth end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethEnd {
    /// At most 15 bytes.
    pub name: String,
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// In bytes.
    pub mtu: u32,
    /// [`Link::group`].
    pub group: u32,
}

/// Changes to a link, all in one message. `None` means no change. The kernel sets the alias before it sets the link up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// `IFLA_IFALIAS`, at most 255 bytes; an empty one removes it.
    pub alias: Option<String>,
    /// The Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Up or down.
    pub state: Option<State>,
    /// The index of the bridge to become a port of; 0 detaches it.
    pub master: Option<u32>,
    /// Which IPv6 addresses the kernel generates for it.
    pub ipv6_addresses: Option<Ipv6Addresses>,
    /// [`Link::group`].
    pub group: Option<u32>,
    /// The link's own values of `net.ipv4.conf`.
    pub ipv4: Vec<(Ipv4Key, u32)>,
}

/// A setting of `net.ipv4.conf.<link>`, with its number in `linux/ip.h` (`IPV4_DEVCONF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Ipv4Key {
    /// `forwarding`: whether packets received here are forwarded. A new link has the value of `conf/default`.
    Forwarding = 1,
    /// `accept_redirects`.
    AcceptRedirects = 4,
    /// `accept_source_route`.
    AcceptSourceRoute = 9,
    /// `arp_ignore`.
    ArpIgnore = 19,
}

/// IPv6 addresses that the kernel generates for a link (`IFLA_INET6_ADDR_GEN_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Addresses {
    /// None. Has no effect on a kernel without IPv6.
    Bare,
}

/// All links of the namespace.
pub async fn list(handle: &Handle) -> Result<Vec<Link>, Error> {
    dump(handle, LinkMessage::default()).await
}

/// All bridges of the namespace. The kernel filters by kind, so this is cheap even with thousands of other links.
pub async fn list_bridges(handle: &Handle) -> Result<Vec<Link>, Error> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Bridge,
        )]));
    dump(handle, message).await
}

async fn dump(handle: &Handle, mut message: LinkMessage) -> Result<Vec<Link>, Error> {
    message.attributes.push(without_statistics());
    let answer = handle
        .dump(RouteNetlinkMessage::GetLink(message))
        .await
        .map_err(|e| Error::io("list", "links", e))?;
    answer
        .into_iter()
        .map(|part| match part {
            RouteNetlinkMessage::NewLink(message) => Ok(read(message)),
            _ => Err(netlink::unexpected("list", "links")),
        })
        .collect()
}

/// One link by its name; `None` when the kernel reports that it does not exist.
pub async fn get(handle: &Handle, name: &str) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(without_statistics());
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let answer = handle
        .get(RouteNetlinkMessage::GetLink(message))
        .await
        .map_err(|e| Error::io("get link", name, e));
    match netlink::absent_is_none(answer)? {
        None => Ok(None),
        Some(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(read(message))),
        Some(_) => Err(netlink::unexpected("get link", name)),
    }
}

/// One link by its index; `None` when the kernel reports that it does not exist.
pub async fn at(handle: &Handle, index: u32) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(without_statistics());
    let answer = handle
        .get(RouteNetlinkMessage::GetLink(message))
        .await
        .map_err(|e| Error::io("get link", format!("with index {index}"), e));
    match netlink::absent_is_none(answer)? {
        Some(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(read(message))),
        None => Ok(None),
        Some(_) => Err(netlink::unexpected(
            "get link",
            format!("with index {index}"),
        )),
    }
}

/// Creates a veth in the handle's namespace with its other end directly in `peer_netns`; names, MACs and MTUs are
/// set in the same step, so no partially configured link is visible. Both ends are down (the kernel refuses to set the peer up
/// before the other end exists) and have no alias yet. `Exists` if either name is in use.
pub async fn create_veth(
    handle: &Handle,
    end: &VethEnd,
    peer: &VethEnd,
    peer_netns: &Netns,
) -> Result<(), Error> {
    let mut there = born(peer);
    let descriptor = peer_netns.as_fd().as_raw_fd();
    there.attributes.push(LinkAttribute::NetNsFd(descriptor));
    let mut here = born(end);
    here.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there))),
    ]));
    handle
        .change(
            RouteNetlinkMessage::NewLink(here),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .await
        .map_err(|e| Error::io("create veth", &end.name, e))
}

/// Changes a link by its index.
pub async fn set(handle: &Handle, index: u32, change: &Change) -> Result<(), Error> {
    let mut message = to_message(change);
    message.header.index = index;
    handle
        .change(RouteNetlinkMessage::SetLink(message), 0)
        .await
        .map_err(|e| Error::io("change link", format!("with index {index}"), e))
}

/// Changes a link of the calling thread's namespace by its name, without a runtime. Blocks. For `prepare` of
/// [`super::netns::create`], which labels `lo` and sets it up, and for code inside [`Netns::run_here`] or [`Netns::run`].
pub fn set_here(name: &str, change: &Change) -> Result<(), Error> {
    let mut message = to_message(change);
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    netlink::change_here(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(|e| Error::io("change link", name, e))
}

/// Renames a link. It is down afterwards: an older kernel cannot rename a link that is up (`dev_change_name`).
pub async fn rename(handle: &Handle, index: u32, name: &str) -> Result<(), Error> {
    let down = Change {
        state: Some(State::Down),
        ..Change::default()
    };
    set(handle, index, &down).await?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    handle
        .change(RouteNetlinkMessage::SetLink(message), 0)
        .await
        .map_err(|e| Error::io("rename link", format!("with index {index} to {name}"), e))
}

/// Deletes a link by its index, and a veth's other end with it.
pub async fn delete(handle: &Handle, index: u32) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    handle
        .change(RouteNetlinkMessage::DelLink(message), 0)
        .await
        .map_err(|e| Error::io("delete link", format!("with index {index}"), e))
}

/// Statistics are half of a link's message and are not used.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn born(end: &VethEnd) -> LinkMessage {
    let mut message = to_message(&Change {
        mac: Some(end.mac),
        mtu: Some(end.mtu),
        // 0 is the default.
        group: Some(end.group).filter(|group| *group != 0),
        ..Change::default()
    });
    message
        .attributes
        .push(LinkAttribute::IfName(end.name.clone()));
    message
}

fn to_message(change: &Change) -> LinkMessage {
    let mut message = LinkMessage::default();
    if let Some(state) = change.state {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = match state {
            State::Up => LinkFlags::Up,
            State::Down => LinkFlags::empty(),
        };
    }
    let alias = change.alias.clone().map(LinkAttribute::IfAlias);
    let mac = change.mac.map(|mac| LinkAttribute::Address(mac.to_vec()));
    let mtu = change.mtu.map(LinkAttribute::Mtu);
    let master = change.master.map(LinkAttribute::Controller);
    // A kernel without IPv6 would refuse the whole message for this.
    let inet6 = change.ipv6_addresses.filter(|_| has_ipv6()).map(|how| {
        let mode = match how {
            Ipv6Addresses::Bare => In6AddrGenMode::None,
        };
        AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])
    });
    let inet = (!change.ipv4.is_empty()).then(|| AfSpecUnspec::Inet(vec![conf(&change.ipv4)]));
    let families: Vec<AfSpecUnspec> = inet.into_iter().chain(inet6).collect();
    let families = (!families.is_empty()).then_some(LinkAttribute::AfSpecUnspec(families));
    let group = change.group.map(LinkAttribute::Group);
    message.attributes = [alias, mac, mtu, master, families, group]
        .into_iter()
        .flatten()
        .collect();
    message
}

/// `IFLA_INET_CONF`: in a request it contains an attribute for each value (`inet_set_link_af`), in a response an array.
fn conf(values: &[(Ipv4Key, u32)]) -> AfSpecInet {
    const IFLA_INET_CONF: u16 = 1;
    let mut attributes = Vec::new();
    for (key, value) in values {
        push_attr(&mut attributes, *key as u16, &value.to_ne_bytes());
    }
    AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NESTED, attributes))
}

/// Whether this kernel supports IPv6; this does not change while it runs.
pub(super) fn has_ipv6() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| std::path::Path::new("/proc/sys/net/ipv6").exists())
}

/// Decodes a link message, which may be a response or an event.
pub(super) fn read(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::Link(index) => link.peer_index = Some(index),
            LinkAttribute::LinkNetNsId(nsid) => link.peer_nsid = Some(nsid),
            LinkAttribute::LinkInfo(infos) => read_infos(&mut link, infos),
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::AfSpecUnspec(families) => {
                link.ipv4 = read_ipv4(&families);
                link.ipv6 = read_ipv6(&families);
            }
            _ => {}
        }
    }
    link
}

fn read_ipv4(families: &[AfSpecUnspec]) -> Option<Ipv4> {
    let inet = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(attributes) => Some(attributes),
        _ => None,
    })?;
    inet.iter().find_map(|attribute| match attribute {
        AfSpecInet::DevConf(found) => Some(Ipv4 {
            forwarding: found.forwarding,
            accept_redirects: found.accept_redirects,
            secure_redirects: found.secure_redirects,
            shared_media: found.shared_media,
            accept_source_route: found.accept_source_route,
            proxy_arp: found.proxy_arp,
            arp_accept: found.arp_accept,
            arp_announce: found.arp_announce,
            arp_ignore: found.arp_ignore,
            send_redirects: found.send_redirects,
            rp_filter: found.rp_filter,
            route_localnet: found.route_localnet,
            proxy_arp_pvlan: found.proxy_arp_pvlan,
            arp_filter: found.arpfilter,
            bc_forwarding: found.bc_forwarding,
            log_martians: found.log_martians,
        }),
        _ => None,
    })
}

fn read_ipv6(families: &[AfSpecUnspec]) -> Option<Ipv6> {
    let inet6 = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => Some(attributes),
        _ => None,
    })?;
    let mut ipv6 = Ipv6 {
        disabled: false,
        configurable: false,
        bare: false,
    };
    for attribute in inet6 {
        match attribute {
            AfSpecInet6::DevConf(found) => {
                ipv6.disabled = found.disable_ipv6 == 1;
                let takes = [found.accept_ra, found.autoconf, found.accept_redirects];
                ipv6.configurable = takes.iter().any(|value| *value != 0) || found.proxy_ndp != 0;
            }
            AfSpecInet6::AddrGenMode(mode) => ipv6.bare = *mode == In6AddrGenMode::None,
            _ => {}
        }
    }
    Some(ipv6)
}

fn read_infos(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
            LinkInfo::Data(InfoData::Tun(attributes)) => {
                let values = attributes.iter().map(to_pair);
                link.tun = Some(tap::TunInfo::read(values));
            }
            LinkInfo::Data(InfoData::Bridge(attributes)) => {
                link.bridge = Some(bridge::BridgeInfo::read(&attributes));
            }
            LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                link.port = Some(bridge::Port::read(&attributes));
            }
            _ => {}
        }
    }
}

fn to_pair(nla: &InfoTun) -> (u16, Vec<u8>) {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    (nla.kind(), value)
}
