//! REMEMBERS: the only door to the database, and what is told to those who wait for a change.
//! Not here: the kernel, decisions; what a transaction does is a pure function over the [`World`].
//!
//! # Why
//! All state is small (a VM is about 2 kB) and read far more often than written, so reads are served from memory and the
//! database is a durable log under it. Writers queue their change, one thread has what has queued written as one batch and
//! flushed once: 256 VMs that climb together pay for a handful of flushes, not for a thousand.
//!
//! A database that does not answer makes the store stuck, for good: nothing may be touched that is not remembered, so all it
//! still does is to say so at once ([`Store::stuck`]).

mod database;
mod disk;
mod durable;
mod events;
mod evidence;
mod format;
mod ladder;
mod lease;
mod load;
mod mark;
mod open;
mod progress;
mod seal;
mod sync;
#[cfg(test)]
mod tests;
mod txn;
mod unknown;
mod verify;
mod world;
mod writer;

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

use crate::api::meta::{Name, Uid};

pub use durable::Durable;
pub use events::Events;
pub use ladder::Gate;
pub use lease::{LeaseError, gives};
pub use open::Opened;
pub use seal::RunCopy;
pub use txn::Txn;
pub use world::{Footing, Ground, Pool, World};

use database::Batch;
use durable::Awaits;
use progress::{Number, Progress};
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
    #[error("cannot write the state database: {0}")]
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
    /// A lease was written or removed.
    Lease(Name),
    /// What the host's own rules must carry.
    Ground,
}

/// The door. Cheap to clone.
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
    progress: Progress,
    /// What was noticed on opening.
    notes: Vec<String>,
}

/// One transaction on its way to the disk.
struct Commit {
    /// 0: it changes nothing, and is there to have the others hurry.
    number: Number,
    writes: Vec<txn::Write>,
    undo: Vec<txn::Undo>,
    changes: Vec<Change>,
    /// Who waits for it.
    told: Option<oneshot::Sender<Result<(), Error>>>,
}

/// Whether somebody waits until a transaction is on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Yes,
    No,
}

impl Store {
    /// Opens, or creates, the database in `dir`. One that is not what was acknowledged is set aside, never overwritten; one
    /// that cannot be read, or that another version wrote, is refused and left as it is.
    ///
    /// # Errors
    /// [`Error::Open`] when another daemon holds it, or the folder cannot be used.
    pub fn open(dir: &Path) -> Result<(Self, Opened), Error> {
        Self::open_with(dir, None)
    }

    /// The same, with a copy of the seal that is good for one boot: with it even a state directory that was replaced as a
    /// whole by an older one is noticed.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(dir: &Path, run: Option<&RunCopy>) -> Result<(Self, Opened), Error> {
        let open::Open {
            mut database,
            world,
            opened,
            notes,
        } = open::open(dir, run)?;
        let unknown = world.unknown.fields().into_iter().map(|field| {
            format!("{field} was stored by a newer version; it is kept, and has no effect")
        });
        let notes = notes.into_iter().chain(unknown).collect();
        let write = move |batch| database.write(batch);
        let store =
            Self::noting(notes, world, write, writer::PATIENCE).map_err(|e| Error::Open {
                path: dir.display().to_string(),
                why: e.to_string(),
            })?;
        Ok((store, opened))
    }

    /// A store of this world whose changes `write` makes durable, each within `patience`.
    #[cfg(test)]
    fn over(
        world: World,
        write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        patience: Duration,
    ) -> std::io::Result<Self> {
        Self::noting(Vec::new(), world, write, patience)
    }

    /// The same, of which something was noticed on opening.
    fn noting(
        notes: Vec<String>,
        world: World,
        write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        patience: Duration,
    ) -> std::io::Result<Self> {
        let disk = Disk::start(write, patience)?;
        let (queue, commits) = std::sync::mpsc::channel();
        let (changes, _) = broadcast::channel(WATCH_BACKLOG);
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(None),
            stuck: CancellationToken::new(),
            changes,
            events: Events::default(),
            progress: Progress::default(),
            notes,
        });
        let for_writer = Arc::downgrade(&shared);
        let done = for_writer.clone();
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let written = |last| {
                    if let Some(shared) = done.upgrade() {
                        shared.progress.written(last);
                    }
                };
                writer::write_commits(disk, &commits, written, |batch, behind, failure| {
                    if let Some(shared) = for_writer.upgrade() {
                        shared.take_back(batch, behind, failure);
                    }
                });
            })?;
        *lock(&shared.writer) = Some(writer);
        Ok(Self { shared })
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
        self.queue(Awaited::Yes, change)
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
        let (value, _nobody_waits) = self.queue(Awaited::No, change)?;
        Ok(value)
    }

    /// Changes the world, and has it written.
    fn queue<T, E: From<Error>>(
        &self,
        awaited: Awaited,
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
        let (writes, undo, changes) = txn.finish();
        if writes.is_empty() {
            // It was so already; perhaps by a change that is not on the disk yet.
            let seen = self.shared.progress.pending();
            let seen = seen.filter(|_| awaited == Awaited::Yes);
            return Ok((value, self.seen(seen)));
        }
        let (told, durable) = match awaited {
            Awaited::No => (None, Awaits::Nothing),
            Awaited::Yes => {
                let (told, durable) = oneshot::channel();
                (Some(told), Awaits::Told(durable))
            }
        };
        let number = self.shared.progress.made(&changes);
        let commit = Commit {
            number,
            writes,
            undo,
            changes: changes.clone(),
            told,
        };
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
        for change in changes {
            // No watcher is no error.
            let _ = self.shared.changes.send(change);
        }
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
        self.write(|txn| txn.end_recovery()).await
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

impl Shared {
    /// Why nothing can be queued.
    fn no_more(&self) -> Error {
        match self.stuck.is_cancelled() {
            true => Error::Stuck,
            false => closed(),
        }
    }

    /// A batch did not become durable: the world goes back to what the disk says.
    fn take_back(&self, batch: Vec<Commit>, behind: &Receiver<Commit>, failure: &Failure) {
        let mut world = lock(&self.world);
        let why: fn() -> Error = match failure {
            Failure::Refused(_) => taken_back,
            Failure::Unknown(_) | Failure::Silent => {
                self.stuck.cancel();
                lock(&self.queue).take();
                || Error::Stuck
            }
        };
        // What queued behind the failed batch was built on it. Nothing more can queue while the world is locked.
        let commits: Vec<Commit> = batch.into_iter().chain(behind.try_iter()).collect();
        let numbers = || {
            commits
                .iter()
                .map(|commit| commit.number)
                .filter(|n| *n > 0)
        };
        if let (Some(first), Some(last)) = (numbers().min(), numbers().max()) {
            self.progress.taken_back(first, last);
        }
        for mut commit in commits.into_iter().rev() {
            let told = commit.told.take();
            for change in commit.undo(&mut world) {
                if let Change::Page(uid) = change {
                    // Whoever wrote it may not have waited, and go by what it said.
                    let _ = self.changes.send(Change::Vm(uid));
                }
                let _ = self.changes.send(change);
            }
            if let Some(told) = told {
                let _ = told.send(Err(why()));
            }
        }
    }
}

impl Commit {
    /// Of keys and values.
    fn bytes(&self) -> usize {
        let value = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let writes = self.writes.iter();
        writes.map(|(key, of)| key.len() + value(of)).sum()
    }

    /// Takes its steps back, the last first. What they had changed.
    fn undo(self, world: &mut World) -> Vec<Change> {
        for undo in self.undo.into_iter().rev() {
            undo(world);
        }
        self.changes
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
