//! The delay before a key that failed is run again.
//! Out of scope: jitter. There is one client, so retries do not arrive in bursts.

use std::time::Duration;

/// The delay after the first failure.
pub const MIN_DELAY: Duration = Duration::from_millis(500);
/// The longest delay.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// The delay after this number of consecutive failures (at least 1): it doubles from [`MIN_DELAY`] to [`MAX_DELAY`]. The number of retries is
/// not limited.
pub fn delay_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (MIN_DELAY * 2u32.pow(doublings)).min(MAX_DELAY)
}
