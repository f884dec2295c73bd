//! Attributes of TUN devices, bridges and bridge ports, as the kernel reports them with a link.
//! Out of scope: attributes of every link (`link`); setting them (`tap`, `bridge`).

use netlink_packet_route::link::{
    BridgeMulticastRouterType, BridgeStpState, InfoBridge, InfoBridgePort,
};

/// Attributes of `IFLA_INFO_DATA` of kind `tun`, `include/uapi/linux/if_link.h`.
mod attribute {
    pub const OWNER: u16 = 1;
    pub const GROUP: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const PI: u16 = 4;
    pub const VNET_HDR: u16 = 5;
    pub const PERSIST: u16 = 6;
    pub const MULTI_QUEUE: u16 = 7;
}

/// The type of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// Carries IP packets.
    Tun,
    /// Carries Ethernet frames.
    #[default]
    Tap,
}

/// The TUN or TAP attributes that the kernel reports, in addition to those of every link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunInfo {
    /// TUN or TAP.
    pub layer: Layer,
    /// The uid that may attach; `None`: root only.
    pub owner: Option<u32>,
    /// The gid that may attach.
    pub group: Option<u32>,
    /// Persists when no process is attached.
    pub persist: bool,
    /// Each frame has an additional header of four bytes (`IFF_NO_PI` not set).
    pub packet_info: bool,
    /// Each frame has a `virtio_net_hdr`; set by the process that attaches.
    pub vnet_hdr: bool,
    /// More than one queue may be attached.
    pub multi_queue: bool,
}

impl TunInfo {
    pub(super) fn read(attributes: impl Iterator<Item = (u16, Vec<u8>)>) -> Self {
        let mut info = Self::default();
        for (kind, value) in attributes {
            let set = value.first().is_some_and(|byte| *byte != 0);
            let number = || value.as_slice().try_into().ok().map(u32::from_ne_bytes);
            match kind {
                attribute::OWNER => info.owner = number(),
                attribute::GROUP => info.group = number(),
                attribute::TYPE if value.first() == Some(&1) => info.layer = Layer::Tun,
                attribute::TYPE => info.layer = Layer::Tap,
                attribute::PI => info.packet_info = set,
                attribute::VNET_HDR => info.vnet_hdr = set,
                attribute::PERSIST => info.persist = set,
                attribute::MULTI_QUEUE => info.multi_queue = set,
                _ => {}
            }
        }
        info
    }
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
