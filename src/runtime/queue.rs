//! The queue of keys. Pure: time is an argument.
//! Out of scope: tasks, timers.
//!
//! # Properties
//! - There is at most one run per key at a time.
//! - Each enqueue is followed by a run that starts after it.
//! - `enqueue` (the state of the host changed) does not end a backoff; `enqueue_fresh` (the desired state changed) does.
//! - The failure count grows only after a complete backoff. A successful run resets it.
//! - An idle key uses no memory.
//! - The number of retries is not limited.
//!
//! # Lanes
//! Keys in the prompt lane run before keys in the bulk lane, but after [`MAX_CONSECUTIVE_PROMPT_RUNS`] prompt runs one bulk key runs if any is due,
//! so that neither lane starves. Within a lane, the key that has been due longest runs first. A key that is due in the bulk lane moves to
//! the prompt lane when it is enqueued there, never the other way.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::backoff;

/// The result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plan is empty.
    Converged,
    /// Nothing failed: run again after this delay, or sooner when the key is enqueued.
    RequeueAfter(Duration),
    /// An operation was started that completes by itself and then enqueues the key: run then, or after this delay. The queue is not idle
    /// meanwhile.
    AwaitChange(Duration),
    /// The run failed: back off.
    Failed,
    /// Do not run before this delay has passed, even if the state of the host changes; only a change of the desired state ends it.
    HoldOff(Duration),
}

/// The priority of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Low priority: one of many.
    Bulk,
    /// High priority: before the bulk lane.
    #[default]
    Prompt,
}

