//! Which key is looked at next. Pure: time is an argument.
//! Out of scope: tasks, timers.
//!
//! # Laws
//! One run per key at a time. Every nudge is followed by a look that starts after it. A nudge (the world moved) does not
//! clear a backoff, a renewal (the intent moved) does. Failures grow only when a full backoff has passed. Success forgets.
//! An idle key costs no memory. There is no last try.
//!
//! # Lanes
//! A look in the prompt lane goes before all looks in the bulk lane, but after [`PROMPT_IN_A_ROW`] prompt looks one bulk look is
//! given if any is due: neither lane starves, however long the other is. Within a lane, the key that is due first goes first. A key
//! that is due in the bulk lane moves to the prompt lane when it is woken there, and never the other way.

use std::collections::{BTreeMap, HashMap};
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

/// How urgent a look is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// One of many that may take their time.
    Bulk,
    /// Before those.
    #[default]
    Prompt,
}

/// So many looks of the prompt lane are given before one of the bulk lane.
pub const PROMPT_IN_A_ROW: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready {
        place: u64,
    },
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
    /// Of the look that is due, or of the last wake-up.
    lane: Lane,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<K> {
    entries: HashMap<K, Entry>,
    prompt: BTreeMap<u64, K>,
    bulk: BTreeMap<u64, K>,
    /// Prompt looks since the last bulk one, while one is due.
    in_a_row: u32,
    timers: BTreeMap<(Instant, u64), K>,
    ticket: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            prompt: BTreeMap::new(),
            bulk: BTreeMap::new(),
            in_a_row: 0,
            timers: BTreeMap::new(),
            ticket: 0,
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// The world moved: look at the key. A key that backs off stays where it is, but a look will come.
    pub fn nudge(&mut self, key: K) {
        self.nudge_in(Lane::Prompt, key);
    }

    /// The same, in that lane.
    pub fn nudge_in(&mut self, lane: Lane, key: K) {
        self.wake(key, Again::Nudged, lane);
    }

    /// The intent moved: failures are forgotten, look now.
    pub fn renew(&mut self, key: K) {
        self.renew_in(Lane::Prompt, key);
    }

    /// The same, in that lane.
    pub fn renew_in(&mut self, lane: Lane, key: K) {
        self.wake(key, Again::Renewed, lane);
    }

    fn wake(&mut self, key: K, how: Again, lane: Lane) {
        let Some(entry) = self.entries.get_mut(&key) else {
            self.make_ready(key, 0, lane);
            return;
        };
        // What waits, or is owed to a run under way, keeps the better lane.
        let is_owed = match entry.state {
            State::Ready { .. } | State::BackingOff { .. } => true,
            State::Running { again } => again != Again::No,
            State::Resting { .. } | State::Awaiting { .. } => false,
        };
        let before = entry.lane;
        entry.lane = match is_owed {
            true => before.max(lane),
            false => lane,
        };
        if how == Again::Renewed {
            entry.failures = 0;
        }
        match (&mut entry.state, how) {
            (State::Running { again }, how) => *again = (*again).max(how),
            (State::Ready { place }, _) => {
                if entry.lane > before
                    && let Some(key) = self.bulk.remove(place)
                {
                    let failures = entry.failures;
                    self.make_ready(key, failures, lane);
                }
            }
            (State::BackingOff { .. }, Again::Nudged | Again::No) => {}
            (State::Resting { until } | State::Awaiting { until }, _)
            | (State::BackingOff { until }, Again::Renewed) => {
                self.timers.remove(until);
                let (failures, lane) = (entry.failures, entry.lane);
                self.make_ready(key, failures, lane);
            }
        }
    }

    /// The next key to look at, if one is due. It runs until [`Queue::done`].
    pub fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((&timer, _)) = self.timers.first_key_value().filter(|(at, _)| at.0 <= now) {
            if let Some(key) = self.timers.remove(&timer) {
                let entry = self.entries.get(&key);
                let (failures, lane) = entry.map_or((0, Lane::Prompt), |e| (e.failures, e.lane));
                self.make_ready(key, failures, lane);
            }
        }
        let key = self.next_in_turn()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.state = State::Running { again: Again::No };
        }
        Some(key)
    }

    fn next_in_turn(&mut self) -> Option<K> {
        let turn = match (self.prompt.is_empty(), self.bulk.is_empty()) {
            (false, false) if self.in_a_row >= PROMPT_IN_A_ROW => Lane::Bulk,
            (false, _) => Lane::Prompt,
            (true, _) => Lane::Bulk,
        };
        let (_, key) = match turn {
            Lane::Prompt => self.prompt.pop_first()?,
            Lane::Bulk => self.bulk.pop_first()?,
        };
        self.in_a_row = match (turn, self.bulk.is_empty()) {
            (Lane::Prompt, false) => self.in_a_row + 1,
            _ => 0,
        };
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
        let lane = entry.lane;
        match (outcome, again) {
            (Outcome::Converged, Again::No) => {
                self.entries.remove(&key);
            }
            (Outcome::Converged | Outcome::After(_), Again::Nudged | Again::Renewed)
            | (Outcome::Failed | Outcome::Shun(_), Again::Renewed) => {
                self.make_ready(key, 0, lane);
            }
            (Outcome::After(wait), Again::No) => {
                let until = self.timer(key.clone(), now + wait);
                self.set(key, State::Resting { until }, 0, lane);
            }
            // Nothing has come out well yet.
            (Outcome::Awaits(_), Again::Nudged | Again::Renewed) => {
                self.make_ready(key, entry.failures, lane);
            }
            (Outcome::Awaits(wait), Again::No) => {
                let until = self.timer(key.clone(), now + wait);
                self.set(key, State::Awaiting { until }, entry.failures, lane);
            }
            (Outcome::Shun(wait), Again::No | Again::Nudged) => {
                let until = self.timer(key.clone(), now + wait);
                self.set(key, State::BackingOff { until }, entry.failures, lane);
            }
            (Outcome::Failed, Again::No | Again::Nudged) => {
                let failures = entry.failures.saturating_add(1);
                let until = self.timer(key.clone(), now + backoff::after(failures));
                self.set(key, State::BackingOff { until }, failures, lane);
            }
        }
    }

    /// When [`Queue::take`] will have something, if nobody wakes a key before.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        match self.prompt.is_empty() && self.bulk.is_empty() {
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

    fn make_ready(&mut self, key: K, failures: u32, lane: Lane) {
        self.ticket += 1;
        let place = self.ticket;
        match lane {
            Lane::Prompt => self.prompt.insert(place, key.clone()),
            Lane::Bulk => self.bulk.insert(place, key.clone()),
        };
        self.set(key, State::Ready { place }, failures, lane);
    }

    fn set(&mut self, key: K, state: State, failures: u32, lane: Lane) {
        let entry = Entry {
            state,
            failures,
            lane,
        };
        self.entries.insert(key, entry);
    }

    fn timer(&mut self, key: K, at: Instant) -> (Instant, u64) {
        self.ticket += 1;
        let timer = (at, self.ticket);
        self.timers.insert(timer, key);
        timer
    }
}
