//! Changes of a file within a short time are one.
//! Out of scope: where they come from.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::tree::{Change, Kind};

/// The maximum number of files with delayed changes.
const FILES: usize = 4096;

/// Delays changes for a fixed time after the first one of a file, so that a file that always changes is reported, too.
pub struct Merge {
    time: Duration,
    delayed: HashMap<PathBuf, Change>,
    order: VecDeque<(Instant, PathBuf)>,
}

impl Merge {
    /// Changes within `time` are one; zero: all are reported.
    pub fn new(time: Duration) -> Self {
        Self {
            time,
            delayed: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Adds changes; returns those that are not delayed.
    pub fn push(&mut self, changes: Vec<Change>, now: Instant) -> Vec<Change> {
        if self.time.is_zero() {
            return changes;
        }
        let mut early = Vec::new();
        for change in changes {
            if let Some(delayed) = self.delayed.get_mut(&change.path) {
                delayed.kind = merged(delayed.kind, change.kind);
                delayed.is_dir = change.is_dir;
                continue;
            }
            if self.delayed.len() == FILES {
                early.extend(self.first());
            }
            self.order.push_back((now + self.time, change.path.clone()));
            self.delayed.insert(change.path.clone(), change);
        }
        early
    }

    /// When the next change is to be taken.
    pub fn due(&self) -> Option<Instant> {
        self.order.front().map(|(due, _)| *due)
    }

    /// The changes that are due.
    pub fn take(&mut self, now: Instant) -> Vec<Change> {
        let mut due = Vec::new();
        while self.due().is_some_and(|first| first <= now) {
            due.extend(self.first());
        }
        due
    }

    fn first(&mut self) -> Option<Change> {
        let (_, path) = self.order.pop_front()?;
        self.delayed.remove(&path)
    }
}

/// What two changes are together: whether the file exists at the end counts first, then whether it is new, then its content.
fn merged(first: Kind, second: Kind) -> Kind {
    match (first, second) {
        (_, Kind::Remove | Kind::Rename) | (Kind::Remove | Kind::Rename, _) => second,
        (Kind::Create, _) | (_, Kind::Create) => Kind::Create,
        (Kind::Write, _) | (_, Kind::Write) => Kind::Write,
        (Kind::Chmod, Kind::Chmod) => Kind::Chmod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, kind: Kind) -> Change {
        Change {
            kind,
            path: path.into(),
            is_dir: false,
        }
    }

    #[test]
    fn changes_of_a_file_within_the_time_are_one() {
        let start = Instant::now();
        let mut merge = Merge::new(Duration::from_millis(200));
        for (first, second, expected) in [
            (Kind::Create, Kind::Write, Kind::Create),
            (Kind::Create, Kind::Remove, Kind::Remove),
            (Kind::Remove, Kind::Create, Kind::Create),
            (Kind::Write, Kind::Chmod, Kind::Write),
            (Kind::Chmod, Kind::Write, Kind::Write),
            (Kind::Write, Kind::Rename, Kind::Rename),
        ] {
            let changes = vec![change("a", first), change("b", first), change("a", second)];
            assert_eq!(merge.push(changes, start), []);
            assert_eq!(merge.due(), Some(start + Duration::from_millis(200)));
            assert_eq!(merge.take(start), []);
            let due = merge.take(start + Duration::from_millis(200));
            assert_eq!(due, [change("a", expected), change("b", first)]);
            assert_eq!(merge.due(), None);
        }
    }

    #[test]
    fn a_bounded_number_of_changes_is_held_back() {
        let mut merge = Merge::new(Duration::from_secs(1));
        let changes = (0..FILES + 3).map(|at| change(&at.to_string(), Kind::Create));
        let early = merge.push(changes.collect(), Instant::now());
        assert_eq!(early.len(), 3);
        assert_eq!(early[0].path, PathBuf::from("0"));
    }
}
