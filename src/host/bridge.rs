//! Bridges and bridge port settings.
//! Out of scope: forwarding entries (`fdb`), attributes of every link (`link`); the desired state.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeMulticastRouterType, BridgeStpState, In6AddrGenMode,
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec};

use super::netlink::Handle;
use super::{Error, link};

/// The initial attributes of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBridge {
    /// At most 15 bytes.
    pub name: String,
    /// The Ethernet address. If set explicitly, it does not follow the ports' addresses.
    pub mac: [u8; 6],
    /// In bytes. If set explicitly, it does not follow the ports' MTUs.
    pub mtu: u32,
    /// The group of links that it belongs to (`IFLA_GROUP`).
    pub group: u32,
}

/// The bridge attributes that the kernel reports, in addition to those of every link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Whether a spanning tree protocol runs, in the kernel or in user space.
    pub stp: bool,
    /// How long a port listens and learns before it forwards, in hundredths of a second (`USER_HZ`).
    pub forward_delay: u32,
    /// Whether it filters VLANs.
    pub vlan_filtering: bool,
    /// Whether it does IGMP and MLD snooping and takes part in the querier election (`mcast_snooping`).
    pub snooping: bool,
    /// Which frames to the reserved addresses 01:80:c2:00:00:0X it forwards, one bit for each X.
    pub group_fwd_mask: u16,
    /// The maximum number of learned addresses (`IFLA_BR_FDB_MAX_LEARNED`); 0: no limit. `None`: the kernel is older than 6.7
    /// and has no such limit.
    pub max_learned: Option<u32>,
}

/// The maximum number of addresses that a managed bridge learns. With static entries only (as with anti-spoofing) it learns none;
/// otherwise a guest could fill the kernel's memory with addresses.
pub const MAX_LEARNED: u32 = 4096;

/// Bridge port settings; `include/uapi/linux/if_link.h`, `IFLA_BRPORT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Isolated ports cannot reach each other (`IFLA_BRPORT_ISOLATED`).
    pub isolated: bool,
    /// Whether source addresses received here become forwarding entries (`IFLA_BRPORT_LEARNING`).
    pub learning: bool,
    /// Whether frames to unknown unicast addresses are sent here (`IFLA_BRPORT_UNICAST_FLOOD`).
    pub unicast_flood: bool,
    /// Protocol messages received here do not affect the bridge: the port never becomes the root port of a spanning tree
    /// (`IFLA_BRPORT_PROTECT`, "root block") nor a multicast router port (`IFLA_BRPORT_MULTICAST_ROUTER` 0).
    pub protected: bool,
}

impl Default for Port {
    /// The kernel's defaults for a new port.
    fn default() -> Self {
        Self {
            isolated: false,
            learning: true,
            unicast_flood: true,
            protected: false,
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
                InfoBridge::FdbMaxLearned(max) => info.max_learned = Some(*max),
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
        // A kernel without snooping does not report multicast routers and has none.
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
        port.protected = root_block && !router;
        port
    }
}

/// Creates a bridge without a spanning tree and with no forward delay: a port forwards as soon as it is up. It is down and has
/// no alias yet. `Exists` if the name is in use.
///
/// Two messages: the MTU of a bridge is independent of its ports only after it was *changed*
/// (`BROPT_MTU_SET_BY_USER`, `net/bridge/br_device.c`), so it is created with a different one. After a crash between the two
/// messages, the bridge is identified by its MAC and the MTU is set.
pub async fn create(handle: &Handle, new: &NewBridge) -> Result<(), Error> {
    let fail = |e| Error::io("create bridge", &new.name, e);
    // The kernel would replace it with a number that is unknown here.
    if new.name.contains('%') {
        return Err(fail(io::ErrorKind::InvalidInput.into()));
    }
    // Not `LinkBridge::new`, which sets it up.
    let request = LinkMessageBuilder::<LinkBridge>::new(&new.name)
        .address(new.mac.to_vec())
        .mtu(new.mtu ^ 1)
        .link_group(new.group)
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(0)
        .mcast_snooping(false)
        .fdb_max_learned(MAX_LEARNED)
        .build();
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    handle
        .change(RouteNetlinkMessage::NewLink(request), flags)
        .await
        .map_err(fail)?;
    let mut update = LinkUnspec::new_with_name(&new.name).mtu(new.mtu);
    // Not possible on creation either: the kernel passes only changes of a link to the protocol families (`do_setlink`).
    if link::has_ipv6() {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let families = vec![AfSpecUnspec::Inet6(vec![none])];
        update = update.append_extra_attribute(LinkAttribute::AfSpecUnspec(families));
    }
    handle
        .change(RouteNetlinkMessage::SetLink(update.build()), 0)
        .await
        .map_err(fail)
}

/// Disables the spanning tree, the forward delay, VLAN filtering and snooping of a bridge, as in [`create`], disables the forwarding of
/// link-local frames, and limits the number of learned addresses.
pub async fn calm(handle: &Handle, index: u32, found: BridgeInfo) -> Result<(), Error> {
    let stp_off = LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![
            // In a first message: the kernel refuses a delay of 0 while STP is on, and evaluates the delay before the STP state.
            InfoBridge::StpState(BridgeStpState::Disabled),
        ])),
    ]);
    let mut settings = vec![
        InfoBridge::ForwardDelay(0),
        InfoBridge::GroupFwdMask(0),
        InfoBridge::MulticastSnooping(false),
        InfoBridge::FdbMaxLearned(MAX_LEARNED),
    ];
    // With it, a port passes only the VLANs of its list. Only if it is on: a kernel built without it refuses the attribute.
    settings.extend(
        found
            .vlan_filtering
            .then_some(InfoBridge::VlanFiltering(false)),
    );
    let other_settings = LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(settings)),
    ]);
    for attribute in [stp_off, other_settings] {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        handle
            .change(RouteNetlinkMessage::NewLink(message), 0)
            .await
            .map_err(|e| Error::io("change bridge", format!("with index {index}"), e))?;
    }
    Ok(())
}

/// Sets the bridge port settings, by the port's index. It must already be a port: the kernel does not accept both in one
/// message (`rtnl_changelink`). If it is called before the port is up, no frame passes with other settings.
pub async fn set_port(handle: &Handle, index: u32, port: Port) -> Result<(), Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::Isolated(port.isolated),
            InfoBridgePort::Learning(port.learning),
            InfoBridgePort::UnicastFlood(port.unicast_flood),
            InfoBridgePort::Protect(port.protected),
            InfoBridgePort::MulticastRouter(match port.protected {
                true => BridgeMulticastRouterType::Disabled,
                false => BridgeMulticastRouterType::TempQuery,
            }),
        ])),
    ]));
    // SETLINK does not read the port's data, NEWLINK without CREATE does.
    handle
        .change(RouteNetlinkMessage::NewLink(message), 0)
        .await
        .map_err(|e| Error::io("change bridge port", format!("with index {index}"), e))
}
