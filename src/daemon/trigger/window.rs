//! A time window in which events are collected.
//! Out of scope: the choice of events.

use std::time::{Duration, Instant};

use super::gathered::Pending;
use crate::clock;

/// Collected events and the time at which they are enqueued.
#[derive(Default)]
pub(super) struct Window {
    gathered: Pending,
    began: Option<Instant>,
    until: Option<Instant>,
}

impl Window {
    /// Creates a window with initial content.
    pub(super) fn with_content(gathered: Pending, length: Duration) -> Self {
        let mut window = Self::default();
        if gathered.has_content() {
            window.add(gathered, length);
        }
        window
    }

    /// Adds events. The first addition opens the window for `length`.
    pub(super) fn add(&mut self, pending: Pending, length: Duration) {
        let now = clock::monotonic();
        self.gathered.merge(pending);
        self.began.get_or_insert(now);
        self.until.get_or_insert(now + length);
    }

    /// Adds events. Each addition extends the window to `length` from now, up to `longest` in total.
    pub(super) fn add_and_extend(&mut self, pending: Pending, length: Duration, max: Duration) {
        let now = clock::monotonic();
        self.gathered.merge(pending);
        let began = *self.began.get_or_insert(now);
        self.until = Some((now + length).min(began + max));
    }

    /// Waits until the window ends. Never returns while it is empty.
    pub(super) async fn over(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Takes the content; the window is empty afterwards.
    pub(super) fn take(&mut self) -> Pending {
        std::mem::take(self).gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news() -> Pending {
        Pending {
            everything: true,
            ..Pending::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_one_window_of_bounded_length() {
        let (step, length, longest) = (5, 30, 600);
        let millis = Duration::from_millis;
        for (events, expected) in [(1, length), (10, 9 * step + length), (1000, longest)] {
            let mut window = Window::default();
            let begin = clock::monotonic();
            let end = begin + millis(events * step);
            loop {
                if clock::monotonic() < end {
                    window.add_and_extend(news(), millis(length), millis(longest));
                }
                let next = tokio::time::sleep(millis(step));
                tokio::select! {
                    biased;
                    () = window.over() => break,
                    () = next => {}
                }
            }
            assert!(window.take().has_content());
            assert!(!window.take().has_content());
            let found = clock::monotonic().duration_since(begin).as_millis() as u64;
            assert!(found.abs_diff(expected) <= step, "{events}: {found} ms");
        }
    }
}
