//! TELLS: the only `now()`.
//! Out of scope: sleeping, timers, formatting.

use std::time::Instant;

use crate::api::meta::Timestamp;

/// Wall time, for people: conditions, events, leases.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The moment that lies so long back.
pub fn ago(age: std::time::Duration) -> Timestamp {
    now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Time that only grows, for the queue.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    // tokio's clock, so that a test of time can pause it.
    tokio::time::Instant::now().into_std()
}
