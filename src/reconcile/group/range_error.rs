//! Why a group has no range.
//! Out of scope: the choice of a range (`range`, `subnet`).

use ipnetwork::Ipv4Network;

use super::claim::Claim;
use crate::api::meta::Name;

/// The reason why a group has no range.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    /// Another daemon on this host has claimed it.
    #[error(
        "{claim} is claimed by another sliced on this host (state directory {state_dir}{}); choose another `{}`",
        if *.running { "" } else { ", which does not run now" },
        .claim.field()
    )]
    Claimed {
        /// The requested claim.
        claim: Claim,
        /// State directory of the owner.
        state_dir: String,
        /// Whether that daemon runs.
        running: bool,
    },
    /// It overlaps the range of another group.
    #[error("range {range} overlaps {theirs} of hostgroup/{other}; choose another `range`")]
    Taken {
        /// The requested range.
        range: Ipv4Network,
        /// The network that it overlaps.
        theirs: Ipv4Network,
        /// The other group.
        other: Name,
    },
    /// It overlaps a subnet of the host.
    #[error(
        "the subnet {range} of the gateway overlaps {theirs} of the host's link {link}; choose another `gateway`"
    )]
    OfTheHost {
        /// The requested range.
        range: Ipv4Network,
        /// The network that it overlaps.
        theirs: Ipv4Network,
        /// The link with this subnet.
        link: String,
    },
    /// Another group on the same bridge has another gateway.
    #[error(
        "hostgroup/{other} has {theirs} as the gateway of bridge {bridge}; use the same `gateway`, or another `bridge`"
    )]
    OtherGateway {
        /// The bridge of both groups.
        bridge: String,
        /// The gateway of the other group.
        theirs: Ipv4Network,
        /// The other group.
        other: Name,
    },
    /// Every range that could be derived is in use.
    #[error("every range that could be derived from the group's name is in use; specify a `range`")]
    NoneLeft,
}
