//! The steps for a VM's data path, and their messages.
//! Out of scope: which steps are planned.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use crate::api::network::{Block, Mac, TapOwner};
use crate::owner::{Owned, TAP, UPLINK};

/// Where a link is, and where a neighbour entry belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The veth end in the host namespace.
    Host,
    /// `up0`.
    Uplink,
    /// `tap0`.
    Tap,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Write the record.
    WriteRecord,
    /// The same, since it differs: the store has changed, as no other program writes it.
    UpdateRecord,
    /// Create the namespace: settings, label, `lo`, and then its name.
    CreateNetns,
    /// Make it visible to `ip netns`.
    LinkHandle,
    /// Correct the namespace's settings.
    SetSysctls(BTreeMap<String, String>),
    /// Remove a link in the namespace that is not as specified; everything in the namespace is ours.
    DeleteNetnsLink(Side),
    /// Remove the veth.
    DeleteHostLink(Owned<String>),
    /// Create the TAP.
    CreateTap(TapOwner),
    /// Attach the program that filters the guest's frames to the TAP.
    SetTapFilter {
        /// Its digest.
        digest: String,
    },
    /// Create the veth with both ends in their namespaces.
    CreateVeth,
    /// Label the host's end, set its group, and turn IPv6 off on it.
    LabelHostLink,
    /// Remove a link from the bridge or VRF that another program made it a port of.
    ClearMaster(Side),
    /// Set MAC and MTU, bring the link up.
    Configure(Side),
    /// Give a link an address.
    AddAddress(Side, Ipv4Network),
    /// Add a permanent neighbour.
    AddNeighbour(Side, Ipv4Addr, Mac),
    /// Route the block over a link. The link's address implies this route, unless another program has removed it.
    AddBlockRoute(Side, Block),
    /// Route everything over `up0`.
    AddDefaultRoute,
    /// Remove the namespace's name.
    UnlinkHandle,
    /// Remove the namespace.
    DeleteNetns(Owned<PathBuf>),
    /// Remove the VM's run directory.
    RemoveRunDir,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "the host's veth end",
            Self::Uplink => UPLINK,
            Self::Tap => TAP,
        })
    }
}

impl Action {
    /// Whether a link may have another index afterwards, or may be removed.
    pub(super) fn changes_indexes(&self) -> bool {
        match self {
            Self::CreateNetns
            | Self::CreateTap(_)
            | Self::CreateVeth
            | Self::DeleteNetnsLink(_)
            | Self::DeleteHostLink(_)
            | Self::DeleteNetns(_) => true,
            Self::WriteRecord
            | Self::UpdateRecord
            | Self::LinkHandle
            | Self::SetSysctls(_)
            | Self::SetTapFilter { .. }
            | Self::LabelHostLink
            | Self::ClearMaster(_)
            | Self::Configure(_)
            | Self::AddAddress(..)
            | Self::AddNeighbour(..)
            | Self::AddBlockRoute(..)
            | Self::AddDefaultRoute
            | Self::UnlinkHandle
            | Self::RemoveRunDir => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteRecord | Self::UpdateRecord => f.write_str("write the VM's record"),
            Self::CreateNetns => f.write_str("create the namespace"),
            Self::LinkHandle => f.write_str("make the namespace visible to ip netns"),
            Self::SetSysctls(keys) => {
                let keys: Vec<&str> = keys.keys().map(String::as_str).collect();
                write!(f, "set {}", keys.join(", "))
            }
            Self::DeleteNetnsLink(side) => write!(f, "delete the wrong {side}"),
            Self::DeleteHostLink(link) => write!(f, "delete link {}", link.resource()),
            Self::CreateTap(owner) => write!(f, "create {TAP} for uid {owner}"),
            Self::SetTapFilter { .. } if f.alternate() => write!(f, "set the filter on {TAP}"),
            Self::SetTapFilter { digest } => write!(f, "set filter {digest} on {TAP}"),
            Self::CreateVeth => f.write_str("create the veth"),
            Self::LabelHostLink => write!(f, "label {}", Side::Host),
            Self::ClearMaster(side) => {
                write!(f, "detach {side} from its foreign master (nomaster)")
            }
            Self::Configure(side) => write!(f, "configure {side} and bring it up"),
            Self::AddAddress(side, address) => write!(f, "add address {address} to {side}"),
            Self::AddNeighbour(side, ip, _) if f.alternate() => {
                write!(f, "pin neighbour {ip} on {side}")
            }
            Self::AddNeighbour(side, ip, mac) => write!(f, "pin neighbour {ip} {mac} on {side}"),
            Self::AddBlockRoute(side, block) => write!(f, "add the route to {block} over {side}"),
            Self::AddDefaultRoute => write!(f, "add the default route over {UPLINK}"),
            Self::UnlinkHandle => f.write_str("hide the namespace from ip netns"),
            Self::DeleteNetns(path) => write!(f, "delete namespace {}", path.resource().display()),
            Self::RemoveRunDir => f.write_str("remove the VM's run directory"),
        }
    }
}
