//! Bridges and what is particular to their ports.
//! Out of scope: forwarding entries (`fdb`), what every link has (`link`); the desired state.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeMulticastRouterType, BridgeStpState, In6AddrGenMode,
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkInfo, LinkMessage,
};

use super::netlink::Handle;
use super::{Error, link};

/// What a bridge is born with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    /// At most 15 bytes.
    pub name: String,
    /// The Ethernet address. Given, it does not follow the ports' as a bridge's otherwise does.
    pub mac: [u8; 6],
    /// In bytes. Given, it does not follow the ports' either.
    pub mtu: u32,
    /// The group of links that it belongs to (`IFLA_GROUP`).
    pub group: u32,
}

/// What the kernel says of a bridge beside what every link has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Whether a spanning tree is made, by the kernel or by a program.
    pub stp: bool,
    /// How long a port listens and learns before it forwards, in hundredths of a second (`USER_HZ`).
    pub forward_delay: u32,
    /// Whether it tells VLANs apart.
    pub vlan_filtering: bool,
    /// Whether it learns from IGMP and MLD who wants which group, and takes part in the election of who asks (`mcast_snooping`).
    pub snooping: bool,
    /// Which frames to the reserved addresses 01:80:c2:00:00:0X it forwards, a bit for each X.
    pub group_fwd_mask: u16,
    /// How many addresses it learns from frames at most (`IFLA_BR_FDB_MAX_LEARNED`); 0: any number. `None`: a kernel before 6.7
    /// has no such limit.
    pub max_learned: Option<u32>,
}

/// Addresses that a bridge of ours learns at most. With static entries alone (as with anti-spoofing) it learns none; otherwise a guest
/// could fill the kernel's memory with addresses.
pub const MAX_LEARNED: u32 = 4096;

/// What a bridge does with a port; `include/uapi/linux/if_link.h`, `IFLA_BRPORT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Isolated ports do not reach each other (`IFLA_BRPORT_ISOLATED`).
    pub isolated: bool,
    /// Whether source addresses seen here become forwarding entries (`IFLA_BRPORT_LEARNING`).
    pub learning: bool,
    /// Whether frames to unknown unicast addresses go out here (`IFLA_BRPORT_UNICAST_FLOOD`).
    pub unicast_flood: bool,
    /// Nothing that is said here changes the bridge: the port never leads to the root of a spanning tree (`IFLA_BRPORT_PROTECT`,
    /// "root block") nor to a multicast router (`IFLA_BRPORT_MULTICAST_ROUTER` 0).
    pub guarded: bool,
}

impl Default for Port {
    /// What the kernel gives a new port.
    fn default() -> Self {
        Self {
            isolated: false,
            learning: true,
            unicast_flood: true,
            guarded: false,
        }
    }
}

impl BridgeInfo {
    pub(super) fn read(attributes: &[InfoBridge]) -> Self {
        let mut info = Self::default();
        for attribute in attributes {
            match attribute {
                InfoBridge::StpState(state) => info.stp = *state != BridgeStpState::Disabled,
                InfoBridge::ForwardDelay(delay) => info.forward_delay = *delay,
                InfoBridge::VlanFiltering(filtering) => info.vlan_filtering = *filtering,
                InfoBridge::MulticastSnooping(snooping) => info.snooping = *snooping,
                InfoBridge::GroupFwdMask(mask) => info.group_fwd_mask = *mask,
                InfoBridge::FdbMaxLearned(most) => info.max_learned = Some(*most),
                _ => {}
            }
        }
        info
    }
}

impl Port {
    pub(super) fn read(attributes: &[InfoBridgePort]) -> Self {
        let mut port = Self::default();
        let mut root_block = false;
        // A kernel without snooping tells nothing of multicast routers, and knows none.
        let mut router = false;
        for attribute in attributes {
            match attribute {
                InfoBridgePort::Isolated(value) => port.isolated = *value,
                InfoBridgePort::Learning(value) => port.learning = *value,
                InfoBridgePort::UnicastFlood(value) => port.unicast_flood = *value,
                InfoBridgePort::Protect(value) => root_block = *value,
                InfoBridgePort::MulticastRouter(kind) => {
                    router = *kind != BridgeMulticastRouterType::Disabled;
                }
                _ => {}
            }
        }
        port.guarded = root_block && !router;
        port
    }
}

