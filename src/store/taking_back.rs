//! What becomes of changes that the disk did not take.
//! Out of scope: writing them ([`super::writer`]).

use std::sync::mpsc::Receiver;

use super::world::World;
use super::{Change, Commit, Error, Shared, closed, lock};

impl Shared {
    /// Why nothing can be queued.
    pub(super) fn no_more(&self) -> Error {
        match self.stuck.is_cancelled() {
            true => Error::Stuck,
            false => closed(),
        }
    }

    pub(super) fn tell(&self, changes: Vec<Change>) {
        for change in changes {
            // No watcher is no error.
            let _ = self.changes.send(change);
        }
    }

    /// The disk has fallen silent with this batch: it is taken back, and nothing can be queued any more.
    pub(super) fn silent(&self, batch: Vec<Commit>, behind: &Receiver<Commit>) {
        let mut world = lock(&self.world);
        self.stuck.cancel();
        lock(&self.queue).take();
        let commits: Vec<Commit> = batch.into_iter().chain(behind.try_iter()).collect();
        self.settle_taken_back(&commits);
        for mut commit in commits.into_iter().rev() {
            let told = commit.told.take();
            self.take_back(commit, &mut world);
            if let Some(told) = told {
                let _ = told.send(Err(Error::Stuck));
            }
        }
    }

    /// Nobody waits for these any more.
    pub(super) fn settle_taken_back(&self, commits: &[Commit]) {
        let numbers = || {
            commits
                .iter()
                .map(|commit| commit.number)
                .filter(|n| *n > 0)
        };
        if let (Some(first), Some(last)) = (numbers().min(), numbers().max()) {
            self.progress.taken_back(first, last);
        }
    }

    /// The world goes back to what it was before a commit that was the last one.
    pub(super) fn take_back(&self, commit: Commit, world: &mut World) {
        for change in commit.undo(world) {
            if let Change::Page(uid) = change {
                // Its writer may not have waited for the disk, and may rely on what was taken back.
                let _ = self.changes.send(Change::Vm(uid));
            }
            let _ = self.changes.send(change);
        }
    }
}

impl Commit {
    /// Of keys and values.
    pub(super) fn bytes(&self) -> usize {
        let value = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let writes = self.batch.entries.iter();
        writes.map(|(key, of)| key.len() + value(of)).sum()
    }

    /// Takes its steps back, the last first. What they had changed.
    pub(super) fn undo(self, world: &mut World) -> Vec<Change> {
        for undo in self.undo.into_iter().rev() {
            undo(world);
        }
        self.changes
    }
}
