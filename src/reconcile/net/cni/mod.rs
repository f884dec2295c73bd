//! The Net stage in CNI mode: a VM's record and namespace, the plugins' ADD, CHECK and DEL, and the TAP.
//! Out of scope: how plugins are run (`cni`); the redirect between their interface and the TAP (the Firewall stage).
//!
//! # Why
//! The network's configuration is looked for here and not given: it is a file that people change, so it is something to be
//! seen, and a VM that was attached needs it no more, be it gone or broken.
//!
//! Before the first plugin runs, an [`Intent`] is written beside the VM's record. With it and the cache's record, every look can
//! tell a whole ADD from one that was cut short, and knows what to DEL by: what ADD was given, not what the file says now.

mod act;
mod guest;
mod observe;
mod plan;
mod request;
mod routes;
mod state;
mod sweep;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicBool;

use super::super::{Conflict, Reconcile};
use super::place::Door;
use crate::cni::{self, Network, Runtime};
use crate::host;

pub use plan::{Action, Basis};
pub use state::{
    Added, AddedSeen, ConflistSeen, Desired, Eth, Inside, Intent, IntentSeen, Keep, Observed, Tap,
    Want,
};
pub use sweep::{Swept, sweep};

/// What the plugins call their interface inside.
pub const IFNAME: &str = "eth0";

/// The file in a VM's run directory that holds the [`Intent`].
pub const INTENT: &str = "cni.json";

/// The plugin that makes TAPs, and is told by arguments how.
const TAP_PLUGIN: &str = "tc-redirect-tap";

/// The rung's hands for one run about one VM.
pub struct Attach {
    runtime: Runtime,
    door: Door,
    /// The plugins are still to be asked whether all is well.
    check: AtomicBool,
}

/// Whether a run asks the plugins if all is well (CHECK), which starts every one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checking {
    /// At its first look that finds an ADD done before.
    Once,
    /// It looks for itself only.
    Never,
}

impl Attach {
    /// Hands for one run.
    pub fn new(runtime: Runtime, checking: Checking) -> Self {
        Self {
            runtime,
            door: Door::default(),
            check: AtomicBool::new(checking == Checking::Once),
        }
    }
}

impl Reconcile for Attach {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    fn is_footing(action: &Action) -> bool {
        matches!(
            action,
            Action::CreateNetns | Action::Attach | Action::CreateTap(..)
        )
    }

    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(self, desired, action).await
    }
}

/// A plugin of the chain makes the TAP.
fn tap_plugin(network: &Network) -> bool {
    let mut plugins = network.plugins.iter();
    plugins.any(|plugin| plugin.name == TAP_PLUGIN)
}

/// The plugins' world in the host's words.
fn fault(doing: &'static str, network: &str, error: cni::Error) -> host::Error {
    host::Error::other(doing, format!("CNI network `{network}`"), error)
}

/// Where a network could not be found, be it that its file cannot be used.
fn not_found(network: &str, error: cni::Error) -> host::Error {
    match error {
        cni::Error::NoSuchNetwork { .. } => fault("find", network, error),
        error => fault("use", network, error),
    }
}

/// Whether a step fails in the same way until somebody changes the network's configuration, or what is asked of it.
pub fn waits_for_a_change(error: &host::Error) -> bool {
    let cause = error.source.get_ref();
    let cause = cause.and_then(|cause| cause.downcast_ref::<cni::Error>());
    cause.is_some_and(cni::Error::waits_for_a_change)
}

/// With its cause.
fn one_line(error: &cni::Error) -> String {
    match std::error::Error::source(error) {
        None => error.to_string(),
        Some(cause) => format!("{error}: {cause}"),
    }
}
