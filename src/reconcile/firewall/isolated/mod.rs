//! The Firewall stage: a namespace's rules, read back, and then its forwarding switch (`ip_forward`).
//! Out of scope: the host's own rules (host network).

mod act;
mod observe;
mod plan;
pub mod rules;

use crate::host;
use crate::host::iptables::Backend;
use crate::host::netns::Netns;
use crate::reconcile::{Conflict, OnHost, Program, Reconcile};

pub use plan::{Action, Desired, Observed, Rules};

/// The reconciler of the Firewall stage in isolated mode.
pub struct IsolatedFirewall {
    /// Which kernel interface the host's iptables speaks.
    pub backend: Backend,
    /// The host's own namespace, which also tracks the VM's flows.
    pub home: Netns,
}

impl Reconcile for IsolatedFirewall {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        Ok(plan::plan(desired, observed))
    }

    fn unbuilt(_: &Desired) -> Option<Observed> {
        Some(plan::unbuilt())
    }

    fn predict(desired: &Desired, observed: &Observed, plan: &[Action]) -> Option<Observed> {
        Some(plan::predict(desired, observed, plan))
    }
}

impl OnHost for IsolatedFirewall {
    fn program(&self, action: &Action) -> Option<Program> {
        match action {
            Action::CommitRules { .. } => Some(Program {
                name: "iptables-restore",
                deadline: self.backend.timeout,
            }),
            Action::DisableForwarding
            | Action::EnableForwarding
            | Action::BlockIpv6
            | Action::DeleteFlows(_) => None,
        }
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(self, desired, action).await
    }
}
