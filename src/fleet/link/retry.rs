//! The delay before an attempt is repeated.
//! Out of scope: what is repeated.

use std::time::Duration;

use crate::api::meta::Uid;

/// The first delay.
const FIRST: Duration = Duration::from_millis(200);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(10);

/// Doubles the delay with each failure. The delay is random between the half and the whole: the nodes of a fleet that have lost the same
/// member do not return to the next one at once.
#[derive(Debug, Default)]
pub(in crate::fleet) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one failure more.
    pub(in crate::fleet) fn next(&mut self) -> Duration {
        let most = FIRST * 2_u32.pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        jittered(most.min(LONGEST))
    }

    /// An attempt has succeeded.
    pub(in crate::fleet) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random time from the half of this one to the whole.
pub(in crate::fleet) fn jittered(most: Duration) -> Duration {
    let random = Uid::random().0.as_u128() as u16;
    most / 2 + most / 2 * u32::from(random) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_the_longest_and_is_random() {
        let mut backoff = Backoff::default();
        for most in [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let most = Duration::from_millis(most);
            let delay = backoff.next();
            assert!(most / 2 <= delay && delay <= most, "{delay:?}");
        }
        backoff.reset();
        let delays: Vec<Duration> = (0..20).map(|_| jittered(LONGEST)).collect();
        assert!(delays.iter().any(|delay| *delay != delays[0]));
        assert!(backoff.next() <= FIRST);
    }
}
