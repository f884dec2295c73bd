//! What the machine receives: times, requests, responses.
//! Out of scope: what it makes of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Header;

/// A time of `CLOCK_BOOTTIME`: since the start of the kernel, including the time in which the host was suspended. Stored in nanoseconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(from = "u64", into = "u64")]
pub struct Boottime(pub Duration);

impl From<u64> for Boottime {
    fn from(nanoseconds: u64) -> Self {
        Self(Duration::from_nanos(nanoseconds))
    }
}

impl From<Boottime> for u64 {
    fn from(time: Boottime) -> Self {
        // 584 years.
        Self::try_from(time.0.as_nanos()).unwrap_or(Self::MAX)
    }
}

impl Boottime {
    /// The time `after` later.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }

    /// How long ago `earlier` was; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Before it was sent.
    pub(super) sent: Boottime,
    /// The greatest revision seen by then: the response of a linearizable request has it or a later one.
    pub(super) floor: u64,
    /// See `Contact::period`.
    pub(super) period: u64,
    /// See `Contact::acceptance`.
    pub(super) acceptance: u64,
    /// It was sent after a confirmed renewal of this period.
    pub(super) renewed: bool,
}

impl Ticket {
    /// When it was sent.
    pub fn sent(&self) -> Boottime {
        self.sent
    }
}

/// An event of the connection to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A renewal was answered.
    Renewed {
        /// Of the request.
        ticket: Ticket,
        /// Of the response.
        header: Header,
        /// The key `alive/<node>` exists with the lease of this node.
        alive: bool,
    },
    /// A renewal failed, or its outcome is unknown.
    RenewalFailed,
    /// All objects were listed. The caller requests one list at a time, and discards the response to a request that it has given up on.
    Listed {
        /// Of the request.
        ticket: Ticket,
        /// Of the response.
        header: Header,
    },
    /// The watch has reported changes. It was created after the last [`Event::Accepted`].
    Watched {
        /// Of the response.
        header: Header,
    },
    /// The watch ended or has a gap: changes may have been missed since the list.
    WatchBroken,
    /// Time has passed.
    Tick,
    /// An administrator has decided that this cluster, with its present content, is that of the fleet (`slicectl fleet accept`).
    Accepted {
        /// The cluster that was displayed to the administrator.
        cluster_id: u64,
    },
}
