//! A store with a disk that cannot be written: observations stay in memory, changes are refused, and it recovers by itself.
//! Out of scope: retrying the write (the writer); opening a database that cannot be written ([`super::readonly`]).
//!
//! # Why
//! The rules of running VMs must stay enforced and repaired, and a repair writes what it observed. That is an observation
//! ([`Kind::Observation`]): it is made again after a crash. A change that was requested, or that allows a stage to change the host
//! for the first time, is an intent, and is acknowledged only when it is on stable storage.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use super::backing::{Batch, merge};
use super::journal::Entries;
use super::txn::{Kind, Txn};
use super::world::World;
use super::{Change, Commit, Error, Shared, keys};
use crate::api::event::{EventReason, EventType, ObjectRef};
use crate::api::meta::Timestamp;
use crate::clock;

/// The read-only state of a store: why no change is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOnly {
    /// The path and the error of the system.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
}

/// The state of the store while nothing can be written.
pub(super) struct Degraded {
    now: ReadOnly,
    /// What must be written to the database first: each key with its value in the world.
    pending: Entries,
}

impl Degraded {
    pub(super) fn new(reason: String) -> Self {
        Self {
            now: ReadOnly {
                why: reason,
                since: clock::now(),
            },
            pending: BTreeMap::new(),
        }
    }
}

impl Shared {
    /// The reason why nothing can be written, if so.
    pub(super) fn read_only(&self) -> Option<ReadOnly> {
        self.degraded.lock().as_ref().map(|state| state.now.clone())
    }

    /// The error of an intent while nothing can be written. It is not queued: others would wait for it, and a repair that does would fail
    /// with it. The writer finds out itself when the disk can be written again. The world must be locked.
    pub(super) fn refusal(&self, txn: &Txn<'_>) -> Option<Error> {
        let degraded = self.degraded.lock();
        let state = degraded.as_ref().filter(|_| txn.is_intent())?;
        Some(Error::Write(state.now.why.clone()))
    }

    /// Keeps an observation in memory only, if nothing can be written now. Returns whether it did. The world must be locked.
    pub(super) fn keep_in_memory(&self, world: &World, commit: &Commit) -> bool {
        let mut degraded = self.degraded.lock();
        match degraded.as_mut() {
            // The change that it follows from may not be durable yet: then it is queued behind that change.
            Some(now)
                if commit.kind == Kind::Observation
                    || (commit.kind == Kind::Consequence && self.progress.pending().is_none()) =>
            {
                add_pending(&mut now.pending, world, &commit.batch);
                true
            }
            Some(_) | None => false,
        }
    }

    /// What must be written before anything else.
    pub(super) fn pending(&self) -> Option<Batch> {
        let degraded = self.degraded.lock();
        degraded.as_ref().map(|state| Batch {
            entries: state.pending.clone(),
            ..Batch::default()
        })
    }

    /// Records that the pending entries were written, together with a batch that has newer values for the same keys. Returns false if
    /// there are more pending entries by now.
    pub(super) fn pending_written(&self, written: &Batch) -> bool {
        let _world = self.world.lock();
        let mut degraded = self.degraded.lock();
        let Some(state) = degraded.as_mut() else {
            return true;
        };
        state
            .pending
            .retain(|key, value| written.entries.get(key) != Some(value));
        if !state.pending.is_empty() {
            return false;
        }
        *degraded = None;
        drop(degraded);
        self.note_event(
            EventType::Normal,
            EventReason::StateWritable,
            "changes are accepted again",
        );
        // Changes that were refused meanwhile are retried.
        let _ = self.changes.send(Change::Everything);
        true
    }

    /// Records that the restrictions of a batch are in the reserve. The rest is kept in memory until the database can be written.
    pub(super) fn confirm_reserved(&self, batch: Vec<Commit>, reason: &str) {
        let _world = self.world.lock();
        let mut degraded = self.degraded.lock();
        let is_new = degraded
            .as_ref()
            .is_none_or(|state| state.now.why != reason);
        let it = degraded.get_or_insert_with(|| Degraded::new(String::new()));
        reason.clone_into(&mut it.now.why);
        for commit in &batch {
            it.pending.extend(commit.batch.entries.clone());
        }
        drop(degraded);
        if is_new {
            self.report_degraded(reason);
        }
        let last = batch.iter().map(|commit| commit.number).max();
        self.progress.written(last.unwrap_or_default());
        for reply in batch.into_iter().filter_map(|commit| commit.reply) {
            let _ = reply.send(Ok(()));
        }
    }

    /// Rolls back a batch that did not become durable: the world returns to the state on the disk.
    pub(super) fn roll_back_refused(
        &self,
        batch: Vec<Commit>,
        queued: &Receiver<Commit>,
        reason: &str,
    ) {
        let mut world = self.world.lock();
        // Changes that are queued behind the failed batch depend on it. Nothing more can be queued while the world is locked.
        let commits: Vec<Commit> = batch.into_iter().chain(queued.try_iter()).collect();
        let all = merge(commits.iter().map(|commit| &commit.batch));
        self.mark_rolled_back(&commits);
        for mut commit in commits.into_iter().rev() {
            let reply = commit.reply.take();
            self.roll_back(commit, &mut world);
            if let Some(caller) = reply {
                let _ = caller.send(Err(Error::Write(reason.to_owned())));
            }
        }
        let mut degraded = self.degraded.lock();
        let is_news = degraded
            .as_ref()
            .is_none_or(|state| state.now.why != reason);
        let it = degraded.get_or_insert_with(|| Degraded::new(String::new()));
        reason.clone_into(&mut it.now.why);
        // Part of the batch may have reached the disk nevertheless.
        add_pending(&mut it.pending, &world, &all);
        drop(degraded);
        if is_news {
            self.report_degraded(reason);
        }
    }

    pub(super) fn view_changed(&self) {
        let _ = self.changes.send(Change::View);
    }

    pub(super) fn report_degraded(&self, reason: &str) {
        let message = format!(
            "{reason}; running VMs are still enforced and repaired, but changes are refused until the state can be written"
        );
        self.note_event(EventType::Warning, EventReason::StateNotWritable, &message);
        self.view_changed();
    }

    fn note_event(&self, kind: EventType, reason: EventReason, message: &str) {
        self.events
            .note(clock::now(), kind, &ObjectRef::Host, reason, message);
    }
}

/// Adds the keys of a batch, with their values in the world, to the pending entries.
fn add_pending(pending: &mut Entries, world: &World, batch: &Batch) {
    for key in batch.entries.keys() {
        pending.insert(key.clone(), keys::encode(world, key));
    }
}
