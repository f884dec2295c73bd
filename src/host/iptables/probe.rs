//! A packet, and the chains that it is evaluated in.
//! Out of scope: the evaluation (`walk`, `machine`), which chains exist (`foreign`).

use std::net::Ipv4Addr;

/// A forwarded packet of a VM, with the properties that rules match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The input link.
    pub in_if: Link,
    /// The output link.
    pub out_if: Link,
    /// Its source.
    pub src: Ipv4Addr,
    /// Its destination.
    pub dst: Ipv4Addr,
    /// It is a reply in an established connection, not the first packet.
    pub is_reply: bool,
    /// A CNI plugin connects the VM: no rule of sliced in the iptables chain accepts its packets.
    pub uses_cni: bool,
}

/// A link, as rules match it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index; `None`: an example for links that are created and deleted.
    pub index: Option<u32>,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseChain {
    /// `ip` or `inet`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl BaseChain {
    /// The chain FORWARD of `filter` that iptables-nft writes to.
    pub(super) fn iptables_forward() -> Self {
        Self {
            family: "ip".to_owned(),
            table: "filter".to_owned(),
            chain: "FORWARD".to_owned(),
        }
    }

    /// Whether this is the chain FORWARD of iptables-nft.
    pub fn is_iptables_forward(&self) -> bool {
        *self == Self::iptables_forward()
    }
}

impl std::fmt::Display for BaseChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}
