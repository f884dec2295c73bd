//! Which key is looked at next. Pure: time is an argument.
//! Not here: tasks, timers.
//!
//! # Laws
//! One run per key at a time. Every nudge is followed by a look that starts after it. A nudge (the world moved) does not
//! clear a backoff, a renewal (the intent moved) does. Failures grow only when a full backoff has passed. Success forgets.
//! An idle key costs no memory. There is no last try.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::backoff;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plan is empty.
    Converged,
    /// Nothing failed; look again after so long, or sooner when nudged.
    After(Duration),
    /// What was begun comes to its end by itself, and tells: look then, or after so long. Not idle meanwhile.
    Awaits(Duration),
    /// Something failed: back off.
    Failed,
    /// Leave it alone for so long whatever the world does; only a new intent is heard.
    Shun(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Running {
        again: Again,
    },
    /// `After`: a nudge ends it.
    Resting {
        until: (Instant, u64),
    },
    /// `Awaits`: a nudge ends it, too.
    Awaiting {
        until: (Instant, u64),
    },
    /// `Failed` or `Shun`: only time or a renewal ends it.
    BackingOff {
        until: (Instant, u64),
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Again {
    No,
    Nudged,
    Renewed,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    failures: u32,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<K> {
    entries: HashMap<K, Entry>,
    ready: VecDeque<K>,
    timers: BTreeMap<(Instant, u64), K>,
    ticket: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            ready: VecDeque::new(),
            timers: BTreeMap::new(),
            ticket: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// The world moved: look at the key. A key that backs off stays where it is, but a look will come.
    pub fn nudge(&mut self, key: K) {
        self.wake(key, Again::Nudged);
    }

    /// The intent moved: failures are forgotten, look now.
    pub fn renew(&mut self, key: K) {
        self.wake(key, Again::Renewed);
    }

    fn wake(&mut self, key: K, how: Again) {
        let Some(entry) = self.entries.get_mut(&key) else {
            self.make_ready(key, 0);
            return;
        };
        if how == Again::Renewed {
            entry.failures = 0;
        }
        match (&mut entry.state, how) {
            (State::Running { again }, how) => *again = (*again).max(how),
            (State::Ready, _) | (State::BackingOff { .. }, Again::Nudged | Again::No) => {}
            (State::Resting { until } | State::Awaiting { until }, _)
            | (State::BackingOff { until }, Again::Renewed) => {
                self.timers.remove(until);
                let failures = entry.failures;
                self.make_ready(key, failures);
            }
        }
    }

    /// The next key to look at, if one is due. It runs until [`Queue::done`].
    pub fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((&timer, _)) = self.timers.first_key_value().filter(|(at, _)| at.0 <= now) {
            if let Some(key) = self.timers.remove(&timer) {
                let failures = self.entries.get(&key).map_or(0, |entry| entry.failures);
                self.make_ready(key, failures);
            }
        }
        let key = self.ready.pop_front()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = State::Running { again: Again::No };
        }
        Some(key)
    }

    /// The run of a key ended.
    pub fn done(&mut self, key: K, now: Instant, outcome: Outcome) {
        let Some(entry) = self.entries.get(&key).copied() else {
            return;
        };
        let State::Running { again } = entry.state else {
            return;
        };
        match (outcome, again) {
            (Outcome::Converged, Again::No) => {
                self.entries.remove(&key);
            }
            (Outcome::Converged | Outcome::After(_), Again::Nudged | Again::Renewed)
            | (Outcome::Failed | Outcome::Shun(_), Again::Renewed) => self.make_ready(key, 0),
            (Outcome::After(wait), Again::No) => {
                let until = self.timer(key.clone(), now + wait);
                self.set(key, State::Resting { until }, 0);
            }
            // Nothing has come out well yet.
            (Outcome::Awaits(_), Again::Nudged | Again::Renewed) => {
                self.make_ready(key, entry.failures);
            }
            (Outcome::Awaits(wait), Again::No) => {
                let until = self.timer(key.clone(), now + wait);
                self.set(key, State::Awaiting { until }, entry.failures);
            }
            (Outcome::Shun(wait), Again::No | Again::Nudged) => {
                let until = self.timer(key.clone(), now + wait);
                self.set(key, State::BackingOff { until }, entry.failures);
            }
            (Outcome::Failed, Again::No | Again::Nudged) => {
                let failures = entry.failures.saturating_add(1);
                let until = self.timer(key.clone(), now + backoff::after(failures));
                self.set(key, State::BackingOff { until }, failures);
            }
        }
    }

    /// When [`Queue::take`] will have something, if nobody wakes a key before.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        match self.ready.is_empty() {
            false => Some(now),
            true => self.timers.first_key_value().map(|(at, _)| at.0),
        }
    }

    /// How often a key has failed in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.entries.get(key).map_or(0, |entry| entry.failures)
    }

    /// Nothing is due, nothing runs.
    pub fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| {
            matches!(
                entry.state,
                State::Resting { .. } | State::BackingOff { .. }
            )
        })
    }

    /// Keys that are known at all: not idle.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No key is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn make_ready(&mut self, key: K, failures: u32) {
        self.ready.push_back(key.clone());
        self.set(key, State::Ready, failures);
    }

    fn set(&mut self, key: K, state: State, failures: u32) {
        self.entries.insert(key, Entry { state, failures });
    }

    fn timer(&mut self, key: K, at: Instant) -> (Instant, u64) {
        self.ticket += 1;
        let timer = (at, self.ticket);
        self.timers.insert(timer, key);
        timer
    }
}
