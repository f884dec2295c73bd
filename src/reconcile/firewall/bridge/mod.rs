//! The Firewall stage in bridge mode: the filter at a VM's TAP, read back, and then its forwarding switch, which is the TAP's link state.
//! Out of scope: the TAP as the bridge's port (the Net stage); what the filter lets pass ([`super::antispoof`]).

mod act;
mod observe;
mod plan;

use crate::host;
use crate::host::netlink::Handle;
use crate::reconcile::{Conflict, OnHost, Reconcile};

pub(crate) use observe::is_ours;
pub use plan::{Action, AllowedFrames, Desired, Filter, Observed, TapSeen};

/// The reconciler of the Firewall stage in bridge mode.
pub struct BridgeFirewall {
    /// Sockets in the host namespace.
    pub netlink: Handle,
}

impl Reconcile for BridgeFirewall {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    fn unbuilt(desired: &Desired) -> Option<Observed> {
        Some(plan::unbuilt(desired))
    }

    fn predict(_: &Desired, observed: &Observed, plan: &[Action]) -> Option<Observed> {
        Some(plan::predict(observed, plan))
    }
}

impl OnHost for BridgeFirewall {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(self, desired, action).await
    }
}
