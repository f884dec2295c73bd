//! The order in which endpoints are tried.
//! Out of scope: connections ([`super::connection`]).

use std::time::Instant;

use parking_lot::Mutex;

/// The indices of the endpoints, in the order in which they are tried.
#[derive(Debug)]
pub(super) struct Order(Mutex<Vec<usize>>);

impl Order {
    /// The configured order of so many endpoints.
    pub(super) fn new(count: usize) -> Self {
        Self(Mutex::new((0..count).collect()))
    }

    /// The order now.
    pub(super) fn current(&self) -> Vec<usize> {
        self.0.lock().clone()
    }

    /// This one has failed: it is tried last from now on.
    pub(super) fn demote(&self, failed: usize) {
        let mut order = self.0.lock();
        if let Some(at) = order.iter().position(|index| *index == failed) {
            order[at..].rotate_left(1);
        }
    }
}

/// Until when an attempt may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Until when another endpoint can still be tried.
    pub(super) attempt: Instant,
    /// Until when the request must be answered.
    pub(super) deadline: Instant,
}

impl Limits {
    /// An equal share of the time that remains, if so many endpoints remain.
    pub(super) fn share(now: Instant, deadline: Instant, endpoints: usize) -> Self {
        let remaining = deadline.saturating_duration_since(now);
        let share = remaining / u32::try_from(endpoints.max(1)).unwrap_or(u32::MAX);
        Self {
            attempt: now + share,
            deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_endpoint_that_fails_is_tried_last() {
        let order = Order::new(3);
        assert_eq!(order.current(), [0, 1, 2]);
        order.demote(0);
        assert_eq!(order.current(), [1, 2, 0]);
        order.demote(2);
        assert_eq!(order.current(), [1, 0, 2]);
        order.demote(2);
        order.demote(9);
        assert_eq!(order.current(), [1, 0, 2]);
    }

    #[test]
    fn endpoints_share_the_time_that_remains() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let limits = Limits::share(now, now + 6 * second, 3);
        assert_eq!(limits.attempt, now + 2 * second);
        let limits = Limits::share(now + 2 * second, now + 6 * second, 2);
        assert_eq!(limits.attempt, now + 4 * second);
        let late = Limits::share(now + 7 * second, now + 6 * second, 1);
        assert_eq!(late.attempt, now + 7 * second);
    }
}
