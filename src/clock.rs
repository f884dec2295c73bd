//! The only source of the current time.
//! Out of scope: sleeping, timers, formatting.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// The wall clock time, for conditions, events and leases.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The time `age` before now; the Unix epoch if that cannot be represented.
pub fn ago(age: Duration) -> Timestamp {
    now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The monotonic time, for the queue.
#[allow(clippy::disallowed_methods)]
pub fn monotonic() -> Instant {
    // tokio's clock, which tests can pause.
    tokio::time::Instant::now().into_std()
}

/// The time since the kernel started, including the time in which the host was suspended (`CLOCK_BOOTTIME`).
pub fn boottime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // The kernel returns neither a negative time nor a second of nanoseconds.
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}
