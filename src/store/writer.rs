//! The two threads under the store: one gathers what has queued, the other waits for the disk, so that the first need not.
//! Out of scope: how a batch is written; what is done about one that was not.
//!
//! # Why
//! A flush may never return: the disk hangs, or sled has lost a wake-up. Whoever waits for it cannot be called back, so a
//! thread is spent on that alone, and is left behind when it does not answer. There is no way on in this process then: sled
//! holds its locks, and what came of the batch is known only to who opens the database anew.

use std::io;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::backing::{Batch, joined};
use super::txn::Kind;
use super::{Commit, Shared};

/// As many commits as go into one flush.
const BATCH: usize = 512;

/// As many bytes of keys and values: what sled makes of them must stay far below two segments of its log.
const BYTES: usize = 512 << 10;

/// How long what nobody waits for waits for company.
const COMPANY: Duration = Duration::from_millis(10);

/// How long a change waits for others that comes so soon after a batch that several waited for: each batch costs two `fdatasync`, and one
/// more change in it costs next to nothing. A change that comes alone is written at once.
const SIBLINGS: Duration = Duration::from_millis(1);

/// After a write that failed, before the next is tried: a disk that was full is full a moment later.
const PAUSE: Duration = Duration::from_millis(500);

/// Between two tries of a disk that could not be written, while nobody asks for a change.
const RETRY: Duration = Duration::from_secs(1);

/// A disk that takes longer than this over a batch is taken to be silent for ever.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The thread that waits for the disk. One batch at a time is with it.
pub(super) struct Disk {
    batches: SyncSender<Batch>,
    answers: Receiver<Result<(), Failure>>,
    thread: JoinHandle<()>,
    patience: Duration,
}

/// Why a batch is not known to be durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The disk says no; it may say yes the next time.
    Refused(String),
    /// It has failed in a way that leaves open what is on it; only who opens it anew can tell. Nothing more is asked of it.
    Unknown(String),
    /// It has not answered in time, and nothing more is asked of it.
    Silent,
}

impl Disk {
    /// `write` makes a batch durable. It is dropped on the thread that it ran on, once nothing more comes.
    pub(super) fn start(
        mut write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        patience: Duration,
    ) -> io::Result<Self> {
        let (batches, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let thread = Builder::new().name("store-disk".into()).spawn(move || {
            while let Ok(batch) = asked.recv() {
                if answer.send(write(batch)).is_err() {
                    // Too late.
                    return;
                }
            }
            // It may hold the database, and giving that free may take for ever, too: `end` waits for the answers' end.
            drop(write);
            drop(answer);
        })?;
        Ok(Self {
            batches,
            answers,
            thread,
            patience,
        })
    }

    fn write(&self, batch: Batch) -> Result<(), Failure> {
        // A thread that has panicked answers no more than one that hangs.
        self.batches.send(batch).map_err(|_| Failure::Silent)?;
        match self.answers.recv_timeout(self.patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(Failure::Silent),
        }
    }

    /// Waits until the database is given free.
    fn end(self) {
        let Self {
            batches,
            answers,
            thread,
            patience,
        } = self;
        drop(batches);
        match answers.recv_timeout(patience) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => {
                tracing::error!("the state database does not close; it is left behind");
            }
            Err(RecvTimeoutError::Disconnected) => {
                if thread.join().is_err() {
                    tracing::error!("the state database's thread panicked");
                }
            }
        }
    }
}

