//! The `network:` section, once its values are checked.
//! Out of scope: reading YAML; address pools.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::cni::CniOptions;
use super::host_group::MAX_COUNT;
use super::policy::Policy;

/// Which data path a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A private namespace, a /30, and nothing but egress through the lists.
    Isolated,
    /// A port of a bridge that the host routes for.
    Bridge,
    /// Whatever a chain of CNI plugins makes.
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

/// What the data path of a VM is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolatedSpec {
    /// The /16 to /29 out of 169.254.0.0/16 to take /30s from; none: derived from the group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Ipv4Network>,
    /// How many connections the VM may have at a time; none: a share of the host's table. Changes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Where the VM may send. Changes live, too.
    #[serde(flatten)]
    pub policy: Policy,
    /// Who may open the TAP, as host ids.
    #[serde(default)]
    pub tap_owner: TapOwner,
}

/// Bridge mode's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeSpec {
    /// The bridge's name; one that is there without our label is used and left as it is.
    pub bridge: String,
    /// What the TAPs' names start with; the VM's index less one follows.
    pub tap_prefix: String,
    /// The host's address on the bridge and the subnet around it; none: derived from the group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Network>,
    /// Which addresses the VMs get.
    #[serde(default, skip_serializing_if = "Addresses::is_any")]
    pub addresses: Addresses,
    /// A VM may send with its own MAC and address only, and is no DHCP server and no router.
    pub antispoof: bool,
    /// VMs of the group do not reach each other over the bridge.
    pub isolate_ports: bool,
    /// How many connections the VM may have at a time; none: a share of the host's table. Changes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Who may open the TAPs, as host ids.
    #[serde(default)]
    pub tap_owner: TapOwner,
}

impl BridgeSpec {
    /// The TAP of the VM with this index, from 1: the prefix and the index less one; of a VM made on demand, the prefix, `x` and
    /// a number of its own.
    pub fn tap(&self, index: u32) -> String {
        match index.checked_sub(MAX_COUNT + 1) {
            None => format!("{}{}", self.tap_prefix, index.saturating_sub(1)),
            Some(number) => format!("{}x{number}", self.tap_prefix),
        }
    }
}

/// Which addresses of a bridge's subnet the VMs of a group get.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addresses {
    /// Any that is free.
    #[default]
    Any,
    /// Any that is free from the first to the last.
    Range(Ipv4Addr, Ipv4Addr),
    /// These, in the order of the VMs; those made on demand get any that is left over.
    Listed(Vec<Ipv4Addr>),
}

impl Addresses {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }

    /// Whether the VM with this index, from 1, may have this address.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniSpec {
    /// The network configuration list that makes it.
    pub network_name: String,
    /// Who may open the TAP, as host ids.
    #[serde(default)]
    pub tap_owner: TapOwner,
    /// What the VM requests from the plugins.
    #[serde(default, skip_serializing_if = "CniOptions::is_default")]
    pub cni: CniOptions,
}

impl NetworkSpec {
    /// The mode's word.
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

    /// What is allowed but surely not meant.
    pub fn warnings(&self) -> Vec<String> {
        self.policy().map(Policy::warnings).unwrap_or_default()
    }

    /// How many connections a VM may have at a time, where the group says so.
    pub fn max_connections(&self) -> Option<u32> {
        match self {
            Self::Isolated(isolated) => isolated.max_connections,
            Self::Bridge(bridge) => bridge.max_connections,
            Self::Cni(_) => None,
        }
    }

    /// Who may open the TAP.
    pub fn tap_owner(&self) -> TapOwner {
        match self {
            Self::Isolated(isolated) => isolated.tap_owner,
            Self::Bridge(bridge) => bridge.tap_owner,
            Self::Cni(cni) => cni.tap_owner,
        }
    }

    /// Whether a running VM can send nothing new when its network changes from `before` to this one. A sufficient test: the answer
    /// `false` does not prove that it can.
    pub fn is_no_looser_than(&self, before: &Self) -> bool {
        let fewer = |now: Option<u32>, before: Option<u32>| {
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
                    && fewer(now.max_connections, before.max_connections)
                    && now.policy.is_no_looser_than(&before.policy)
            }
            (Self::Bridge(now), Self::Bridge(before)) => {
                let same = BridgeSpec {
                    antispoof: now.antispoof,
                    isolate_ports: now.isolate_ports,
                    max_connections: now.max_connections,
                    ..before.clone()
                };
                same == *now
                    && fewer(now.max_connections, before.max_connections)
                    && (now.antispoof || !before.antispoof)
                    && (now.isolate_ports || !before.isolate_ports)
            }
            (Self::Cni(_), Self::Cni(_)) => self == before,
            (Self::Isolated(_) | Self::Bridge(_) | Self::Cni(_), _) => false,
        }
    }

    /// Takes over from `other` all that may change under a running VM. Where a group's addresses come from is such a thing,
    /// too: a VM whose own address is no longer among them is replaced for that (see the group's reconciler).
    pub fn change_live_to(&mut self, other: &Self) {
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

/// How a guest is connected: what its VMM and its kernel are told, and what we answer of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The namespace that the TAP and the VMM are in; none: the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// The TAP.
    pub tap: String,
    /// The link of the host namespace that the VM's packets pass: a veth end, or the bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_link: Option<String>,
    /// The guest's Ethernet address.
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
    /// Bytes.
    pub mtu: u32,
    /// Name servers; the kernel's `ip=` carries the first two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
    /// One sentence for each part of a CNI result that is not passed to the guest, and for each part that the result lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `tap_owner: uid[:gid]`; a TAP without a gid may be opened by its uid alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// An Ethernet address, written `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> = text
            .split(':')
            .map(|part| {
                u8::from_str_radix(part, 16)
                    .ok()
                    .filter(|_| part.len() == 2)
            })
            .collect();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| format!("`{text}` is no Ethernet address"))
    }
}

/// A /30 and its four addresses (RFC 3927 space in isolated mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Block(Ipv4Network);

impl Block {
    /// The prefix length of every block.
    pub const PREFIX_LEN: u8 = 30;

    /// The block that holds `address`.
    pub fn around(address: Ipv4Addr) -> Self {
        let network = Ipv4Addr::from(u32::from(address) & !3);
        Self(Ipv4Network::new(network, Self::PREFIX_LEN).expect("30 is a prefix length"))
    }

    /// The block as a network.
    pub fn network(self) -> Ipv4Network {
        self.0
    }

    /// `.1`: answers ARP and ping in the VM's namespace.
    pub fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    /// `.2`: the VM.
    pub fn guest(self) -> Ipv4Addr {
        self.at(2)
    }

    /// `.3`.
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