/// Makes a bridge without a spanning tree and with no forward delay: a port forwards as soon as it is up. It is down and has
/// no alias yet. `Exists` when the name is taken.
///
/// Two messages: the MTU of a bridge stays put under its ports' only if it was *changed*
/// (`BROPT_MTU_SET_BY_USER`, `net/bridge/br_device.c`), so it is born with a neighbouring one. Whoever finds it between the two
/// knows it by its MAC and sets the MTU.
pub async fn create(handle: &Handle, birth: &Birth) -> Result<(), Error> {
    let fail = |e| Error::io("create bridge", &birth.name, e);
    // The kernel would put a number in its place, and we would not know which.
    if birth.name.contains('%') {
        return Err(fail(io::ErrorKind::InvalidInput.into()));
    }
    let mut born = named(&birth.name);
    born.attributes.extend([
        LinkAttribute::Address(birth.mac.to_vec()),
        LinkAttribute::Mtu(birth.mtu ^ 1),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::ForwardDelay(0),
                InfoBridge::MulticastSnooping(false),
                InfoBridge::FdbMaxLearned(MAX_LEARNED),
            ])),
        ]),
        LinkAttribute::Group(birth.group),
    ]);
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    handle
        .change(RouteNetlinkMessage::NewLink(born), flags)
        .await
        .map_err(fail)?;
    let mut grown = named(&birth.name);
    grown.attributes.push(LinkAttribute::Mtu(birth.mtu));
    // Not taken at birth, either: only changes to a link are handed to the protocol families (`do_setlink`).
    if link::has_ipv6() {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let families = vec![AfSpecUnspec::Inet6(vec![none])];
        grown.attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
    handle
        .change(RouteNetlinkMessage::SetLink(grown), 0)
        .await
        .map_err(fail)
}

/// Turns off the spanning tree, the forward delay, the VLAN filter and the snooping of a bridge, as [`create`] makes it, has it forward no frame
/// that is for the next bridge alone, and bounds how many addresses it learns.
pub async fn calm(handle: &Handle, index: u32, found: BridgeInfo) -> Result<(), Error> {
    let calm = LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![
            // First: the kernel refuses a delay of 0 while there is a tree, and reads the delay before the tree.
            InfoBridge::StpState(BridgeStpState::Disabled),
        ])),
    ]);
    let mut rest = vec![
        InfoBridge::ForwardDelay(0),
        InfoBridge::GroupFwdMask(0),
        InfoBridge::MulticastSnooping(false),
        InfoBridge::FdbMaxLearned(MAX_LEARNED),
    ];
    // With it, a port passes the VLANs of its list only. A kernel may have been built without, and refuses the attribute.
    rest.extend(
        found
            .vlan_filtering
            .then_some(InfoBridge::VlanFiltering(false)),
    );
    let delay = LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(rest)),
    ]);
    for attribute in [calm, delay] {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        handle
            .change(RouteNetlinkMessage::NewLink(message), 0)
            .await
            .map_err(|e| Error::io("change bridge", format!("number {index}"), e))?;
    }
    Ok(())
}

/// Sets what a bridge does with a port, by the port's index. It must be a port already: the kernel does not take both in one
/// message (`rtnl_changelink`). Before the port is up, no frame passes under other settings.
pub async fn set_port(handle: &Handle, index: u32, port: Port) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::Isolated(port.isolated),
            InfoBridgePort::Learning(port.learning),
            InfoBridgePort::UnicastFlood(port.unicast_flood),
            InfoBridgePort::Protect(port.guarded),
            InfoBridgePort::MulticastRouter(match port.guarded {
                true => BridgeMulticastRouterType::Disabled,
                false => BridgeMulticastRouterType::TempQuery,
            }),
        ])),
    ]));
    // SETLINK does not read the port's data, NEWLINK without CREATE does.
    handle
        .change(RouteNetlinkMessage::NewLink(message), 0)
        .await
        .map_err(|e| Error::io("change bridge port", format!("number {index}"), e))
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}
