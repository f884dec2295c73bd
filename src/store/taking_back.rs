//! Rolls back changes that the disk did not accept.
//! Out of scope: writing them ([`super::writer`]).

use std::sync::mpsc::Receiver;

use super::world::World;
use super::{Change, Commit, Error, Shared, closed, lock};

impl Shared {
    /// The error if nothing can be queued.
    pub(super) fn no_more(&self) -> Error {
        match self.stuck.is_cancelled() {
            true => Error::Stuck,
            false => closed(),
        }
    }

    pub(super) fn tell(&self, changes: Vec<Change>) {
        for change in changes {
            // Sending fails only if there is no watcher.
            let _ = self.changes.send(change);
        }
    }

    /// The disk did not answer for this batch: the batch and everything queued is rolled back, and nothing can be queued any more.
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

    /// Records these commits as rolled back, which ends all waits for them.
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

    /// Rolls back the most recent commit in the world.
    pub(super) fn take_back(&self, commit: Commit, world: &mut World) {
        for change in commit.undo(world) {
            if let Change::Page(uid) = change {
                // The writer of the stage status may not have waited for the disk, and may rely on what was rolled back.
                let _ = self.changes.send(Change::Vm(uid));
            }
            let _ = self.changes.send(change);
        }
    }
}

impl Commit {
    /// The size of all keys and values.
    pub(super) fn bytes(&self) -> usize {
        let value = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let writes = self.batch.entries.iter();
        writes.map(|(key, of)| key.len() + value(of)).sum()
    }

    /// Undoes the steps of the commit in reverse order. Returns the changes that it had made.
    pub(super) fn undo(self, world: &mut World) -> Vec<Change> {
        for undo in self.undo.into_iter().rev() {
            undo(world);
        }
        self.changes
    }
}
