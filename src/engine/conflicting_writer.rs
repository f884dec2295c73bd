//! Detection of conflicting writers: the same stage is repaired again and again on a converged spec.
//! Out of scope: the response to a conflict.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::api::meta::Uid;
use crate::api::stage::Stage;

/// This number of repairs within [`WINDOW`] indicates a conflicting writer.
const THRESHOLD: usize = 6;
/// How long a repair is remembered.
const WINDOW: Duration = Duration::from_secs(60);
/// A conflict is over after this time without a repair.
pub const QUIET_PERIOD: Duration = Duration::from_secs(10);

/// Recent repairs. An object that is not repaired costs nothing.
#[derive(Default)]
pub struct ConflictingWriters {
    repairs: Mutex<HashMap<Uid, HashMap<Stage, VecDeque<Instant>>>>,
}

impl ConflictingWriters {
    /// Counts a repair. Returns the number of repairs within the window if it indicates a conflicting writer.
    pub fn count(&self, uid: Uid, stage: Stage, now: Instant) -> Option<usize> {
        let mut repairs = self.repairs.lock();
        let times = repairs.entry(uid).or_default().entry(stage).or_default();
        times.retain(|time| now.saturating_duration_since(*time) < WINDOW);
        times.push_back(now);
        (times.len() >= THRESHOLD).then_some(times.len())
    }

    /// Returns the number of repairs within the window while the conflict lasts. It is over when nothing was repaired for [`QUIET_PERIOD`].
    pub fn ongoing(&self, uid: Uid, stage: Stage, now: Instant) -> Option<usize> {
        let repairs = self.repairs.lock();
        let times = repairs.get(&uid)?.get(&stage)?;
        let age = |time: &Instant| now.saturating_duration_since(*time);
        let count = times.iter().filter(|at| age(at) < WINDOW).count();
        let is_recent = times.back().is_some_and(|at| age(at) < QUIET_PERIOD);
        (count >= THRESHOLD && is_recent).then_some(count)
    }

    /// Removes the history of an object that is gone.
    pub fn remove(&self, uid: Uid) {
        let mut repairs = self.repairs.lock();
        repairs.remove(&uid);
    }
}
