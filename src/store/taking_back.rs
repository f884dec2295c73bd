//! Rolls back changes that the disk did not accept.
//! Out of scope: writing them ([`super::writer`]).

use std::sync::mpsc::Receiver;

use super::world::World;
use super::{Change, Commit, Error, Shared, closed_error};

impl Shared {
    /// The error if nothing can be queued.
    pub(super) fn queue_error(&self) -> Error {
        match self.stuck.is_cancelled() {
            true => Error::Stuck,
            false => closed_error(),
        }
    }

    pub(super) fn notify(&self, changes: Vec<Change>) {
        for change in changes {
            // Sending fails only if there is no watcher.
            let _ = self.changes.send(change);
        }
    }

    /// The disk did not answer for this batch: the batch and everything queued is rolled back, and nothing can be queued any more.
    pub(super) fn roll_back_all(&self, batch: Vec<Commit>, queued: &Receiver<Commit>) {
        let mut world = self.world.lock();
        self.stuck.cancel();
        self.queue.lock().take();
        let commits: Vec<Commit> = batch.into_iter().chain(queued.try_iter()).collect();
        self.mark_rolled_back(&commits);
        for mut commit in commits.into_iter().rev() {
            let reply = commit.reply.take();
            self.roll_back(commit, &mut world);
            if let Some(caller) = reply {
                let _ = caller.send(Err(Error::Stuck));
            }
        }
    }

    /// Records these commits as rolled back, which ends all waits for them.
    pub(super) fn mark_rolled_back(&self, commits: &[Commit]) {
        let numbers = || {
            commits
                .iter()
                .map(|commit| commit.number)
                .filter(|n| *n > 0)
        };
        if let (Some(first), Some(last)) = (numbers().min(), numbers().max()) {
            self.progress.rolled_back(first, last);
        }
    }

    /// Rolls back the most recent commit in the world.
    pub(super) fn roll_back(&self, commit: Commit, world: &mut World) {
        world.rollbacks += 1;
        for change in commit.undo(world) {
            if let Change::StageStatus(uid) = change {
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
