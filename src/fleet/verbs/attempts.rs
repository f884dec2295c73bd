//! Repeats a change after its transaction has failed, since what it was computed from was changed meanwhile.
//! Out of scope: the changes.

use std::time::{Duration, Instant};

use super::Error;
use crate::clock;

/// How often a change is computed.
const ATTEMPTS: u32 = 12;
/// The pause after the first attempt; it grows linearly.
const PAUSE: Duration = Duration::from_millis(10);
/// After this time no further attempt begins.
const PATIENCE: Duration = Duration::from_secs(20);

/// The attempts of one change.
pub(super) struct Attempts {
    begin: Instant,
    number: u32,
}

impl Attempts {
    /// The first one.
    pub(super) fn begin() -> Self {
        Self {
            begin: clock::monotonic(),
            number: 1,
        }
    }

    /// Waits until the next one.
    ///
    /// # Errors
    /// [`Error::Busy`]: there were too many.
    pub(super) async fn next(&mut self) -> Result<(), Error> {
        if self.number >= ATTEMPTS || self.begin.elapsed() > PATIENCE {
            return Err(Error::Busy);
        }
        tokio::time::sleep(PAUSE * self.number).await;
        self.number += 1;
        Ok(())
    }
}
