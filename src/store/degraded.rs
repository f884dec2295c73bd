//! A store whose disk cannot be written: observations stay in memory, changes are refused, and it recovers by itself.
//! Out of scope: trying the disk (the writer); opening a database that cannot be written ([`super::readonly`]).
//!
//! # Why
//! What runs must stay enforced and repaired, and a repair writes what it found. That is an observation
//! ([`Kind::Observation`]): after a crash it is found again. A change that somebody asked for, or that lets a stage touch the host
//! for the first time, is an intent, and is acknowledged only when it is on stable storage.

use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;

use super::backing::{Batch, joined};
use super::journal::Entries;
use super::txn::Kind;
use super::world::World;
use super::{Change, Commit, Error, Shared, keys, lock};
use crate::api::event::EventType;
use crate::api::meta::Timestamp;
use crate::clock;

/// Why a store accepts no change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOnly {
    /// The path, and what the system says.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
}

/// While nothing can be written.
pub(super) struct Degraded {
    now: ReadOnly,
    /// What the database must be told first: each key as the world has it.
    pending: Entries,
}

impl Degraded {
    pub(super) fn new(why: String) -> Self {
        Self {
            now: ReadOnly {
                why,
                since: clock::now(),
            },
            pending: BTreeMap::new(),
        }
    }
}

impl Shared {
    /// Why nothing can be written, if that is so.
    pub(super) fn read_only(&self) -> Option<ReadOnly> {
        lock(&self.degraded).as_ref().map(|it| it.now.clone())
    }

    /// Takes an observation into memory alone, if nothing can be written now. To be called with the world locked.
    pub(super) fn keep(&self, world: &World, commit: &Commit) -> bool {
        let mut degraded = lock(&self.degraded);
        match degraded.as_mut() {
            // What it follows from may not be durable yet: then it takes its turn behind that.
            Some(now)
                if commit.kind == Kind::Observation
                    || (commit.kind == Kind::Consequence && self.progress.pending().is_none()) =>
            {
                note(&mut now.pending, world, &commit.batch);
                true
            }
            Some(_) | None => false,
        }
    }

    /// What is to be written before anything else.
    pub(super) fn pending(&self) -> Option<Batch> {
        let degraded = lock(&self.degraded);
        degraded.as_ref().map(|now| Batch {
            entries: now.pending.clone(),
            ..Batch::default()
        })
    }

    /// What was pending is written, with a batch after it whose values for the same keys are the newer ones. False: there is more by
    /// now.
    pub(super) fn recovered(&self, was_pending: &Batch) -> bool {
        let _world = lock(&self.world);
        let mut degraded = lock(&self.degraded);
        let Some(now) = degraded.as_mut() else {
            return true;
        };
        now.pending
            .retain(|key, value| was_pending.entries.get(key) != Some(value));
        if !now.pending.is_empty() {
            return false;
        }
        *degraded = None;
        drop(degraded);
        self.note_event(
            EventType::Normal,
            "StateWritable",
            "changes are accepted again",
        );
        // What was refused meanwhile is tried again.
        let _ = self.changes.send(Change::Everything);
        true
    }

    /// What of a batch had to be is in the reserve, and memory remembers the rest until the database can be written.
    pub(super) fn reserved(&self, batch: Vec<Commit>, why: &str) {
        let _world = lock(&self.world);
        let mut degraded = lock(&self.degraded);
        let is_news = degraded.as_ref().is_none_or(|it| it.now.why != why);
        let it = degraded.get_or_insert_with(|| Degraded::new(String::new()));
        why.clone_into(&mut it.now.why);
        for commit in &batch {
            it.pending.extend(commit.batch.entries.clone());
        }
        drop(degraded);
        if is_news {
            self.tell_degraded(why);
        }
        let last = batch.iter().map(|commit| commit.number).max();
        self.progress.written(last.unwrap_or_default());
        for told in batch.into_iter().filter_map(|commit| commit.told) {
            let _ = told.send(Ok(()));
        }
    }

    /// A batch did not become durable: the world goes back to what the disk says.
    pub(super) fn refused(&self, batch: Vec<Commit>, behind: &Receiver<Commit>, why: &str) {
        let mut world = lock(&self.world);
        // What queued behind the failed batch was built on it. Nothing more can queue while the world is locked.
        let commits: Vec<Commit> = batch.into_iter().chain(behind.try_iter()).collect();
        let all = joined(commits.iter().map(|commit| &commit.batch));
        self.settle_taken_back(&commits);
        for mut commit in commits.into_iter().rev() {
            let told = commit.told.take();
            self.take_back(commit, &mut world);
            if let Some(told) = told {
                let _ = told.send(Err(Error::Write(why.to_owned())));
            }
        }
        let mut degraded = lock(&self.degraded);
        let is_news = degraded.as_ref().is_none_or(|it| it.now.why != why);
        let it = degraded.get_or_insert_with(|| Degraded::new(String::new()));
        why.clone_into(&mut it.now.why);
        // Part of it may have reached the disk all the same.
        note(&mut it.pending, &world, &all);
        drop(degraded);
        if is_news {
            self.tell_degraded(why);
        }
    }

    pub(super) fn tell_degraded(&self, why: &str) {
        let message = format!(
            "{why}; what runs stays enforced and repaired, changes are refused until it can be written"
        );
        self.note_event(EventType::Warning, "StateNotWritable", &message);
    }

    fn note_event(&self, kind: EventType, reason: &str, message: &str) {
        self.events
            .note(clock::now(), kind, "ground", reason, message);
    }
}

/// The keys of a batch, as the world has them.
fn note(pending: &mut Entries, world: &World, batch: &Batch) {
    for key in batch.entries.keys() {
        pending.insert(key.clone(), keys::encode(world, key));
    }
}
