//! REMEMBERS: the only door to the database, and what is told to those who wait for a change.
//! Out of scope: the kernel, decisions; what a transaction does is a pure function over the [`World`].
//!
//! # Why
//! All state is small (a VM is about 2 kB) and read far more often than written, so reads are served from memory and the
//! database is a durable log under it. Writers queue their change, one thread has what has queued written as one batch and
//! flushed once: 256 VMs that climb together pay for a handful of flushes, not for a thousand.
//!
//! A database that cannot be written (its disk is full, or read-only) makes the store read-only until it can be:
//! what is found out is kept in memory, what is asked for is refused ([`Store::read_only`]). One that does not answer
//! makes the store stuck, for good: nothing may be touched that is not remembered, so all it still does is to say so at once
//! ([`Store::stuck`]).
//!
//! During a boot of the host two more files stand beside the database, in the run directory: a copy of it
//! (`state.journal`), and which VMs are being deleted (`tombstones`, also on the state disk).

mod backing;
mod begin;
pub mod checked_line;
mod closing;
mod database;
mod degraded;
mod disk;
mod durable;
mod events;
mod evidence;
mod format;
mod journal;
mod keys;
mod ladder;
mod lease;
mod load;
mod mark;
mod open;
mod progress;
mod readonly;
mod reserve;
mod seal;
mod sync;
mod taking_back;
#[cfg(test)]
mod tests;
mod tombstones;
mod txn;
mod unknown;
mod unobserved;
mod verify;
mod witness;
mod world;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

use crate::api::meta::{Name, Uid};

pub use degraded::ReadOnly;
pub use durable::Durable;
pub use events::Events;
pub use journal::JOURNAL;
pub use ladder::Gate;
pub use lease::{LeaseError, gives};
pub use open::Opened;
pub use seal::RunCopy;
pub use tombstones::TOMBSTONES;
pub use txn::Txn;
pub use world::{Contest, Footing, Ground, HostFault, Pool, World};

use backing::Batch;
use degraded::Degraded;
use durable::Awaits;
use progress::{Number, Progress};
use tombstones::Known;
use txn::Kind;
use writer::{Disk, Failure};

/// Room for watchers that are slow; one that falls further behind is told to look at everything.
const WATCH_BACKLOG: usize = 4096;

/// Why nothing can be remembered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be opened at all.
    #[error("cannot open the state database {path}: {why}")]
    Open {
        /// Its folder.
        path: String,
        /// What was found, and what to do.
        why: String,
    },
    /// A change could not be made durable, and was taken back.
    #[error("cannot write the state: {0}")]
    Write(String),
    /// The database has fallen silent. Whether the change became durable is known only to who opens it anew.
    #[error("the state database does not answer; sliced must be started anew")]
    Stuck,
}

/// What a committed transaction touched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A group was written or removed.
    Group(Name),
    /// A VM's own object was written or removed.
    Vm(Uid),
    /// A rung's page of a VM was written.
    Page(Uid),
    /// All of a VM was observed for the first time by this process, or a stage of it in vain: nothing that is stored has changed.
    Observed(Uid),
    /// A lease was written or removed.
    Lease(Name),
    /// What the host's own rules must carry.
    Ground,
    /// What was refused may be accepted now: everything is to be looked at.
    Everything,
}

/// What a store begins with.
#[derive(Default)]
struct Beginning {
    world: World,
    tombstones: Known,
    why_read_only: Option<String>,
    notes: Vec<String>,
    restricted: Vec<Name>,
}

/// What the run directory knows of a database that is gone.
pub enum Recalled {
    /// The database is as it was left.
    Nothing,
    /// All that was acknowledged in this boot.
    World(Box<World>),
    /// There is no copy, or it cannot be read, and why.
    Unreadable(String),
}

/// The handle of the store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    world: Mutex<World>,
    queue: Mutex<Option<std::sync::mpsc::Sender<Commit>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Cancelled when the disk falls silent, and then the queue is gone.
    stuck: CancellationToken,
    changes: broadcast::Sender<Change>,
    events: Events,
    degraded: Mutex<Option<Degraded>>,
    tombstones: Known,
    progress: Progress,
    /// What was noticed on opening.
    notes: Vec<String>,
    /// Groups of which the reserve had entries that the database lacked.
    restricted: Vec<Name>,
}

/// One transaction on its way to the disk.
struct Commit {
    /// 0: it changes nothing, and is there to have the others hurry.
    number: Number,
    batch: Batch,
    kind: Kind,
    undo: Vec<txn::Undo>,
    changes: Vec<Change>,
    /// Who waits for it.
    told: Option<oneshot::Sender<Result<(), Error>>>,
}

/// Whether somebody waits until a transaction is on the disk.
enum Awaited<'a> {
    Yes,
    /// And, where it changes nothing, until what was changed about these is.
    Of(&'a [Change]),
    No,
}

impl Store {
    /// A store of this world whose changes `write` makes durable, each within `patience`.
    #[cfg(test)]
    fn over(
        world: World,
        write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        patience: Duration,
    ) -> std::io::Result<Self> {
        let state = Beginning {
            world,
            ..Beginning::default()
        };
        Self::start(state, write, patience)
    }

