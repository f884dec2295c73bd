//! The contact of a node with etcd: whether the node may act on what it has listed, and when it stops VMs that may be replaced.
//! Out of scope: requests, timers, and storing the facts.
//!
//! # Why
//! A node has contact when its lease was renewed **and** it has then listed the objects. The renewal proves that the scheduler does not
//! count the node as absent, and the list contains every replacement that was made before.
//!
//! A VM with `stop_after` is stopped that long after the last confirmed renewal was **sent**. The key `alive/<node>` existed when
//! etcd processed the renewal, which is not before it was sent; the scheduler sees the key absent later than that. There is no
//! credit for the TTL of the lease: etcd may delete a lease early (it was wiped, or the lease was revoked), and an election may extend it.
//!
//! # Requirements
//! - A renewal is confirmed by a linearizable read or a transaction that finds `alive/<node>` with the lease of this node. A
//!   response to `LeaseKeepAlive` alone proves nothing: etcd 3.4.23 also sends it from a leader that has been deposed.
//! - Lists are linearizable; a serializable list may return an old revision.
//! - A cluster is restored with a new `--initial-cluster-token`, so that it has another cluster id. A node that was away when the
//!   snapshot was made cannot detect a restored cluster with the same id.

use std::time::Duration;

use crate::api::condition::Status;

mod condition;
mod event;
#[cfg(test)]
mod tests;

/// The caller stores the facts, and passes them to [`Contact::new`] at the next start. The cluster and `unaccepted` are stored at once; the
/// revision may be stored later, and a restored cluster with the same id is then noticed less reliably after a start.
pub use crate::api::fleet::{Facts, Header, StopTimes};
pub use condition::{ContactCondition, ContactReason};
pub use event::{Boottime, Event, Ticket};

/// How long after the last confirmed renewal was sent contact is lost: two of three renewals, sent every 10 s, have failed.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// The state of contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Renewed and listed.
    InContact,
    /// Not renewed in time, or not listed since.
    Lost {
        /// When the last confirmed renewal was sent, or, if something else was the cause, when it occurred.
        since: Boottime,
    },
    /// The endpoints are those of another cluster.
    WrongCluster {
        /// The id of the cluster of the fleet.
        expected: u64,
        /// The id of the other one.
        found: u64,
    },
    /// The revision has decreased: the cluster was restored from a snapshot, or was wiped.
    Rewound {
        /// The greatest revision seen.
        seen: u64,
        /// The last revision found.
        found: u64,
    },
}

/// Why contact was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The daemon has started.
    Started,
    /// No renewal was confirmed for [`LOST_AFTER`].
    Unanswered,
    /// The key `alive/<node>` was absent.
    LeaseGone,
    WatchBroken,
    Accepted,
}

/// What has been achieved since contact was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Nothing,
    Renewed,
    Listed,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Contact {
    facts: Option<Facts>,
    /// When the last confirmed renewal was sent.
    renewed: Option<Boottime>,
    /// The longest time without a confirmed renewal since the last accepted list.
    gap: Duration,
    progress: Progress,
    cause: Cause,
    since: Boottime,
    /// Incremented when contact is lost: a list that was requested before does not restore it.
    period: u64,
    /// Incremented by [`Event::Accepted`]: responses to earlier requests are ignored, since they have revisions of another history.
    acceptance: u64,
}

impl Contact {
    /// At the start of the daemon. `facts`: `None` before the first contact ever. `renewed`: when the last confirmed renewal of this boot
    /// was sent, from the file of the guard ([`super::fence`]); if unknown, VMs with `stop_after` are stopped at once.
    pub fn new(facts: Option<Facts>, renewed: Option<Boottime>, now: Boottime) -> Self {
        Self {
            facts,
            renewed,
            gap: Duration::ZERO,
            progress: Progress::Nothing,
            cause: Cause::Started,
            since: now,
            period: 0,
            acceptance: 0,
        }
    }

    /// A request is about to be sent. `now` is read before it is sent.
    pub fn send(&self, now: Boottime) -> Ticket {
        Ticket {
            sent: now,
            floor: self.facts.map_or(0, |facts| facts.revision),
            period: self.period,
            acceptance: self.acceptance,
            renewed: self.progress != Progress::Nothing,
        }
    }

    /// An event occurred. Returns whether the content of a response may be used: it is of the cluster of the fleet and of its present
    /// history. Other responses are discarded, and the objects stay as they were listed before.
    pub fn handle(&mut self, event: Event, now: Boottime) -> bool {
        self.tick(now);
        let is_of_the_fleet = match event {
            Event::Renewed {
                ticket,
                header,
                alive,
            } => self.renew(ticket, header, alive, now),
            Event::Listed { ticket, header } => self.list(ticket, header, now),
            Event::Watched { header } => self.watch(header),
            Event::WatchBroken => {
                let progress = self.progress;
                self.lose(Cause::WatchBroken, now);
                // The last renewal is as good as before.
                self.progress = progress.min_renewed();
                false
            }
            Event::RenewalFailed | Event::Tick => false,
            Event::Accepted { cluster_id } => {
                self.accept(cluster_id, now);
                false
            }
        };
        is_of_the_fleet && self.unaccepted().is_none()
    }

