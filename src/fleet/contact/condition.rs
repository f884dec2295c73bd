//! The condition `FleetContact`.
//! Out of scope: storing it with the conditions of the host.

use std::fmt;

use super::{Boottime, Cause, Contact, Progress, State, Status};

/// The condition `FleetContact`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContactCondition {
    /// True while the node acts on the objects of the fleet.
    pub status: Status,
    /// The reason.
    pub reason: ContactReason,
    /// A message for users.
    pub message: String,
}

/// The reason of the condition `FleetContact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContactReason {
    /// Renewed and listed.
    Connected,
    /// Nothing has been answered since the daemon started.
    NotConnectedYet,
    /// Renewals are not confirmed.
    Unreachable,
    /// The lease of the node was gone.
    LeaseGone,
    /// Renewed; the objects are not listed yet.
    NotListed,
    /// The endpoints are those of another cluster.
    WrongCluster,
    /// The cluster was restored from a snapshot, or was wiped.
    Rewound,
}

impl fmt::Display for ContactReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

const ACCEPT: &str = "VMs of the fleet are not changed until `slicectl fleet accept`";

impl ContactCondition {
    pub(super) fn of(contact: &Contact, now: Boottime) -> Self {
        let (reason, message) = match contact.state(now) {
            State::InContact => (ContactReason::Connected, String::new()),
            State::WrongCluster { expected, found } => (
                ContactReason::WrongCluster,
                format!(
                    "etcd has the cluster id {found:x}, and that of the fleet is {expected:x}; correct the endpoints, or the cluster was \
                     created again; {ACCEPT}"
                ),
            ),
            State::Rewound { seen, found } => (
                ContactReason::Rewound,
                format!(
                    "etcd has the revision {found} after {seen}: it was restored from a snapshot or wiped; {ACCEPT}"
                ),
            ),
            State::Lost { since } => lost(contact, now.since(since).as_secs()),
        };
        let status = match reason {
            ContactReason::Connected => Status::True,
            ContactReason::NotConnectedYet => Status::Unknown,
            _ => Status::False,
        };
        Self {
            status,
            reason,
            message,
        }
    }
}

fn lost(contact: &Contact, secs: u64) -> (ContactReason, String) {
    if contact.progress == Progress::Renewed {
        let message = "the lease is renewed, and the objects of the fleet are not listed yet";
        return (ContactReason::NotListed, message.to_owned());
    }
    match contact.cause {
        Cause::Started | Cause::Accepted => (
            ContactReason::NotConnectedYet,
            format!("etcd has confirmed no renewal yet, for {secs} s"),
        ),
        Cause::LeaseGone => (
            ContactReason::LeaseGone,
            format!("the lease of this node was gone {secs} s ago, and is created again"),
        ),
        Cause::Unanswered | Cause::WatchBroken => (
            ContactReason::Unreachable,
            format!(
                "etcd has confirmed no renewal for {secs} s; VMs keep running, those with stop_after until it ends"
            ),
        ),
    }
}