    fn start(
        state: Beginning,
        write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        patience: Duration,
    ) -> std::io::Result<Self> {
        let disk = Disk::start(write, patience)?;
        let (queue, commits) = std::sync::mpsc::channel();
        let (changes, _) = broadcast::channel(WATCH_BACKLOG);
        let shared = Arc::new(Shared {
            world: Mutex::new(state.world),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(None),
            stuck: CancellationToken::new(),
            changes,
            events: Events::default(),
            degraded: Mutex::new(state.why_read_only.clone().map(Degraded::new)),
            progress: Progress::default(),
            tombstones: state.tombstones,
            notes: state.notes,
            restricted: state.restricted,
        });
        if let Some(why) = state.why_read_only {
            shared.tell_degraded(&why);
        }
        let for_writer = Arc::downgrade(&shared);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer::write_commits(disk, &commits, &for_writer))?;
        *lock(&shared.writer) = Some(writer);
        Ok(Self { shared })
    }

    /// Why no change is accepted now; `None`: changes are accepted.
    pub fn read_only(&self) -> Option<ReadOnly> {
        self.shared.read_only()
    }

    /// Whether a VM's deletion is proved: nothing of a VM that runs is removed without.
    pub fn has_tombstone(&self, uid: Uid) -> bool {
        self.shared.tombstones.contains(uid)
    }

    /// Every VM with a tombstone.
    pub fn tombstones(&self) -> Vec<Uid> {
        self.shared.tombstones.all()
    }

    /// Looks at the world. Keep it short: writers wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&lock(&self.shared.world))
    }

    /// Changes the world in one transaction: all of it or, if `change` fails, none of it. Durable when this returns.
    ///
    /// # Errors
    /// What `change` said, [`Error::Write`] or [`Error::Stuck`].
    pub async fn write<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (value, durable) = self.begin(change)?;
        durable.wait().await?;
        Ok(value)
    }

    /// As [`Store::write`], but lets the caller look at the host while the disk works. It must wait before it touches it.
    ///
    /// # Errors
    /// What `change` said, [`Error::Write`] when the database is closed, [`Error::Stuck`] when it does not answer.
    pub fn begin<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<(T, Durable), E> {
        self.queue(&Awaited::Yes, change)
    }

    /// As [`Store::write`], but does not wait: durable soon, and after all that was written before. For what was found out and
    /// would be found out again after a crash; never for what must be remembered before the host is touched.
    ///
    /// # Errors
    /// What `change` said, [`Error::Write`] when the database is closed, [`Error::Stuck`] when it does not answer.
    pub fn write_behind<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (value, _nobody_waits) = self.queue(&Awaited::No, change)?;
        Ok(value)
    }

    /// As [`Store::write`], of what the host was found to have: while nothing can be written, memory alone remembers it.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn recall<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let observed = |txn: &mut Txn<'_>| {
            let value = change(txn)?;
            txn.is_observation();
            Ok(value)
        };
        self.write(observed).await
    }

    /// Changes the world, and has it written.
    fn queue<T, E: From<Error>>(
        &self,
        awaited: &Awaited<'_>,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<(T, Durable), E> {
        let mut world = lock(&self.shared.world);
        let mut txn = Txn::new(&mut world);
        let value = match change(&mut txn) {
            Ok(value) => value,
            Err(error) => {
                txn.roll_back();
                return Err(error);
            }
        };
        let done = txn.finish();
        if done.writes.is_empty() && done.buried.is_empty() && !done.begins {
            let seen = match awaited {
                Awaited::Yes => self.shared.progress.pending(),
                Awaited::Of(about) => self.shared.progress.pending_of(about),
                Awaited::No => None,
            };
            drop(world);
            self.shared.tell(done.changes);
            return Ok((value, self.seen(seen)));
        }
        let (told, durable) = match awaited {
            Awaited::No => (None, Awaits::Nothing),
            Awaited::Yes | Awaited::Of(_) => {
                let (told, durable) = oneshot::channel();
                (Some(told), Awaits::Told(durable))
            }
        };
        let changes = done.changes.clone();
        let mut commit = Commit {
            number: 0,
            batch: Batch {
                entries: done.writes.into_iter().collect(),
                condemned: done.condemned,
                buried: done.buried,
                begins: done.begins,
                restricts: done.kind == Kind::Restriction,
                to_reserve: false,
            },
            kind: done.kind,
            undo: done.undo,
            changes: done.changes,
            told,
        };
        if self.shared.keep(&world, &commit) {
            drop(world);
            self.shared.tell(changes);
            return Ok((value, Durable::default()));
        }
        let number = self.shared.progress.made(&changes);
        commit.number = number;
        // Queued under the world's lock: commits reach the disk in the order they were made.
        let unsent = match lock(&self.shared.queue).as_ref() {
            Some(queue) => queue.send(commit).err().map(|unsent| unsent.0),
            None => Some(commit),
        };
        if let Some(unsent) = unsent {
            unsent.undo(&mut world);
            self.shared.progress.taken_back(number, number);
            return Err(self.shared.no_more().into());
        }
        drop(world);
        self.shared.tell(changes);
        Ok((value, Durable(durable)))
    }

    /// Changes from now on. A lagging receiver must look at everything.
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// What was noticed on opening, and needs nobody to decide anything.
    pub fn notes(&self) -> &[String] {
        &self.shared.notes
    }

    /// What could be recovered of a database that was set aside is in this one now: from the next start on it is an existing
    /// one.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Stuck`].
    pub async fn recovered(&self) -> Result<(), Error> {
        self.recall(|txn| txn.end_recovery()).await
    }

    /// What happened, for people.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// Resolves when the database has fallen silent, at once if it has already. From then on every change is refused with
    /// [`Error::Stuck`], and only a new process can go on.
    pub async fn stuck(&self) {
        self.shared.stuck.cancelled().await;
    }

    /// Closes the database: waits for what is queued and gives its lock free. One that does not answer is left as it is.
    pub fn close(&self) {
        lock(&self.shared.queue).take();
        if let Some(writer) = lock(&self.shared.writer).take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

fn taken_back() -> Error {
    Error::Write("the change was taken back; see the log".into())
}

fn closed() -> Error {
    Error::Write("the database is closed".into())
}

/// A panic elsewhere leaves the data whole: every change is made by complete steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
