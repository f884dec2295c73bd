//! The host network: what belongs to the host and not to a single VM. Our chains, the jumps into them, `ip_forward`, and bridges.
//! Out of scope: anything that belongs to one VM. The number of rules does not depend on the number of VMs.

mod act;
pub mod apart;
mod bridges;
mod compiled;
pub mod drops;
pub mod limits;
mod observe;
mod plan;
mod refusals;
mod rule_input;
pub mod rules;
mod state;
pub mod unmanaged;

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Conflict, OnHost, Reconcile};
use crate::host;
use crate::host::iptables::Backend;
use crate::host::iptables::foreign::ForwardChains;
use crate::host::link::Link;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::host::rule::Ruleset;

pub use refusals::{Refusals, Refused};
pub use rule_input::{BridgeKind, BridgeSubnet, Limits, RuleInput};
pub use state::{Action, BridgeSeen, Commit, Desired, HostDrop, Jump, Observed};

/// The reconciler of the host network.
pub struct HostNetwork {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// A socket in it.
    pub netlink: Handle,
    /// Which kernel interface the host's iptables speaks.
    pub backend: Backend,
    /// How much of the host's tables is read.
    pub scope: Scope,
    /// The foreign chains that forwarded packets pass.
    pub forward_chains: Arc<ForwardChains>,
    /// The bridges that actions were executed for. What depends on them is observed again. `None`: the action concerns all bridges.
    pub touched_bridges: Arc<Mutex<BTreeSet<Option<String>>>>,
}

/// How much of the host's tables is read. Other programs may have tens of thousands of rules there, which change all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them. Jumps to our chains are also searched for in the chains of other programs.
    All,
    /// Our chains and the chains that contain our jumps. If a change is needed there, everything is read first.
    Named,
    /// The same, but never everything: no change is to be made, and the observation must be fast.
    NamedOnly,
}

/// Whether the rules that restrict VMs are as desired, whatever other actions are planned.
pub fn enforces(desired: &Desired, observed: &Observed) -> bool {
    plan::enforces(desired, observed)
}

/// The rules of sliced daemons that apply to packets of our isolated VMs: ours as they are committed, chains and jumps, and those of other
/// daemons as they are in `mangle`.
pub fn compiled(desired: &Desired, observed: &Observed, mangle: &Ruleset) -> Ruleset {
    compiled::ruleset(desired, observed, mangle)
}

/// Whether a link with a bridge's name is a managed bridge.
pub fn is_managed(desired: &Desired, link: &Link) -> bool {
    observe::describe(link).owned(desired, &link.name).is_some()
}

/// Observes the bridges and returns the ranges that the host routes for.
pub async fn routed_ranges(
    host_network: &HostNetwork,
    desired: &Desired,
) -> Result<Vec<drops::RoutedRange>, host::Error> {
    observe::routed_ranges(host_network, desired).await
}

/// Whether a step, given by its message, changes the rules that restrict VMs.
pub fn restricts(step: &str) -> bool {
    plan::restricts(step)
}

impl Reconcile for HostNetwork {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }
}

impl OnHost for HostNetwork {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        {
            let mut touched = self.touched_bridges.lock();
            touched.insert(action.bridge().map(str::to_owned));
        }
        act::act(self, desired, action).await
    }
}
