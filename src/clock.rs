//! TELLS: the only `now()`.
//! Not here: sleeping, timers, formatting.

use std::time::Instant;

use crate::api::meta::Timestamp;

/// Wall time, for people: conditions, events, leases.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Time that only grows, for the queue.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    // tokio's clock, so that a test of time can pause it.
    tokio::time::Instant::now().into_std()
}
