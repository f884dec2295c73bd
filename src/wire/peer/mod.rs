//! Requests for VMs on other nodes of the fleet: forwarded to the daemon of the node, with mutual TLS, and received from it.
//! Out of scope: where VMs are ([`Fleet`] is implemented by [`crate::daemon`]); what the requests do.
//!
//! # Who asks
//! A node proves its name by its certificate ([`subject`]) and needs no token. It names the user of a request in a header, for events and
//! for limits; no user of another node has the reserves of root. A request of a node is never forwarded again: there is one hop at most.
//!
//! # What a node may ask
//! The certificate of a node authorises what a node forwards and nothing else ([`mod@permitted`]): requests that name a VM of the fleet, and the
//! events of this node. A VM is named with the uid of its object: another one of the same name is not the one that is meant.
//!
//! | file | content |
//! |---|---|
//! | `client` | the client of requests about all nodes |
//! | `connect` | connections to nodes |
//! | `events` | the events of all nodes |
//! | `failure` | why a request was not answered |
//! | `forward` | sends requests and returns their responses |
//! | `incoming` | requests of other nodes |
//! | `permitted` | which requests the certificate of a node authorises |
//! | `registry` | open connections, which end when a certificate is revoked |
//! | `routes` | which requests name a VM |
//! | `subject` | the node of a certificate |
//! | `tls` | the certificates of the fleet |
//! | `verifier` | whether a server is the node that is expected |

mod client;
mod connect;
pub(super) mod events;
mod failure;
pub(super) mod forward;
pub(super) mod incoming;
mod permitted;
mod registry;
pub(super) mod routes;
mod subject;
mod tls;
mod verifier;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::agents::Agents;
use crate::api::meta::{Name, Uid};

pub(super) use permitted::permitted;
pub use registry::{PeerConnection, Registry};
pub use tls::{Invalid, PeerTls, Pem, Refused, Role, ServerCertificates};

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name, which its certificate must have.
    pub node: Name,
    /// The URL of its API, as it reports it; `None`: it has none.
    pub url: Option<String>,
    /// The version of its daemon; empty if it is unknown.
    pub version: String,
}

/// Where a VM is that is not on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// On a node, with the uid of its object in the fleet.
    At(Place, Uid),
    /// On no node yet: the reason.
    Pending(Option<String>),
}

/// What the daemon knows of the fleet.
pub trait Fleet: Send + Sync + 'static {
    /// Where a VM of the fleet is; `None` if it is on this node, or if there is none.
    fn whereabouts(&self, vm: &Name) -> Option<Whereabouts>;

    /// The uid of the object in the fleet of which this node has a VM with this name; `None` if it has none, or one of its own.
    fn uid_of(&self, vm: &Name) -> Option<Uid>;

    /// All other nodes.
    fn others(&self) -> Vec<Place>;

    /// Whether requests of a node are refused, since an administrator has said that it is gone.
    fn is_gone(&self, node: &Name) -> bool;

    /// The current certificates; `None` without `fleet:`, or if they cannot be read.
    fn tls(&self) -> Option<Arc<PeerTls>>;

    /// The connections to and from other nodes.
    fn connections(&self) -> &Registry;
}

/// What the requests of one listener need.
pub(super) struct Peers {
    pub(super) fleet: Option<Arc<dyn Fleet>>,
    pub(super) agents: Arc<Agents>,
    pub(super) stop: CancellationToken,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

/// The header of a forwarded request: the name of the node that has forwarded it.
pub(super) const FORWARDED_BY: &str = "slice-forwarded-by";
/// The header of a forwarded request: its user, for events and limits.
pub(super) const FORWARDED_USER: &str = "slice-forwarded-user";
/// The header of a forwarded request that names a VM: the uid of the object of the VM in the fleet.
pub(super) const FORWARDED_VM: &str = "slice-forwarded-vm";
/// The header of each response to a node: the name of the node that answers.
pub(super) const ANSWERED_BY: &str = "slice-node";
