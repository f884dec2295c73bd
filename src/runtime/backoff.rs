//! How long a key that failed is left alone.
//! Out of scope: jitter. One host has no herd to thunder.

use std::time::Duration;

/// After the first failure.
pub const FIRST: Duration = Duration::from_millis(500);
/// After many.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The wait after so many failures in a row (from 1): doubles from [`FIRST`] to [`LONGEST`]. There is no last try.
pub fn after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST * 2u32.pow(doublings)).min(LONGEST)
}
