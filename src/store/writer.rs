//! The two threads of the store: one collects queued commits into batches, the other writes them and waits for the disk.
//! Out of scope: how a batch is written; how a failed batch is handled.
//!
//! # Why
//! A flush may never return: the disk hangs, or sled has lost a wake-up. A thread that waits for it cannot be cancelled, so a separate
//! thread does this, and is abandoned if it does not answer. The process cannot continue then: sled holds its locks, and the result of
//! the batch is known only after the database is opened again.

use std::io;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::backing::{Batch, merge};
use super::failure::Failure;
use super::txn::Kind;
use super::{Commit, Shared};

/// The maximum number of commits in one flush.
const MAX_COMMITS: usize = 512;

/// The maximum number of bytes of keys and values in one flush: what sled writes for them must be much smaller than two segments of its
/// log.
const MAX_BYTES: usize = 512 << 10;

/// How long a batch without a waiting caller waits for more commits.
const IDLE_DELAY: Duration = Duration::from_millis(10);

/// How long a commit waits for others if it arrives within this time after a batch with several waiting callers: each batch costs two
/// `fdatasync` calls, and one more commit in it costs almost nothing. A single commit is written at once.
const GATHER_DELAY: Duration = Duration::from_millis(1);

/// The delay after a change that could not be written: a full disk is usually still full immediately afterwards.
const FAILURE_DELAY: Duration = Duration::from_millis(500);

/// The retry interval of a disk that could not be written: changes are refused until one succeeds. On a full disk it costs one fallocate(2).
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The timeout of a batch: a disk that takes longer is treated as one that never answers.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The handle of the thread that writes to the disk, one batch at a time.
pub(super) struct DiskThread {
    batches: SyncSender<Batch>,
    results: Receiver<Result<(), Failure>>,
    thread: JoinHandle<()>,
    timeout: Duration,
}

impl DiskThread {
    /// Starts the thread. `write` makes a batch durable; it is dropped on that thread when there are no more batches.
    pub(super) fn start(
        mut write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        patience: Duration,
    ) -> io::Result<Self> {
        let (batches, requests) = sync_channel(1);
        let (result_sender, answers) = sync_channel(1);
        let thread = Builder::new().name("store-disk".into()).spawn(move || {
            while let Ok(batch) = requests.recv() {
                if result_sender.send(write(batch)).is_err() {
                    // The timeout has expired.
                    return;
                }
            }
            // Dropping `write` may close the database, which may also never return. `end` waits until `answer` is dropped.
            drop(write);
            drop(result_sender);
        })?;
        Ok(Self {
            batches,
            results: answers,
            thread,
            timeout: patience,
        })
    }

    fn write(&self, batch: Batch) -> Result<(), Failure> {
        // A thread that has panicked is treated as one that hangs.
        self.batches.send(batch).map_err(|_| Failure::TimedOut)?;
        match self.results.recv_timeout(self.timeout) {
            Ok(result_sender) => result_sender,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(Failure::TimedOut)
            }
        }
    }

    /// Waits until the database is closed.
    fn close(self) {
        let Self {
            batches,
            results: answers,
            thread,
            timeout: patience,
        } = self;
        drop(batches);
        match answers.recv_timeout(patience) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => {
                tracing::error!(
                    "the state database does not close in time; its thread is abandoned"
                );
            }
            Err(RecvTimeoutError::Disconnected) => {
                if thread.join().is_err() {
                    tracing::error!("the thread of the state database panicked");
                }
            }
        }
    }
}

