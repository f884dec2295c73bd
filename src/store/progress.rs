//! How far the disk is behind the world: which changes are not on it yet, and which were taken back.
//! Out of scope: the changes themselves.
//!
//! # Why
//! The world shows a change before it is on the disk. Who answers a client, or changes the host, by what it has read there
//! waits until the disk has it: otherwise a power failure takes back what was answered or done.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::watch;

use super::{Change, lock};

/// As many failures are remembered; who waits for something older is told that it failed.
const FAILURES: usize = 256;

/// The number of a commit, in the order they were made.
pub(super) type Number = u64;

/// All commits so far.
pub(super) struct Progress {
    state: Mutex<State>,
    /// Up to here every commit is on the disk or taken back.
    settled: watch::Sender<Number>,
}

#[derive(Default)]
struct State {
    made: Number,
    /// The last commit that changed each, as long as it is not settled.
    pending: HashMap<Change, Number>,
    /// First and last of those that were taken back together.
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
    /// A commit is made. Its number.
    pub fn made(&self, changes: &[Change]) -> Number {
        let mut state = lock(&self.state);
        state.made += 1;
        let number = state.made;
        for change in changes {
            state.pending.insert(change.clone(), number);
        }
        number
    }

    /// All up to this one are on the disk.
    pub fn written(&self, last: Number) {
        self.settle(&mut lock(&self.state), last);
    }

    /// These were taken back; all before them are settled already.
    pub fn taken_back(&self, first: Number, last: Number) {
        let mut state = lock(&self.state);
        if state.failed.len() == FAILURES {
            state.failed.pop_front();
        }
        state.failed.push_back((first, last));
        self.settle(&mut state, last);
    }

    fn settle(&self, state: &mut State, last: Number) {
        state.pending.retain(|_, number| *number > last);
        self.settled.send_if_modified(|settled| {
            let further = last > *settled;
            *settled = last.max(*settled);
            further
        });
    }

    /// The last commit that is not settled; none: all are.
    pub fn pending(&self) -> Option<Number> {
        let made = lock(&self.state).made;
        (*self.settled.borrow() < made).then_some(made)
    }

    /// The last of those that changed one of these.
    pub fn pending_of(&self, changes: &[Change]) -> Option<Number> {
        let state = lock(&self.state);
        let pending = changes
            .iter()
            .filter_map(|change| state.pending.get(change));
        pending.max().copied()
    }

    /// Waits until a commit is settled. False: it was taken back.
    pub async fn settled(&self, number: Number) -> bool {
        let mut settled = self.settled.subscribe();
        // It lives as long as we.
        let _ = settled.wait_for(|settled| *settled >= number).await;
        let state = lock(&self.state);
        let forgotten = state.failed.len() == FAILURES
            && state
                .failed
                .front()
                .is_some_and(|(first, _)| number < *first);
        let failed = |(first, last): &(Number, Number)| (*first..=*last).contains(&number);
        !forgotten && !state.failed.iter().any(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::{FAILURES, Progress};
    use crate::api::meta::Uid;
    use crate::store::Change;

    #[tokio::test]
    async fn each_waits_for_its_own_changes_and_learns_of_their_failure_alone() {
        let progress = Progress::default();
        let (one, other) = (Change::Vm(Uid::random()), Change::Vm(Uid::random()));
        assert_eq!(progress.pending(), None);
        assert_eq!(progress.made(&[one.clone(), Change::Ground]), 1);
        assert_eq!(progress.made(std::slice::from_ref(&other)), 2);
        assert_eq!(progress.made(std::slice::from_ref(&one)), 3);
        assert_eq!(progress.pending(), Some(3));
        assert_eq!(progress.pending_of(std::slice::from_ref(&one)), Some(3));
        assert_eq!(progress.pending_of(std::slice::from_ref(&other)), Some(2));
        assert_eq!(progress.pending_of(&[Change::Ground]), Some(1));
        progress.written(1);
        assert_eq!(progress.pending_of(&[Change::Ground]), None);
        progress.taken_back(2, 3);
        assert_eq!(
            (progress.pending(), progress.pending_of(&[one])),
            (None, None)
        );
        assert!(progress.settled(1).await);
        assert!(!progress.settled(2).await && !progress.settled(3).await);
        assert_eq!(progress.made(&[other]), 4);
        progress.written(4);
        assert!(progress.settled(4).await);
    }

    #[tokio::test]
    async fn what_failed_too_long_ago_to_be_remembered_has_failed() {
        let progress = Progress::default();
        for _ in 0..=FAILURES {
            let number = progress.made(&[]);
            progress.taken_back(number, number);
        }
        assert!(!progress.settled(1).await);
    }
}
