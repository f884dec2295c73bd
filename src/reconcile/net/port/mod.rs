//! The Net stage in bridge mode: a VM's record, its TAP as a port of a bridge, the bridge's entry for its MAC, the host's for its address.
//! Out of scope: the bridge itself (host network); what may pass; the forwarding switch, which is the TAP's link state (Firewall stage).
//!
//! # Why
//! - The bridge knows the guest's MAC from the start, by an entry that no other port can take away: the first frame to it is not
//!   flooded to the neighbours, and no neighbour gets its frames by sending from its MAC.
//! - So nothing need be learned at a port whose guest may send from its own MAC only, and no frame for unknown others goes out
//!   there. A guest that may send from any MAC (`antispoof: false`) may have a bridge of its own behind it: its port learns and
//!   is flooded.
//! - The host never asks for the guest with ARP: it need not answer yet, and the neighbour table of the host, which all
//!   namespaces share, is not filled by those who do not.
//! - A port has the bridge's MTU and a MAC as high as they come, because a bridge without an MTU or a MAC of its own takes the
//!   ports' lowest: a bridge that somebody else made keeps what it has.

mod act;
mod observe;
mod plan;

use std::sync::atomic::{AtomicBool, Ordering};

use super::found::Found;
use crate::host;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::reconcile::{Conflict, Reconcile};

pub use plan::{Action, BridgeSeen, Desired, Entry, Observed, Remains, Slot, TapSeen};

/// The rung's hands for one run about one VM.
pub struct Port {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// Sockets in it.
    pub netlink: Handle,
    found: Found,
    lacks_record: AtomicBool,
}

impl Port {
    /// Hands for one run.
    pub fn new(home: Netns, netlink: Handle) -> Self {
        Self {
            home,
            netlink,
            found: Found::default(),
            lacks_record: AtomicBool::new(false),
        }
    }

    /// Whether the only failure is that the VM's record could not be written, which does not affect the data path.
    pub fn lacks_record(&self) -> bool {
        self.lacks_record.load(Ordering::Relaxed)
    }
}

impl Reconcile for Port {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    fn is_footing(action: &Action) -> bool {
        matches!(action, Action::CreateTap(_))
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        self.found.forget();
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        let done = act::act(self, desired, action).await;
        if *action == Action::WriteRecord {
            self.lacks_record.store(done.is_err(), Ordering::Relaxed);
        }
        done
    }
}