/// Writes queued commits in batches and reports the results, until all senders are dropped. Ends early if the disk does not answer,
/// or its content is unknown.
pub(super) fn write_commits(disk: DiskThread, commits: &Receiver<Commit>, shared: &Weak<Shared>) {
    let mut several_waiting = false;
    // A store that is opened on a disk with little space may be one that can be written.
    let mut first = shared
        .upgrade()
        .and_then(|shared| shared.read_only())
        .map(|_| Vec::new());
    while let Some(batch) = first
        .take()
        .or_else(|| next(commits, shared, several_waiting))
    {
        several_waiting = count_waiting(&batch) > 1;
        let Some(shared) = shared.upgrade() else {
            break;
        };
        // Entries that could not be written before come first.
        let pending = shared.pending();
        let parts = pending
            .iter()
            .chain(batch.iter().map(|commit| &commit.batch));
        let all = merge(parts);
        // A batch with nothing to write only confirms that all earlier commits are on the disk.
        let written = match all.is_empty() && pending.is_none() {
            true => Ok(()),
            false => disk.write(all.clone()),
        };
        match written {
            Ok(()) => {
                let last = batch.iter().map(|commit| commit.number).max();
                // Number 0 settles nothing.
                shared.progress.written(last.unwrap_or_default());
                for reply in batch.into_iter().filter_map(|commit| commit.reply) {
                    // The caller may have been cancelled; the change remains.
                    let _ = reply.send(Ok(()));
                }
                if let Some(pending) = &pending {
                    shared.pending_written(pending);
                }
            }
            Err(Failure::Refused(error))
                if is_reservable(&batch) && disk.write(reserve_part(&batch)).is_ok() =>
            {
                tracing::warn!(%error, "cannot write the state; a change that only restricts is stored in the reserve");
                shared.confirm_reserved(batch, &error);
            }
            Err(Failure::Refused(error)) => {
                let is_retry = batch.is_empty();
                if !is_retry {
                    tracing::error!(%error, "cannot write the state; the changes are rolled back");
                }
                shared.roll_back_refused(batch, commits, &error);
                drop(shared);
                if !is_retry {
                    // The callers retry at once.
                    std::thread::sleep(FAILURE_DELAY);
                }
            }
            Err(Failure::Unknown(error)) => {
                tracing::error!(%error, "it is not known which of the last changes are on the state disk; the changes are rolled back");
                return shared.roll_back_all(batch, commits);
            }
            Err(Failure::TimedOut) => {
                tracing::error!(patience = ?disk.timeout, "the state database does not answer; the changes are rolled back");
                // The thread is abandoned: it cannot be cancelled.
                return shared.roll_back_all(batch, commits);
            }
        }
    }
    disk.close();
}

/// Returns the next commits to write; an empty list to retry a disk that could not be written. `None`: all senders are dropped.
fn next(
    commits: &Receiver<Commit>,
    shared: &Weak<Shared>,
    several_waiting: bool,
) -> Option<Vec<Commit>> {
    // Only this thread changes whether the store is degraded.
    let degraded = shared.upgrade().is_some_and(|s| s.read_only().is_some());
    if !degraded {
        return match commits.recv_timeout(GATHER_DELAY) {
            Ok(first) => Some(gather(first, commits, several_waiting)),
            Err(RecvTimeoutError::Disconnected) => None,
            // No commit followed the last batch immediately.
            Err(RecvTimeoutError::Timeout) => {
                let first = commits.recv().ok()?;
                Some(gather(first, commits, false))
            }
        };
    }
    match commits.recv_timeout(RETRY_INTERVAL) {
        // Written alone: other commits are refused.
        Ok(first) if first.kind == Kind::Restriction => Some(vec![first]),
        Ok(first) => Some(gather(first, commits, several_waiting)),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
    }
}

/// Whether the reserve can make a batch durable: it contains restrictions or their consequences, and no intent.
fn is_reservable(batch: &[Commit]) -> bool {
    let any = |kind| batch.iter().any(|commit| commit.kind == kind);
    (any(Kind::Restriction) || any(Kind::Consequence)) && !any(Kind::Intent)
}

/// The part of a batch for the reserve: the rest is derived from it, or would be observed again.
fn reserve_part(batch: &[Commit]) -> Batch {
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

/// The number of commits with a waiting caller.
fn count_waiting(batch: &[Commit]) -> usize {
    batch.iter().filter(|commit| commit.reply.is_some()).count()
}

/// Collects the queued commits into a batch. If no caller waits for any of them, it waits briefly for more; after a batch with several
/// waiting callers (`several_waiting`), it waits for the next ones.
fn gather(first: Commit, commits: &Receiver<Commit>, several_waiting: bool) -> Vec<Commit> {
    let mut bytes = first.bytes();
    let mut batch = vec![first];
    let mut collect = |batch: &mut Vec<Commit>| {
        while batch.len() < MAX_COMMITS && bytes < MAX_BYTES {
            let Ok(next) = commits.try_recv() else { break };
            bytes += next.bytes();
            batch.push(next);
        }
        bytes < MAX_BYTES
    };
    let has_space = collect(&mut batch);
    if !has_space || batch.len() >= MAX_COMMITS {
        return batch;
    }
    if several_waiting {
        std::thread::sleep(GATHER_DELAY);
        collect(&mut batch);
    } else if count_waiting(&batch) == 0
        && let Ok(next) = commits.recv_timeout(IDLE_DELAY)
    {
        batch.push(next);
        collect(&mut batch);
    }
    batch
}
