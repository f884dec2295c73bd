//! `Lease`: which /30 a VM's name has. It outlives the VM's uid, so that a replaced VM keeps its address.
//! Not here: who gets which.

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::meta::{Name, Timestamp};
use super::network::Block;

/// One leased block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The VM's name.
    pub name: Name,
    /// The VM's group.
    pub group: Name,
    /// The pool that the block was taken from.
    pub pool: Ipv4Network,
    /// Network, gateway, VM, broadcast.
    pub block: Block,
    /// When it was taken.
    pub since: Timestamp,
}
