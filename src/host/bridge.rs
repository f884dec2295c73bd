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

pub use super::link_info::{BridgeInfo, Port};
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

/// The maximum number of addresses that a managed bridge learns. With static entries only (as with anti-spoofing) it learns none;
/// otherwise a guest could fill the kernel's memory with addresses.
pub const MAX_LEARNED: u32 = 4096;

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
