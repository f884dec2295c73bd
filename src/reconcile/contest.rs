//! Detection of conflicting writers: the same stage is repaired again and again on a converged spec.
//! Out of scope: the response to a conflict.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::api::meta::Uid;
use crate::api::rung::Rung;

/// This number of repairs within [`WINDOW`] indicates a conflicting writer.
const MANY: usize = 6;
/// How long a repair is remembered.
const WINDOW: Duration = Duration::from_secs(60);
/// A conflict is over after this time without a repair.
pub const CALM: Duration = Duration::from_secs(10);

/// Recent repairs. An object that is not repaired costs nothing.
#[derive(Default)]
pub struct Contests {
    repairs: Mutex<HashMap<Uid, HashMap<Rung, VecDeque<Instant>>>>,
}

impl Contests {
    /// Counts a repair. Returns the number of repairs within the window if it indicates a conflicting writer.
    pub fn count(&self, uid: Uid, rung: Rung, now: Instant) -> Option<usize> {
        let mut repairs = self.repairs.lock().unwrap_or_else(PoisonError::into_inner);
        let of_rung = repairs.entry(uid).or_default().entry(rung).or_default();
        of_rung.retain(|at| now.saturating_duration_since(*at) < WINDOW);
        of_rung.push_back(now);
        (of_rung.len() >= MANY).then_some(of_rung.len())
    }

    /// Returns the number of repairs within the window while the conflict lasts. It is over when nothing was repaired for [`CALM`].
    pub fn lasts(&self, uid: Uid, rung: Rung, now: Instant) -> Option<usize> {
        let repairs = self.repairs.lock().unwrap_or_else(PoisonError::into_inner);
        let of_rung = repairs.get(&uid)?.get(&rung)?;
        let age = |at: &Instant| now.saturating_duration_since(*at);
        let count = of_rung.iter().filter(|at| age(at) < WINDOW).count();
        let is_recent = of_rung.back().is_some_and(|at| age(at) < CALM);
        (count >= MANY && is_recent).then_some(count)
    }

    /// Removes the history of an object that is gone.
    pub fn forget(&self, uid: Uid) {
        let mut repairs = self.repairs.lock().unwrap_or_else(PoisonError::into_inner);
        repairs.remove(&uid);
    }
}
