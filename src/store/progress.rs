//! The progress of the disk: which changes are not on it yet, and which were rolled back.
//! Out of scope: the changes themselves.
//!
//! # Why
//! A change is visible in the world before it is on the disk. Code that answers a client, or changes the host, based on what it has
//! read waits until the change is on the disk: otherwise a power failure reverts what was answered or done.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Change;

/// The number of failures that are kept; a wait for an older commit returns failure.
const MAX_FAILURES: usize = 256;

/// The number of a commit, in the order in which commits are made.
pub(super) type Number = u64;

/// The state of all commits.
pub(super) struct Progress {
    state: Mutex<State>,
    /// Every commit up to this number is on the disk or rolled back.
    settled: watch::Sender<Number>,
}

#[derive(Default)]
struct State {
    last_number: Number,
    /// The last commit that changed each object, until it is settled.
    pending: HashMap<Change, Number>,
    /// The first and last commit of each group that was rolled back.
    failed: VecDeque<(Number, Number)>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            settled: watch::Sender::new(0),
        }
    }
}

impl Progress {
    /// Records a new commit and returns its number.
    pub fn add(&self, changes: &[Change]) -> Number {
        let mut state = self.state.lock();
        state.last_number += 1;
        let number = state.last_number;
        for change in changes {
            state.pending.insert(change.clone(), number);
        }
        number
    }

    /// Records that all commits up to this one are on the disk.
    pub fn written(&self, last: Number) {
        self.mark_settled(&mut self.state.lock(), last);
    }

    /// Records that these commits were rolled back; all earlier ones are settled already.
    pub fn rolled_back(&self, first: Number, last: Number) {
        let mut state = self.state.lock();
        if state.failed.len() == MAX_FAILURES {
            state.failed.pop_front();
        }
        state.failed.push_back((first, last));
        self.mark_settled(&mut state, last);
    }

    fn mark_settled(&self, state: &mut State, last: Number) {
        state.pending.retain(|_, number| *number > last);
        self.settled.send_if_modified(|settled| {
            let advanced = last > *settled;
            *settled = last.max(*settled);
            advanced
        });
    }

    /// The last commit, if it is not settled. `None`: all commits are settled.
    pub fn pending(&self) -> Option<Number> {
        let made = self.state.lock().last_number;
        (*self.settled.borrow() < made).then_some(made)
    }

    /// The last unsettled commit that changed one of these objects.
    pub fn pending_of(&self, changes: &[Change]) -> Option<Number> {
        let state = self.state.lock();
        let pending = changes
            .iter()
            .filter_map(|change| state.pending.get(change));
        pending.max().copied()
    }

    /// Waits until a commit is settled. Returns false if it was rolled back.
    pub async fn wait_settled(&self, number: Number) -> bool {
        let mut settled = self.settled.subscribe();
        // The sender is a field of `self`, so it is not dropped meanwhile.
        let _ = settled.wait_for(|settled| *settled >= number).await;
        let state = self.state.lock();
        let evicted = state.failed.len() == MAX_FAILURES
            && state
                .failed
                .front()
                .is_some_and(|(first, _)| number < *first);
        let failed = |(first, last): &(Number, Number)| (*first..=*last).contains(&number);
        !evicted && !state.failed.iter().any(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_FAILURES, Progress};
    use crate::api::meta::Uid;
    use crate::store::Change;

    #[tokio::test]
    async fn a_wait_concerns_only_the_given_changes_and_their_failure() {
        let progress = Progress::default();
        let (one, other) = (Change::Vm(Uid::random()), Change::Vm(Uid::random()));
        assert_eq!(progress.pending(), None);
        assert_eq!(progress.add(&[one.clone(), Change::HostNetwork]), 1);
        assert_eq!(progress.add(std::slice::from_ref(&other)), 2);
        assert_eq!(progress.add(std::slice::from_ref(&one)), 3);
        assert_eq!(progress.pending(), Some(3));
        assert_eq!(progress.pending_of(std::slice::from_ref(&one)), Some(3));
        assert_eq!(progress.pending_of(std::slice::from_ref(&other)), Some(2));
        assert_eq!(progress.pending_of(&[Change::HostNetwork]), Some(1));
        progress.written(1);
        assert_eq!(progress.pending_of(&[Change::HostNetwork]), None);
        progress.rolled_back(2, 3);
        assert_eq!(
            (progress.pending(), progress.pending_of(&[one])),
            (None, None)
        );
        assert!(progress.wait_settled(1).await);
        assert!(!progress.wait_settled(2).await && !progress.wait_settled(3).await);
        assert_eq!(progress.add(&[other]), 4);
        progress.written(4);
        assert!(progress.wait_settled(4).await);
    }

    #[tokio::test]
    async fn a_commit_older_than_all_recorded_failures_counts_as_failed() {
        let progress = Progress::default();
        for _ in 0..=MAX_FAILURES {
            let number = progress.add(&[]);
            progress.rolled_back(number, number);
        }
        assert!(!progress.wait_settled(1).await);
    }
}
