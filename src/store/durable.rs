//! Waiting for the disk: for a transaction of one's own, or for those of others whose changes were read.
//! Out of scope: how far the disk is ([`super::progress`]).

use tokio::sync::oneshot;

use super::backing::Batch;
use super::progress::Number;
use super::txn::Kind;
use super::{Awaited, Change, Commit, Error, Shared, Store, Txn, World, closed, lock, taken_back};

/// Tells that a transaction is on the disk, or that it was taken back. By default, of nothing that must be waited for.
#[derive(Default)]
pub struct Durable(pub(super) Awaits);

/// What it waits for.
#[derive(Default)]
pub(super) enum Awaits {
    #[default]
    Nothing,
    /// A transaction of one's own.
    Told(oneshot::Receiver<Result<(), Error>>),
    /// One that somebody else made, and whose changes were seen.
    Seen(Store, Number),
}

impl Durable {
    /// To wait for both: what was begun later is on the disk no earlier.
    #[must_use]
    pub fn followed_by(self, later: Self) -> Self {
        match later.0 {
            Awaits::Nothing => self,
            Awaits::Told(_) | Awaits::Seen(..) => later,
        }
    }

    /// Waits until it is on the disk.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Stuck`]: it was taken back.
    pub async fn wait(self) -> Result<(), Error> {
        match self.0 {
            Awaits::Nothing => Ok(()),
            Awaits::Told(told) => told.await.unwrap_or_else(|_| Err(closed())),
            Awaits::Seen(store, number) => store.shared.settled(number).await,
        }
    }
}

impl Store {
    /// As [`Store::read`], but what is found is on the disk: to be answered to a client, whom no power failure may make a
    /// liar of. Where the disk refuses, the world has gone back to what is on it, but for what was found out meanwhile.
    pub async fn read_durable<T>(&self, look: impl Fn(&World) -> T) -> T {
        for _ in 0..3 {
            let (found, seen) = {
                let world = lock(&self.shared.world);
                (look(&world), self.shared.progress.pending())
            };
            if self.seen(seen).wait().await.is_ok() {
                return found;
            }
        }
        self.read(look)
    }

    /// As [`Store::begin`], of a transaction that reads nothing but these: where it changes nothing, changes of others are not waited for,
    /// which a full disk may refuse.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_about<T, E: From<Error>>(
        &self,
        about: &[Change],
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<(T, Durable), E> {
        self.queue(&Awaited::Of(about), change)
    }

    /// To wait for what is being written about these: nothing is done on the host by what is only in memory.
    pub fn durable(&self, about: &[Change]) -> Durable {
        self.seen(self.shared.progress.pending_of(about))
    }

    /// To wait for the commit of this number.
    pub(super) fn seen(&self, number: Option<Number>) -> Durable {
        Durable(number.map_or(Awaits::Nothing, |number| Awaits::Seen(self.clone(), number)))
    }
}

impl Shared {
    /// Waits until a commit is on the disk; a batch that nobody waits for hurries now.
    async fn settled(&self, number: Number) -> Result<(), Error> {
        let (told, _nobody_listens) = oneshot::channel();
        let hurry = Commit {
            number: 0,
            batch: Batch::default(),
            kind: Kind::Observation,
            undo: Vec::new(),
            changes: Vec::new(),
            told: Some(told),
        };
        if let Some(queue) = lock(&self.queue).as_ref() {
            // A writer that has ended has settled everything.
            let _ = queue.send(hurry);
        }
        match self.progress.settled(number).await {
            true => Ok(()),
            false if self.stuck.is_cancelled() => Err(Error::Stuck),
            false => Err(match self.read_only() {
                Some(now) => Error::Write(now.why),
                None => taken_back(),
            }),
        }
    }
}
