//! Waiting for the disk: for the caller's own transaction, or for transactions of other callers, if their changes were read.
//! Out of scope: which commits are on the disk ([`super::progress`]).

use tokio::sync::oneshot;

use super::backing::Batch;
use super::progress::Number;
use super::txn::Kind;
use super::{
    Change, Commit, Error, Shared, Store, Txn, WaitScope, World, closed_error, rolled_back_error,
};

/// Resolves when a transaction is on the disk or was rolled back. The default value has nothing to wait for.
#[derive(Default)]
pub struct Durable(pub(super) PendingCommit);

/// What it waits for.
#[derive(Default)]
pub(super) enum PendingCommit {
    #[default]
    Nothing,
    /// The caller's own transaction.
    Own(oneshot::Receiver<Result<(), Error>>),
    /// A transaction of another caller; its changes were read.
    Other(Store, Number),
}

impl Durable {
    /// Combines two handles into one that waits for both: `later` was queued after this one, so it is not on the disk earlier.
    #[must_use]
    pub fn followed_by(self, later: Self) -> Self {
        match later.0 {
            PendingCommit::Nothing => self,
            PendingCommit::Own(_) | PendingCommit::Other(..) => later,
        }
    }

    /// Waits until the transaction is on the disk.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Stuck`]: the transaction was rolled back.
    pub async fn wait(self) -> Result<(), Error> {
        match self.0 {
            PendingCommit::Nothing => Ok(()),
            PendingCommit::Own(reply) => reply.await.unwrap_or_else(|_| Err(closed_error())),
            PendingCommit::Other(store, number) => store.shared.wait_settled(number).await,
        }
    }
}

impl Store {
    /// As [`Store::read`], but the result is on the disk, so that a response to a client remains true after a power failure. If the disk
    /// refuses the changes, the world is rolled back to what is on the disk, except for observations.
    pub async fn read_durable<T>(&self, f: impl Fn(&World) -> T) -> T {
        for _ in 0..3 {
            let (found, durable) = self.read_pending(&f);
            if durable.wait().await.is_ok() {
                return found;
            }
        }
        self.read(f)
    }

    /// As [`Store::read`], with a handle to wait until the result is on the disk.
    pub fn read_pending<T>(&self, f: impl FnOnce(&World) -> T) -> (T, Durable) {
        let (found, pending) = {
            let world = self.shared.world.lock();
            (f(&world), self.shared.progress.pending())
        };
        (found, self.durable_at(pending))
    }

    /// As [`Store::begin`], for a transaction that reads only the objects in `objects`: if it changes nothing, it does not wait for pending
    /// changes of other objects, which a full disk may refuse.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_for<T, E: From<Error>>(
        &self,
        objects: &[Change],
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<(T, Durable), E> {
        self.queue(&WaitScope::Objects(objects), change)
    }

    /// Returns a handle to wait for pending changes of these objects: the host must not be changed on the basis of state that is only in
    /// memory.
    pub fn durable(&self, objects: &[Change]) -> Durable {
        self.durable_at(self.shared.progress.pending_of(objects))
    }

    /// Returns a handle to wait for the commit with this number.
    pub(super) fn durable_at(&self, number: Option<Number>) -> Durable {
        Durable(number.map_or(PendingCommit::Nothing, |number| {
            PendingCommit::Other(self.clone(), number)
        }))
    }
}

impl Shared {
    /// Waits until a commit is on the disk; makes the writer flush at once.
    async fn wait_settled(&self, number: Number) -> Result<(), Error> {
        let (reply, _receiver) = oneshot::channel();
        let flush_request = Commit {
            number: 0,
            batch: Batch::default(),
            kind: Kind::Observation,
            undo: Vec::new(),
            changes: Vec::new(),
            reply: Some(reply),
        };
        if let Some(queue) = self.queue.lock().as_ref() {
            // Sending fails only if the writer has ended, and then every commit is settled.
            let _ = queue.send(flush_request);
        }
        match self.progress.wait_settled(number).await {
            true => Ok(()),
            false if self.stuck.is_cancelled() => Err(Error::Stuck),
            false => Err(match self.read_only() {
                Some(now) => Error::Write(now.why),
                None => rolled_back_error(),
            }),
        }
    }
}