    /// The state.
    pub fn state(&self, now: Boottime) -> State {
        if let Some(facts) = self.facts
            && let Some(found) = facts.unaccepted
        {
            return match found.cluster_id == facts.cluster_id {
                true => State::Rewound {
                    seen: facts.revision,
                    found: found.revision,
                },
                false => State::WrongCluster {
                    expected: facts.cluster_id,
                    found: found.cluster_id,
                },
            };
        }
        match (self.progress, self.renewed) {
            (Progress::Listed, Some(renewed)) if now.since(renewed) < LOST_AFTER => {
                State::InContact
            }
            (Progress::Listed, Some(renewed)) => State::Lost { since: renewed },
            _ => State::Lost { since: self.since },
        }
    }

    /// Whether the node may act on the objects that it has listed.
    pub fn may_act(&self, now: Boottime) -> bool {
        self.state(now) == State::InContact
    }

    /// Whether a list is needed for contact.
    pub fn needs_list(&self) -> bool {
        self.progress == Progress::Renewed && self.unaccepted().is_none()
    }

    /// When VMs of a group with this `stop_after` are stopped. A time that has passed remains past until contact is restored, although
    /// renewals are confirmed again: a list decides whether the VMs were replaced in the meantime.
    pub fn stop_due(&self, stop_after: Duration) -> Boottime {
        match self.renewed {
            Some(renewed) if self.gap < stop_after => renewed.plus(stop_after),
            Some(_) | None => Boottime::default(),
        }
    }

    /// What is to be stored.
    pub fn facts(&self) -> Option<Facts> {
        self.facts
    }

    /// When the last confirmed renewal was sent.
    pub fn renewed(&self) -> Option<Boottime> {
        self.renewed
    }

    /// The condition `FleetContact` of the host.
    pub fn condition(&self, now: Boottime) -> ContactCondition {
        ContactCondition::of(self, now)
    }

    fn unaccepted(&self) -> Option<Header> {
        self.facts.and_then(|facts| facts.unaccepted)
    }

    fn tick(&mut self, now: Boottime) {
        let Some(renewed) = self.renewed else {
            return;
        };
        if self.progress != Progress::Nothing && now.since(renewed) >= LOST_AFTER {
            self.lose(Cause::Unanswered, renewed);
        }
    }

    fn lose(&mut self, cause: Cause, since: Boottime) {
        if self.progress == Progress::Listed {
            self.since = since;
        }
        self.cause = cause;
        self.progress = Progress::Nothing;
        self.period += 1;
    }

    fn renew(&mut self, ticket: Ticket, header: Header, alive: bool, now: Boottime) -> bool {
        if ticket.sent > now || !self.is_of_the_fleet(ticket, header, now) {
            return false;
        }
        if !alive {
            self.lose(Cause::LeaseGone, now);
            return true;
        }
        let unconfirmed = self.renewed.map(|renewed| now.since(renewed));
        self.gap = self.gap.max(unconfirmed.unwrap_or(Duration::MAX));
        self.renewed = self.renewed.max(Some(ticket.sent));
        let is_recent = now.since(ticket.sent) < LOST_AFTER && ticket.period == self.period;
        if is_recent && self.progress == Progress::Nothing {
            self.progress = Progress::Renewed;
        }
        true
    }

    fn list(&mut self, ticket: Ticket, header: Header, now: Boottime) -> bool {
        if !self.is_of_the_fleet(ticket, header, now) {
            return false;
        }
        let is_current =
            self.unaccepted().is_none() && ticket.renewed && ticket.period == self.period;
        if is_current && self.progress == Progress::Renewed {
            self.progress = Progress::Listed;
            self.gap = Duration::ZERO;
        }
        true
    }

    /// Raises the revision: a cluster that is restored to one between that of the last renewal and this one is noticed.
    fn watch(&mut self, header: Header) -> bool {
        let Some(facts) = &mut self.facts else {
            return false;
        };
        let is_same = facts.cluster_id == header.cluster_id && facts.unaccepted.is_none();
        if is_same {
            facts.revision = facts.revision.max(header.revision);
        }
        is_same
    }

    /// Whether a response is of the cluster of the fleet and of its present history. Stores what was found.
    fn is_of_the_fleet(&mut self, ticket: Ticket, header: Header, now: Boottime) -> bool {
        if ticket.acceptance != self.acceptance {
            return false;
        }
        let facts = self.facts.get_or_insert(Facts {
            cluster_id: header.cluster_id,
            revision: header.revision,
            unaccepted: None,
        });
        let is_same = header.cluster_id == facts.cluster_id;
        let was_rewound = facts
            .unaccepted
            .is_some_and(|found| found.cluster_id == facts.cluster_id);
        if is_same && !was_rewound && header.revision >= ticket.floor {
            facts.revision = facts.revision.max(header.revision);
            return true;
        }
        facts.unaccepted = Some(header);
        self.lose(self.cause, now);
        false
    }

    fn accept(&mut self, cluster_id: u64, now: Boottime) {
        let Some(facts) = &mut self.facts else {
            return;
        };
        let Some(found) = facts.unaccepted else {
            return;
        };
        if found.cluster_id == cluster_id {
            (facts.cluster_id, facts.revision) = (cluster_id, found.revision);
        } else if facts.cluster_id != cluster_id {
            return;
        }
        facts.unaccepted = None;
        self.acceptance += 1;
        self.lose(Cause::Accepted, now);
    }
}

impl Progress {
    /// Without the list.
    fn min_renewed(self) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Renewed | Self::Listed => Self::Renewed,
        }
    }
}
