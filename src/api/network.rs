//! The `network:` section after validation.
//! Out of scope: reading YAML; address pools.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cni::CniOptions;
use super::policy::Policy;
use super::vm_index::MAX_COUNT;

pub use super::mac::Mac;

/// The data path of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A namespace and a /30 for the VM; only egress that the lists allow.
    Isolated,
    /// A port of a bridge with a subnet that the host routes.
    Bridge,
    /// The result of a chain of CNI plugins.
    Cni,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Isolated => "isolated",
            Self::Bridge => "bridge",
            Self::Cni => "cni",
        })
    }
}

/// The desired data path of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum NetworkSpec {
    /// See [`Mode::Isolated`].
    Isolated(IsolatedSpec),
    /// See [`Mode::Bridge`].
    Bridge(BridgeSpec),
    /// See [`Mode::Cni`].
    Cni(CniSpec),
}

/// Isolated mode's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IsolatedSpec {
    /// The range of the VMs' /30s, a /16 to /29 in 169.254.0.0/16; `None` to derive it from the group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub range: Option<Ipv4Network>,
    /// The maximum number of concurrent connections of the VM; `None` for a share of the host's table. Changes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// The egress policy. Changes live.
    #[serde(flatten)]
    pub policy: Policy,
    /// The user and group on the host that may open the TAP.
    #[serde(default)]
    pub tap_owner: TapOwner,
}

/// Bridge mode's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BridgeSpec {
    /// The name of the bridge. An existing bridge without a label is used and not modified.
    pub bridge: String,
    /// The prefix of the TAPs' names; the VM's index minus one follows.
    pub tap_prefix: String,
    /// The host's address on the bridge, with the prefix length of the subnet; `None` to derive it from the group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub gateway: Option<Ipv4Network>,
    /// The addresses for the VMs.
    #[serde(default, skip_serializing_if = "Addresses::is_any")]
    pub addresses: Addresses,
    /// Restricts a VM to its own MAC and address; it cannot be a DHCP server or a router.
    pub antispoof: bool,
    /// VMs of the group cannot reach each other over the bridge.
    pub isolate_ports: bool,
    /// The maximum number of concurrent connections of the VM; `None` for a share of the host's table. Changes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// The user and group on the host that may open the TAPs.
    #[serde(default)]
    pub tap_owner: TapOwner,
}

impl BridgeSpec {
    /// The name of the TAP of the VM with this index (the first is 1): the prefix and the index minus one. For a VM made on demand: the
    /// prefix, `x` and a number.
    pub fn tap(&self, index: u32) -> String {
        match index.checked_sub(MAX_COUNT + 1) {
            None => format!("{}{}", self.tap_prefix, index.saturating_sub(1)),
            Some(number) => format!("{}x{number}", self.tap_prefix),
        }
    }
}

/// The addresses of a bridge's subnet that the VMs of a group may have.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addresses {
    /// Any free address.
    #[default]
    Any,
    /// Any free address from the first to the last.
    Range(Ipv4Addr, Ipv4Addr),
    /// These addresses, in the order of the VMs. VMs made on demand may have any free one of them.
    Listed(Vec<Ipv4Addr>),
}

impl Addresses {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }

    /// Whether the VM with this index (the first is 1) may have this address.
    pub fn allow(&self, index: u32, ip: Ipv4Addr) -> bool {
        match self {
            Self::Any => true,
            Self::Range(first, last) => (*first..=*last).contains(&ip),
            Self::Listed(listed) if index > MAX_COUNT => listed.contains(&ip),
            Self::Listed(listed) => listed.get(index.saturating_sub(1) as usize) == Some(&ip),
        }
    }
}

/// CNI mode's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CniSpec {
    /// The name of the network configuration list.
    pub network_name: String,
    /// The user and group on the host that may open the TAP.
    #[serde(default)]
    pub tap_owner: TapOwner,
    /// What the VM requests from the plugins.
    #[serde(default, skip_serializing_if = "CniOptions::is_default")]
    pub cni: CniOptions,
}

