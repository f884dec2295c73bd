//! The ground: what belongs to the host and to no VM. Our chains, the jumps into them, `ip_forward`, bridges.
//! Not here: anything that is one VM's. The number of rules does not depend on the number of VMs.

mod act;
pub mod apart;
mod bridges;
pub mod limits;
mod observe;
mod plan;
mod refusals;
pub mod rules;

use super::{Conflict, Reconcile};
use crate::host;
use crate::host::iptables::Backend;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;

pub use bridges::BridgeSeen;
pub use plan::{Action, Commit, Desired, Jump, Observed};
pub use refusals::{Refusals, Refused};

/// The ground's hands.
pub struct Ground {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// A socket in it.
    pub netlink: Handle,
    /// Which kernel interface the host's iptables speaks.
    pub backend: Backend,
}

/// Whether the rules that restrict VMs are the ones to be, whatever else is still to do.
pub fn enforces(desired: &Desired, observed: &Observed) -> bool {
    plan::enforces(desired, observed)
}

/// Whether a step, by its message, was one for the rules that restrict VMs.
pub fn restricts(step: &str) -> bool {
    plan::restricts(step)
}

impl Reconcile for Ground {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(self, desired, action).await
    }
}
