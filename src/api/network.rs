//! The `network:` section, once its values are checked.
//! Not here: reading YAML; address pools.

use std::fmt;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::policy::Policy;

/// Which data path a VM has. Bridge and CNI are refused by [`super::manifest`] until they exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A private namespace, a /30, and nothing but egress through the lists.
    Isolated,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Isolated => "isolated",
        })
    }
}

/// What the data path of a VM is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum NetworkSpec {
    /// See [`Mode::Isolated`].
    Isolated(IsolatedSpec),
}

/// Isolated mode's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolatedSpec {
    /// The /16 to /29 out of 169.254.0.0/16 to take /30s from; none: derived from the group's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Ipv4Network>,
    /// Where the VM may send. The only part that changes live.
    #[serde(flatten)]
    pub policy: Policy,
    /// Who may open the TAP, as host ids.
    #[serde(default)]
    pub tap_owner: TapOwner,
}

impl NetworkSpec {
    /// The mode's word.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Isolated(_) => Mode::Isolated,
        }
    }

    /// The egress policy.
    pub fn policy(&self) -> &Policy {
        match self {
            Self::Isolated(isolated) => &isolated.policy,
        }
    }

    /// Replaces what may change under a running VM.
    pub fn set_policy(&mut self, policy: Policy) {
        match self {
            Self::Isolated(isolated) => isolated.policy = policy,
        }
    }
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