/// Until every sender is gone: has what has queued written as one batch, and tells everyone. Ends early when the disk falls
/// silent, or leaves open what is on it.
pub(super) fn write_commits(disk: Disk, commits: &Receiver<Commit>, shared: &Weak<Shared>) {
    let mut crowded = false;
    while let Some(batch) = next(commits, shared, crowded) {
        crowded = waited_for(&batch) > 1;
        let Some(shared) = shared.upgrade() else {
            break;
        };
        // What could not be written before goes first.
        let pending = shared.pending();
        let parts = pending
            .iter()
            .chain(batch.iter().map(|commit| &commit.batch));
        let all = joined(parts);
        // One that has nothing to write is there only to be told that all before it is on the disk.
        let written = match all.is_empty() && pending.is_none() {
            true => Ok(()),
            false => disk.write(all.clone()),
        };
        match written {
            Ok(()) => {
                let last = batch.iter().map(|commit| commit.number).max();
                // 0 settles nothing.
                shared.progress.written(last.unwrap_or_default());
                for told in batch.into_iter().filter_map(|commit| commit.told) {
                    // Whoever asked may have been cancelled; the change stands.
                    let _ = told.send(Ok(()));
                }
                if let Some(pending) = &pending {
                    shared.recovered(pending);
                }
            }
            Err(Failure::Refused(error))
                if is_reservable(&batch) && disk.write(for_the_reserve(&batch)).is_ok() =>
            {
                tracing::warn!(%error, "a change that only closes is kept in the reserve");
                shared.reserved(batch, &error);
            }
            Err(Failure::Refused(error)) => {
                if !batch.is_empty() {
                    tracing::error!(%error, "cannot write the state; the changes are taken back");
                }
                shared.refused(batch, commits, &error);
                drop(shared);
                // Everyone concerned tries again at once.
                std::thread::sleep(PAUSE);
            }
            Err(Failure::Unknown(error)) => {
                tracing::error!(%error, "what of the last changes is on the state disk is not known; the changes are taken back");
                return shared.silent(batch, commits);
            }
            Err(Failure::Silent) => {
                tracing::error!(patience = ?disk.patience, "the state database does not answer; the changes are taken back");
                // The thread is left behind: it cannot be called back.
                return shared.silent(batch, commits);
            }
        }
    }
    disk.end();
}

/// What is to be written next; nothing, to try again a disk that could not be written. `None`: no sender is left.
fn next(commits: &Receiver<Commit>, shared: &Weak<Shared>, crowded: bool) -> Option<Vec<Commit>> {
    // Only this thread finds out that nothing can be written.
    let degraded = shared.upgrade().is_some_and(|s| s.read_only().is_some());
    if !degraded {
        return match commits.recv_timeout(SIBLINGS) {
            Ok(first) => Some(gather(first, commits, crowded)),
            Err(RecvTimeoutError::Disconnected) => None,
            // The crowd is over.
            Err(RecvTimeoutError::Timeout) => {
                let first = commits.recv().ok()?;
                Some(gather(first, commits, false))
            }
        };
    }
    match commits.recv_timeout(RETRY) {
        // Alone: other commits are refused.
        Ok(first) if first.kind == Kind::Restriction => Some(vec![first]),
        Ok(first) => Some(gather(first, commits, crowded)),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
    }
}

/// Whether all of a batch that must be durable now only restricts.
fn is_reservable(batch: &[Commit]) -> bool {
    let any = |kind| batch.iter().any(|commit| commit.kind == kind);
    (any(Kind::Restriction) || any(Kind::Consequence)) && !any(Kind::Intent)
}

/// What the reserve is to keep of it: the rest follows from that, or would be found again.
fn for_the_reserve(batch: &[Commit]) -> Batch {
    let restrictions = batch
        .iter()
        .filter(|commit| commit.kind == Kind::Restriction);
    let entries = restrictions.flat_map(|commit| commit.batch.entries.clone());
    Batch {
        entries: entries
            .filter(|(key, _)| key.starts_with("group/"))
            .collect(),
        to_reserve: true,
        ..Batch::default()
    }
}

/// As many as somebody waits for.
fn waited_for(batch: &[Commit]) -> usize {
    batch.iter().filter(|commit| commit.told.is_some()).count()
}

/// What has queued. As long as nobody waits for any of it, it waits a moment for a change that somebody waits for; where several were
/// waited for just now, it waits for the next ones.
fn gather(first: Commit, commits: &Receiver<Commit>, crowded: bool) -> Vec<Commit> {
    let mut bytes = first.bytes();
    let mut batch = vec![first];
    let mut more = |batch: &mut Vec<Commit>| {
        while batch.len() < BATCH && bytes < BYTES {
            let Ok(next) = commits.try_recv() else { break };
            bytes += next.bytes();
            batch.push(next);
        }
        bytes < BYTES
    };
    let room = more(&mut batch);
    if !room || batch.len() >= BATCH {
        return batch;
    }
    if crowded {
        std::thread::sleep(SIBLINGS);
        more(&mut batch);
    } else if waited_for(&batch) == 0
        && let Ok(next) = commits.recv_timeout(COMPANY)
    {
        batch.push(next);
        more(&mut batch);
    }
    batch
}
