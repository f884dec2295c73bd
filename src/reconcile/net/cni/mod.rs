//! The Net stage in CNI mode: a VM's record and namespace, the plugins' ADD, CHECK and DEL, and the TAP.
//! Out of scope: how plugins are run (`cni`); the redirect between their interface and the TAP (the Firewall stage).
//!
//! # Why
//! The network's configuration is read here and is not part of [`Desired`]: it is a file that users change, so it is observed. A VM that is
//! attached does not need it any more, even if it is removed or invalid.
//!
//! Before the first plugin runs, an [`Intent`] is written next to the VM's record. With the intent and the cache's record, each observation
//! distinguishes a complete ADD from an interrupted one, and DEL uses the configuration and arguments of ADD, not those in the file now.

mod act;
mod announce;
mod detach;
mod guest;
mod intent;
mod observe;
mod plan;
mod request;
mod residue;
mod routes;
mod state;
mod sweep;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{Conflict, OnHost, Reconcile};
use super::place::NetnsSession;
use crate::api::event::EventReason;
use crate::cni::{self, Network, RepairPermit, Runtime};
use crate::host;

pub use announce::announce;
pub use plan::{Action, DelInput};
pub use residue::masquerade_chain;
pub use state::{
    Added, AddedSeen, Baseline, ConflistSeen, DataPath, Desired, Eth, GuestIdentity, Inside,
    Intent, IntentSeen, Observed, Tap,
};
pub use sweep::{Swept, sweep};

/// The name of the plugins' interface in the namespace.
pub const IFNAME: &str = "eth0";

/// The file in a VM's run directory that holds the [`Intent`].
pub const INTENT: &str = "cni.json";

/// The plugin that makes TAPs, with the name and owner in its arguments.
const TAP_PLUGIN: &str = "tc-redirect-tap";

/// The reconciler of the Net stage in CNI mode, for one run and one VM.
pub struct CniNet {
    runtime: Runtime,
    session: NetnsSession,
    /// CHECK has to be called in this run, and has not been called yet.
    check_pending: AtomicBool,
    /// An ADD has succeeded in this run.
    added: AtomicBool,
    /// The guest is being attached again. The turn ends with this run's Firewall stage, which reconnects the guest.
    repair: Mutex<Option<RepairPermit>>,
    on_notice: Option<NoticeHandler>,
}

/// Receives each notice at once, before the next step is executed.
pub type NoticeHandler = Arc<dyn Fn(Notice) + Send + Sync>;

/// What is reported about an attachment in addition to the executed steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The reason of the event.
    pub reason: EventReason,
    /// The message of the event; contains the messages of the plugins.
    pub message: String,
}

/// Whether a run calls CHECK, which starts every plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    /// At the first observation that finds a completed ADD.
    Once,
    /// The plugins are not called to observe.
    Never,
}

impl CniNet {
    /// Creates the reconciler for one run.
    pub fn new(runtime: Runtime, checking: CheckMode) -> Self {
        Self {
            runtime,
            session: NetnsSession::default(),
            check_pending: AtomicBool::new(checking == CheckMode::Once),
            added: AtomicBool::new(false),
            repair: Mutex::default(),
            on_notice: None,
        }
    }

    /// Sets the function that receives notices.
    #[must_use]
    pub fn with_notices(self, on_notice: NoticeHandler) -> Self {
        Self {
            on_notice: Some(on_notice),
            ..self
        }
    }

    /// An ADD has succeeded in this run, so CHECK should be called soon to get the [`Baseline`].
    pub fn has_added(&self) -> bool {
        self.added.load(Ordering::Relaxed)
    }

    /// Waits until this VM's attachment may be repaired.
    async fn await_repair(&self) {
        let repair_slot = || self.repair.lock();
        if repair_slot().is_some() {
            return;
        }
        let turn = self.runtime.repair_permit().await;
        *repair_slot() = turn;
    }

    fn notify(&self, reason: EventReason, message: String) {
        tracing::debug!(%reason, message);
        if let Some(on_notice) = &self.on_notice {
            on_notice(Notice { reason, message });
        }
    }
}

impl Reconcile for CniNet {
    type Desired = Desired;
    type Observed = Observed;
    type Action = Action;

    fn plan(desired: &Desired, observed: &Observed) -> Result<Vec<Action>, Conflict> {
        plan::plan(desired, observed)
    }

    fn is_repair(action: &Action) -> bool {
        *action != Action::UpdateRecord
    }

    fn is_prerequisite(action: &Action) -> bool {
        matches!(
            action,
            Action::CreateNetns | Action::Attach | Action::CreateTap(..)
        )
    }
}

impl OnHost for CniNet {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        observe::observe(self, desired).await
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        act::act(self, desired, action).await
    }
}

/// Whether a plugin of the chain makes the TAP.
fn has_tap_plugin(network: &Network) -> bool {
    let mut plugins = network.plugins.iter();
    plugins.any(|plugin| plugin.name == TAP_PLUGIN)
}

/// Converts an error of the `cni` module to one of the `host` module.
fn host_error(operation: &'static str, network: &str, error: cni::Error) -> host::Error {
    host::Error::other(operation, format!("CNI network `{network}`"), error)
}

/// Returns the error for a network that is not found, or for a configuration file that cannot be used.
fn not_found(network: &str, error: cni::Error) -> host::Error {
    match error {
        cni::Error::NetworkNotFound { .. } => host_error("find", network, error),
        error => host_error("use", network, error),
    }
}

/// Whether a step fails in the same way until the network's configuration or the request changes.
pub fn waits_for_a_change(error: &host::Error) -> bool {
    let cause = error.source.get_ref();
    let cause = cause.and_then(|cause| cause.downcast_ref::<cni::Error>());
    cause.is_some_and(cni::Error::is_permanent)
}

/// The error and its cause in one line.
fn one_line(error: &cni::Error) -> String {
    match std::error::Error::source(error) {
        None => error.to_string(),
        Some(cause) => format!("{error}: {cause}"),
    }
}
