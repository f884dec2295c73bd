//! The Net stage in bridge mode: a VM's record, its TAP on a bridge, forwarding and neighbour entries.
//! Out of scope: the bridge itself (host network); the filter, and the forwarding switch, which is the TAP's link state (Firewall stage).
//!
//! # Why
//! - The bridge has a forwarding entry for the guest's MAC from the start, which no other port can take over: the first frame to it is not
//!   flooded to the other ports, and no other guest gets its frames by sending from its MAC.
//! - So learning is off at a port with a guest that may send from its own MAC only, and frames to unknown destinations are not flooded to it. A
//!   guest that may send from any MAC (`antispoof: false`) may contain a bridge of its own: its port learns and is flooded.
//! - The host never sends ARP requests for the guest: the guest may be unable to answer yet, and guests that do not answer do not fill the
//!   host's neighbour table, which all namespaces share.
//! - A port has the bridge's MTU and the highest possible MAC, because a bridge without an MTU or a MAC of its own takes the lowest of its
//!   ports: an unmanaged bridge keeps its values.

mod act;
mod observe;
mod plan;

use std::sync::atomic::{AtomicBool, Ordering};

use super::found::LinkIndexes;
use crate::host;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::reconcile::{Conflict, OnHost, Reconcile};

pub use plan::{
    Action, BridgeSeen, Desired, Entry, Location, Observed, Slot, TapSeen, not_a_bridge,
};

/// The reconciler of the Net stage in bridge mode, for one run and one VM.
pub struct BridgeNet {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// Sockets in it.
    pub netlink: Handle,
    link_indexes: LinkIndexes,
    lacks_record: AtomicBool,
}

impl BridgeNet {
    /// Creates the reconciler for one run.
    pub fn new(home: Netns, netlink: Handle) -> Self {
        Self {
            home,
            netlink,
            link_indexes: LinkIndexes::default(),
            lacks_record: AtomicBool::new(false),
        }
    }

    /// Whether the only failure is that the VM's record could not be written, which does not affect the data path.
    pub fn lacks_record(&self) -> bool {
        self.lacks_record.load(Ordering::Relaxed)
    }
}

impl Reconcile for BridgeNet {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    fn is_repair(action: &Action) -> bool {
        *action != Action::UpdateRecord
    }

    fn unbuilt(desired: &Desired) -> Option<Observed> {
        plan::unbuilt(desired)
    }

    fn is_prerequisite(action: &Action) -> bool {
        matches!(action, Action::CreateTap(_))
    }
}

impl OnHost for BridgeNet {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        self.link_indexes.clear();
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        let result = act::act(self, desired, action).await;
        if matches!(action, Action::WriteRecord | Action::UpdateRecord) {
            self.lacks_record.store(result.is_err(), Ordering::Relaxed);
        }
        result
    }
}
