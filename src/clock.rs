//! The only source of the current time.
//! Out of scope: sleeping, timers, formatting.

use std::time::Instant;

use jiff::Timestamp;

/// The wall clock time, for conditions, events and leases.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The time `age` before now; the Unix epoch if that cannot be represented.
pub fn ago(age: std::time::Duration) -> Timestamp {
    now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The monotonic time, for the queue.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    // tokio's clock, which tests can pause.
    tokio::time::Instant::now().into_std()
}
