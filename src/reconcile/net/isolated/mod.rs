//! The Net stage: a VM's record, namespace, TAP, veth, addresses, neighbours and routes.
//! Out of scope: rules and the forwarding switch (the Firewall stage); which block a VM has (the Lease stage).

mod act;
mod action;
pub mod observe;
mod plan;

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::found::LinkIndexes;
use super::place::NetnsSession;
use crate::host;
use crate::host::netlink::Handle;
use crate::host::netns::Netns;
use crate::reconcile::{Conflict, OnHost, Reconcile};

pub use action::{Action, Side};
pub use plan::{Desired, HostLink, Inside, Observed, Slot, TapSeen, Uplink};

/// The reconciler of the Net stage in isolated mode, for one run and one VM.
pub struct IsolatedNet {
    /// The namespace that the daemon was started in.
    pub home: Netns,
    /// Sockets in it.
    pub netlink: Handle,
    session: NetnsSession,
    link_indexes: LinkIndexes,
    last_observation: Mutex<Option<Observed>>,
    created_netns: AtomicBool,
    lacks_record: AtomicBool,
}

impl IsolatedNet {
    /// Creates the reconciler for one run.
    pub fn new(home: Netns, netlink: Handle) -> Self {
        Self {
            home,
            netlink,
            session: NetnsSession::default(),
            link_indexes: LinkIndexes::default(),
            last_observation: Mutex::new(None),
            created_netns: AtomicBool::new(false),
            lacks_record: AtomicBool::new(false),
        }
    }

    /// Whether a namespace was created in this run. What was known of an earlier one is then obsolete.
    pub fn created_netns(&self) -> bool {
        self.created_netns.load(Ordering::Relaxed)
    }

    /// Whether the only failure is that the VM's record could not be written, which does not affect the data path.
    pub fn lacks_record(&self) -> bool {
        self.lacks_record.load(Ordering::Relaxed)
    }

    fn last_observation(&self) -> parking_lot::MutexGuard<'_, Option<Observed>> {
        self.last_observation.lock()
    }
}

impl Reconcile for IsolatedNet {
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
            Action::CreateNetns | Action::CreateTap(_) | Action::CreateVeth
        )
    }
}

impl OnHost for IsolatedNet {
    async fn observe(&self, desired: &Desired) -> Result<Observed, host::Error> {
        let seen = self.last_observation().take();
        let seen = match seen {
            Some(seen) => observe::with_current_record(desired, seen)?,
            None => {
                self.link_indexes.clear();
                observe::observe(self, desired).await?
            }
        };
        *self.last_observation() = Some(seen.clone());
        Ok(seen)
    }

    async fn act(&self, desired: &Desired, action: &Action) -> Result<(), host::Error> {
        // A record is a file and no kernel object: the rest of the last observation is still valid. Every change of a policy writes a
        // record, so this halves the cost of such a change.
        let is_record = matches!(action, Action::WriteRecord | Action::UpdateRecord);
        if !is_record {
            self.last_observation().take();
        }
        if action.changes_indexes() {
            self.link_indexes.clear();
        }
        if *action == Action::CreateNetns {
            self.created_netns.store(true, Ordering::Relaxed);
        }
        let result = act::act(self, desired, action).await;
        if is_record {
            self.lacks_record.store(result.is_err(), Ordering::Relaxed);
        }
        result
    }
}