impl NetworkSpec {
    /// The mode.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Isolated(_) => Mode::Isolated,
            Self::Bridge(_) => Mode::Bridge,
            Self::Cni(_) => Mode::Cni,
        }
    }

    /// The egress policy; only isolated mode has one.
    pub fn policy(&self) -> Option<&Policy> {
        match self {
            Self::Isolated(isolated) => Some(&isolated.policy),
            Self::Bridge(_) | Self::Cni(_) => None,
        }
    }

    /// Valid settings that are probably a mistake.
    pub fn warnings(&self) -> Vec<String> {
        self.policy().map(Policy::warnings).unwrap_or_default()
    }

    /// The maximum number of concurrent connections of a VM, if the group sets it.
    pub fn max_connections(&self) -> Option<u32> {
        match self {
            Self::Isolated(isolated) => isolated.max_connections,
            Self::Bridge(bridge) => bridge.max_connections,
            Self::Cni(_) => None,
        }
    }

    /// The user and group that may open the TAP.
    pub fn tap_owner(&self) -> TapOwner {
        match self {
            Self::Isolated(isolated) => isolated.tap_owner,
            Self::Bridge(bridge) => bridge.tap_owner,
            Self::Cni(cni) => cni.tap_owner,
        }
    }

    /// Whether a change from `before` to this network allows a running VM no additional traffic. A sufficient test: `false` does not
    /// prove that it does.
    pub fn is_at_most_as_permissive_as(&self, before: &Self) -> bool {
        let is_not_increased = |now: Option<u32>, before: Option<u32>| {
            now == before || now.zip(before).is_some_and(|(now, before)| now <= before)
        };
        match (self, before) {
            (Self::Isolated(now), Self::Isolated(before)) => {
                let same = IsolatedSpec {
                    policy: now.policy.clone(),
                    max_connections: now.max_connections,
                    ..before.clone()
                };
                same == *now
                    && is_not_increased(now.max_connections, before.max_connections)
                    && now.policy.is_at_most_as_permissive_as(&before.policy)
            }
            (Self::Bridge(now), Self::Bridge(before)) => {
                let same = BridgeSpec {
                    antispoof: now.antispoof,
                    isolate_ports: now.isolate_ports,
                    max_connections: now.max_connections,
                    ..before.clone()
                };
                same == *now
                    && is_not_increased(now.max_connections, before.max_connections)
                    && (now.antispoof || !before.antispoof)
                    && (now.isolate_ports || !before.isolate_ports)
            }
            (Self::Cni(_), Self::Cni(_)) => self == before,
            (Self::Isolated(_) | Self::Bridge(_) | Self::Cni(_), _) => false,
        }
    }

    /// Copies from `other` the settings that can change while the VM runs. The addresses of a group are one of them: the group's
    /// reconciler replaces a VM if its address is no longer allowed.
    pub fn apply_live_changes(&mut self, other: &Self) {
        match (self, other) {
            (Self::Isolated(isolated), Self::Isolated(other)) => {
                isolated.policy = other.policy.clone();
                isolated.max_connections = other.max_connections;
            }
            (Self::Bridge(bridge), Self::Bridge(other)) => {
                bridge.antispoof = other.antispoof;
                bridge.isolate_ports = other.isolate_ports;
                bridge.max_connections = other.max_connections;
                bridge.addresses = other.addresses.clone();
            }
            (Self::Cni(cni), Self::Cni(other)) => {
                cni.cni.ips = other.cni.ips.clone();
            }
            (Self::Isolated(_) | Self::Bridge(_) | Self::Cni(_), _) => {}
        }
    }
}

/// The network configuration of a guest, for its VMM, its kernel and the status of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The path of the namespace of the TAP and the VMM; `None` for the host's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The name of the TAP.
    pub tap: String,
    /// The link in the host namespace that forwards the VM's packets: a veth end, or the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_link: Option<String>,
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's address.
    pub ip: Ipv4Addr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Its gateway, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Additional addresses of the guest, with their prefix lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Ipv4Network>,
    /// Additional routes, in the order in which they can be added; a route without a next hop is on-link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<(Ipv4Network, Option<Ipv4Addr>)>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// Name servers; the kernel parameter `ip=` contains the first two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
    /// One sentence for each part of a CNI result that is not passed to the guest, and for each part that the result lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `tap_owner: uid[:gid]`; without a gid, only the user may open the TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct TapOwner {
    /// The user that may attach, `TUNSETOWNER`.
    pub uid: u32,
    /// The group that may attach, `TUNSETGROUP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

impl fmt::Display for TapOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gid {
            None => write!(f, "{}", self.uid),
            Some(gid) => write!(f, "{}:{gid}", self.uid),
        }
    }
}

/// A /30 and its four addresses (RFC 3927 space in isolated mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Block(Ipv4Network);

impl Block {
    /// The prefix length of every block.
    pub const PREFIX_LEN: u8 = 30;

    /// The block that contains `address`.
    pub fn around(address: Ipv4Addr) -> Self {
        let network = Ipv4Addr::from(u32::from(address) & !3);
        Self(Ipv4Network::new(network, Self::PREFIX_LEN).expect("30 is a prefix length"))
    }

    /// The block as a network.
    pub fn network(self) -> Ipv4Network {
        self.0
    }

    /// The first host address: the gateway in the VM's namespace, which answers ARP and ping.
    pub fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The second host address: the VM.
    pub fn guest(self) -> Ipv4Addr {
        self.at(2)
    }

    /// The broadcast address.
    pub fn broadcast(self) -> Ipv4Addr {
        self.at(3)
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + offset)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