/// The number of consecutive prompt runs before a bulk run.
pub const MAX_CONSECUTIVE_PROMPT_RUNS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready {
        place: u64,
    },
    Running {
        again: Requeue,
    },
    /// After `RequeueAfter`. Ends when the key is enqueued.
    Requeued {
        until: (Instant, u64),
    },
    /// After `AwaitChange`. Ends when the key is enqueued.
    AwaitingChange {
        until: (Instant, u64),
    },
    /// After `Failed` or `HoldOff`. Ends only after the delay or with `enqueue_fresh`.
    BackingOff {
        until: (Instant, u64),
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Requeue {
    No,
    Enqueued,
    EnqueuedFresh,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    failures: u32,
    /// The lane of the run that is due, or of the last enqueue.
    lane: Lane,
}

/// The work queue.
#[derive(Debug)]
pub struct Queue<K> {
    entries: HashMap<K, Entry>,
    prompt: BTreeMap<u64, K>,
    bulk: BTreeMap<u64, K>,
    /// Prompt runs since the last bulk run, while a bulk key is due.
    consecutive_prompt_runs: u32,
    timers: BTreeMap<(Instant, u64), K>,
    ticket: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            prompt: BTreeMap::new(),
            bulk: BTreeMap::new(),
            consecutive_prompt_runs: 0,
            timers: BTreeMap::new(),
            ticket: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Enqueues a key because the state of the host changed. A key in backoff keeps its backoff and runs after it.
    pub fn enqueue(&mut self, key: K) {
        self.enqueue_in(Lane::Prompt, key);
    }

    /// As [`Queue::enqueue`], in the given lane.
    pub fn enqueue_in(&mut self, lane: Lane, key: K) {
        self.enqueue_as(key, Requeue::Enqueued, lane);
    }

    /// Enqueues a key because its desired state changed: its failures are reset, and it runs at once.
    pub fn enqueue_fresh(&mut self, key: K) {
        self.enqueue_fresh_in(Lane::Prompt, key);
    }

    /// As [`Queue::enqueue_fresh`], in the given lane.
    pub fn enqueue_fresh_in(&mut self, lane: Lane, key: K) {
        self.enqueue_as(key, Requeue::EnqueuedFresh, lane);
    }

    fn enqueue_as(&mut self, key: K, request: Requeue, lane: Lane) {
        let Some(entry) = self.entries.get_mut(&key) else {
            self.make_ready(key, 0, lane);
            return;
        };
        // A key that is due, in backoff, or to be run again keeps the higher lane.
        let is_pending = match entry.state {
            State::Ready { .. } | State::BackingOff { .. } => true,
            State::Running { again } => again != Requeue::No,
            State::Requeued { .. } | State::AwaitingChange { .. } => false,
        };
        let previous_lane = entry.lane;
        entry.lane = match is_pending {
            true => previous_lane.max(lane),
            false => lane,
        };
        if request == Requeue::EnqueuedFresh {
            entry.failures = 0;
        }
        match (&mut entry.state, request) {
            (State::Running { again }, how) => *again = (*again).max(how),
            (State::Ready { place }, _) => {
                if entry.lane > previous_lane
                    && let Some(key) = self.bulk.remove(place)
                {
                    let failures = entry.failures;
                    self.make_ready(key, failures, lane);
                }
            }
            (State::BackingOff { .. }, Requeue::Enqueued | Requeue::No) => {}
            (State::Requeued { until } | State::AwaitingChange { until }, _)
            | (State::BackingOff { until }, Requeue::EnqueuedFresh) => {
                self.timers.remove(until);
                let (failures, lane) = (entry.failures, entry.lane);
                self.make_ready(key, failures, lane);
            }
        }
    }

    /// Returns the next key to run, if one is due. It is running until [`Queue::done`].
    pub fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((&timer, _)) = self.timers.first_key_value().filter(|(at, _)| at.0 <= now) {
            if let Some(key) = self.timers.remove(&timer) {
                let entry = self.entries.get(&key);
                let (failures, lane) = entry.map_or((0, Lane::Prompt), |e| (e.failures, e.lane));
                self.make_ready(key, failures, lane);
            }
        }
        let key = self.pop_next()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = State::Running { again: Requeue::No };
        }
        Some(key)
    }

    fn pop_next(&mut self) -> Option<K> {
        let lane = match (self.prompt.is_empty(), self.bulk.is_empty()) {
            (false, false) if self.consecutive_prompt_runs >= MAX_CONSECUTIVE_PROMPT_RUNS => {
                Lane::Bulk
            }
            (false, _) => Lane::Prompt,
            (true, _) => Lane::Bulk,
        };
        let (_, key) = match lane {
            Lane::Prompt => self.prompt.pop_first()?,
            Lane::Bulk => self.bulk.pop_first()?,
        };
        self.consecutive_prompt_runs = match (lane, self.bulk.is_empty()) {
            (Lane::Prompt, false) => self.consecutive_prompt_runs + 1,
            _ => 0,
        };
        Some(key)
    }

    /// Records that the run of a key has ended.
    pub fn done(&mut self, key: K, now: Instant, outcome: Outcome) {
        let Some(entry) = self.entries.get(&key).copied() else {
            return;
        };
        let State::Running { again: requeue } = entry.state else {
            return;
        };
        let lane = entry.lane;
        match (outcome, requeue) {
            (Outcome::Converged, Requeue::No) => {
                self.entries.remove(&key);
            }
            (
                Outcome::Converged | Outcome::RequeueAfter(_),
                Requeue::Enqueued | Requeue::EnqueuedFresh,
            )
            | (Outcome::Failed | Outcome::HoldOff(_), Requeue::EnqueuedFresh) => {
                self.make_ready(key, 0, lane);
            }
            (Outcome::RequeueAfter(delay), Requeue::No) => {
                let until = self.add_timer(key.clone(), now + delay);
                self.set(key, State::Requeued { until }, 0, lane);
            }
            // The operation has not succeeded yet, so failures are kept.
            (Outcome::AwaitChange(_), Requeue::Enqueued | Requeue::EnqueuedFresh) => {
                self.make_ready(key, entry.failures, lane);
            }
            (Outcome::AwaitChange(wait), Requeue::No) => {
                let until = self.add_timer(key.clone(), now + wait);
                self.set(key, State::AwaitingChange { until }, entry.failures, lane);
            }
            (Outcome::HoldOff(wait), Requeue::No | Requeue::Enqueued) => {
                let until = self.add_timer(key.clone(), now + wait);
                self.set(key, State::BackingOff { until }, entry.failures, lane);
            }
            (Outcome::Failed, Requeue::No | Requeue::Enqueued) => {
                let failures = entry.failures.saturating_add(1);
                let until = self.add_timer(key.clone(), now + backoff::delay_after(failures));
                self.set(key, State::BackingOff { until }, failures, lane);
            }
        }
    }

    /// The time at which [`Queue::take`] returns a key, if no key is enqueued before.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        match self.prompt.is_empty() && self.bulk.is_empty() {
            false => Some(now),
            true => self.timers.first_key_value().map(|(at, _)| at.0),
        }
    }

    /// The number of consecutive failures of a key.
    pub fn failures(&self, key: &K) -> u32 {
        self.entries.get(key).map_or(0, |entry| entry.failures)
    }

    /// No key is due or running.
    pub fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| {
            matches!(
                entry.state,
                State::Requeued { .. } | State::BackingOff { .. }
            )
        })
    }

    /// The number of keys that are not idle: due, running or waiting.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No key is due, running or waiting.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn make_ready(&mut self, key: K, failures: u32, lane: Lane) {
        self.ticket += 1;
        let position = self.ticket;
        match lane {
            Lane::Prompt => self.prompt.insert(position, key.clone()),
            Lane::Bulk => self.bulk.insert(position, key.clone()),
        };
        self.set(key, State::Ready { place: position }, failures, lane);
    }

    fn set(&mut self, key: K, state: State, failures: u32, lane: Lane) {
        let entry = Entry {
            state,
            failures,
            lane,
        };
        self.entries.insert(key, entry);
    }

    fn add_timer(&mut self, key: K, at: Instant) -> (Instant, u64) {
        self.ticket += 1;
        let timer = (at, self.ticket);
        self.timers.insert(timer, key);
        timer
    }
}
