//! The scheduler as it runs: one of the control nodes is elected, plans for each change, and writes what is planned.
//! Out of scope: the decisions ([`super::schedule`]), and the connection ([`super::link`]).
//!
//! # Why two schedulers write nothing at once
//! Each transaction compares the revision of the election key with that of the leader's own: it has no effect after another node was elected.
//! In addition a leader stops planning when its lease was not confirmed for [`CONFIRMED_WITHIN`], which is shorter than the lease.
//!
//! # A write with an unknown outcome
//! It may be applied much later: a node may have returned by then and may have been lost again, so that the comparisons of a replacement hold
//! although the time of the absence does not. So the leader writes the election key again, which changes the revision that the write
//! compares, before it plans again: from then on the write has no effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::contact::Boottime;
use super::kv;
use super::kv::LeaseId;
use super::link::{Link, boottime};
use super::schedule::step::{Action, Blocked};
use crate::api::meta::Timestamp;

mod absence;
mod election;
mod looks;
mod planner;
mod transaction;
mod view;

/// The time to live of the lease of the leader.
pub const LEASE_TTL: Duration = Duration::from_secs(15);

/// How often the leader renews its lease.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(5);

/// How long a leader plans after the sending of the last renewal that was confirmed.
pub const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);

/// The scheduler of this node.
pub struct Control {
    link: Arc<Link>,
    is_enabled: bool,
    state: Mutex<State>,
    /// Changes with the term.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    term: Option<Term>,
    election_error: Option<String>,
    planner_error: Option<String>,
    not_planned: Option<String>,
    left_out: Option<String>,
    blocked: Vec<Blocked>,
    last_plan: Option<PlanSummary>,
    sent: Sent,
}

/// The time in which this node leads.
#[derive(Clone, Copy, Debug)]
struct Term {
    /// The revision at which it was elected.
    create_revision: u64,
    /// The revision at which it has written the election key last.
    revision: u64,
    lease: LeaseId,
    /// When the last confirmed renewal was sent.
    confirmed: Boottime,
}

/// The state of the scheduler, for status.
#[derive(Clone, Debug, Default)]
pub struct ControlStatus {
    /// This node leads, and has confirmed that recently.
    pub is_leader: bool,
    /// The node that leads, as it was last seen.
    pub leader: Option<String>,
    /// Why the election or the last transaction has failed, a sentence.
    pub last_error: Option<String>,
    /// Why the leader plans nothing, a sentence.
    pub not_planned: Option<String>,
    /// Which nodes the leader leaves out, and why, a sentence.
    pub left_out: Option<String>,
    /// The VMs that stay where they are although they should not.
    pub blocked: Vec<Blocked>,
    /// The last plan that was made.
    pub last_plan: Option<PlanSummary>,
    /// What was sent since the daemon started.
    pub sent: Sent,
}

/// A plan, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// When it was made.
    pub at: Timestamp,
    /// How long that took.
    pub took: Duration,
    /// The number of writes by reason.
    pub steps: BTreeMap<Action, usize>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Transactions of plans.
    pub transactions: u64,
    /// Those of which a comparison did not hold.
    pub conflicts: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// Why an attempt has failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Etcd(#[from] kv::Error),
    #[error("{0}")]
    Other(String),
}

impl Control {
    /// A scheduler. It runs only if this node is a control node (`control: true` in the settings).
    pub fn new(link: Arc<Link>, is_enabled: bool) -> Arc<Self> {
        Arc::new(Self {
            link,
            is_enabled,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Takes part in the election and plans while it leads, until `stop`; then it resigns.
    pub async fn run(&self, stop: CancellationToken) {
        if !self.is_enabled {
            return;
        }
        let work = async {
            tokio::join!(self.elections(), self.plans());
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
        self.resign().await;
    }

    /// The state, for status.
    pub fn status(&self) -> ControlStatus {
        let leader = self.link.read(|mirror, _| {
            let election = mirror.election.as_ref();
            election.map(|stored| stored.value.node.clone())
        });
        let is_leader = self.leading().is_some();
        let state = self.state.lock();
        let error = state.election_error.as_ref();
        ControlStatus {
            is_leader,
            leader,
            last_error: error.or(state.planner_error.as_ref()).cloned(),
            not_planned: state.not_planned.clone(),
            left_out: state.left_out.clone(),
            blocked: state.blocked.clone(),
            last_plan: state.last_plan.clone(),
            sent: state.sent,
        }
    }

    /// The term, while this node leads and has confirmed that recently.
    fn leading(&self) -> Option<Term> {
        let now = boottime();
        let term = self.state.lock().term;
        term.filter(|term| now.since(term.confirmed) < CONFIRMED_WITHIN)
    }

    /// The term, while this node may also act on the objects that it has listed.
    fn planning(&self) -> Option<Term> {
        let may_act = self.link.read(|_, contact| contact.may_act(boottime()));
        self.leading().filter(|_| may_act)
    }

    fn set_term(&self, term: Option<Term>) {
        self.state.lock().term = term;
        self.notify();
    }

    fn notify(&self) {
        self.changed
            .send_modify(|number| *number = number.wrapping_add(1));
    }
}

/// Remembers an error for status, and logs it when it is another one.
fn remember(slot: &mut Option<String>, what: &str, failure: Option<&Failure>) {
    match failure {
        Some(failure) => {
            // Texts differ in endpoints and times.
            if slot.is_none() {
                tracing::warn!("{what}: {failure}");
            }
            *slot = Some(format!("{what}: {failure}"));
        }
        None => {
            if slot.take().is_some() {
                tracing::info!("{what}: solved");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The daemon runs both as tasks.
    #[allow(dead_code, reason = "it is compiled")]
    fn tasks_can_run_on_any_thread(control: &Control, link: &Link) {
        fn is_send<T: Send>(_: T) {}
        is_send(control.run(CancellationToken::new()));
        let store = |_| std::future::ready(Ok(()));
        is_send(link.run(store, CancellationToken::new()));
    }

    #[test]
    fn an_error_is_remembered_until_it_is_solved() {
        let mut slot = None;
        remember(
            &mut slot,
            "cannot write",
            Some(&Failure::Other("no".into())),
        );
        assert_eq!(slot.as_deref(), Some("cannot write: no"));
        remember(&mut slot, "cannot write", None);
        assert_eq!(slot, None);
    }
}
