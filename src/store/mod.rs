//! REMEMBERS: the only door to the database, and what is told to those who wait for a change.
//! Not here: the kernel, decisions; what a transaction does is a pure function over the [`World`].
//!
//! # Why
//! All state is small (a VM is about 2 kB) and read far more often than written, so reads are served from memory and the
//! database is a durable log under it. Writers queue their change, one thread writes what has queued as one batch and
//! flushes once: 256 VMs that climb together pay for a handful of flushes, not for a thousand.

mod disk;
mod events;
mod ladder;
mod lease;
mod txn;
mod world;

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{broadcast, oneshot};

use crate::api::meta::{Name, Uid};

pub use disk::Opened;
pub use events::Events;
pub use ladder::Gate;
pub use lease::{LeaseError, gives};
pub use txn::Txn;
pub use world::{Footing, Ground, Pool, World};

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
    changes: broadcast::Sender<Change>,
    events: Events,
}

/// Tells that a transaction is on the disk, or that it was taken back. By default, of nothing that must be waited for.
#[derive(Debug, Default)]
pub struct Durable(Option<oneshot::Receiver<Result<(), String>>>);

impl Durable {
    /// To wait for both: what was begun later is on the disk no earlier.
    #[must_use]
    pub fn followed_by(self, later: Self) -> Self {
        match later.0 {
            None => self,
            Some(_) => later,
        }
    }

    /// Waits until it is on the disk.
    ///
    /// # Errors
    /// [`Error::Write`]: it was taken back.
    pub async fn wait(self) -> Result<(), Error> {
        match self.0 {
            None => Ok(()),
            Some(told) => match told.await {
                Ok(told) => told.map_err(Error::Write),
                Err(_) => Err(Error::Write("the database is closed".into())),
            },
        }
    }
}

/// One transaction on its way to the disk.
struct Commit {
    writes: Vec<txn::Write>,
    undo: Vec<txn::Undo>,
    changes: Vec<Change>,
    /// Who waits for it.
    told: Option<oneshot::Sender<Result<(), String>>>,
}

/// Whether somebody waits until a transaction is on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Yes,
    No,
}

impl Store {
    /// Opens, or creates, the database in `dir`. One that cannot be read is set aside, never overwritten.
    ///
    /// # Errors
    /// [`Error::Open`] when another daemon holds it, or the folder cannot be used.
    pub fn open(dir: &Path) -> Result<(Self, Opened), Error> {
        let (disk, world, opened) = disk::open(dir)?;
        let (queue, commits) = std::sync::mpsc::channel();
        let (changes, _) = broadcast::channel(WATCH_BACKLOG);
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(None),
            changes,
            events: Events::default(),
        });
        let for_writer = Arc::downgrade(&shared);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                disk::write_commits(&disk, &commits, |batch, behind| {
                    if let Some(shared) = for_writer.upgrade() {
                        shared.take_back(batch, behind);
                    }
                });
            })
            .map_err(|e| Error::Open {
                path: dir.display().to_string(),
                why: e.to_string(),
            })?;
        *lock(&shared.writer) = Some(writer);
        Ok((Self { shared }, opened))
    }

    /// Looks at the world. Keep it short: writers wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&lock(&self.shared.world))
    }

    /// Changes the world in one transaction: all of it or, if `change` fails, none of it. Durable when this returns.
    ///
    /// # Errors
    /// What `change` said, or [`Error::Write`].
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
    /// What `change` said, or [`Error::Write`] when the database is closed.
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
    /// What `change` said, or [`Error::Write`] when the database is closed.
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
            return Ok((value, Durable(None)));
        }
        let (told, durable) = match awaited {
            Awaited::No => (None, None),
            Awaited::Yes => {
                let (told, durable) = oneshot::channel();
                (Some(told), Some(durable))
            }
        };
        // Queued under the world's lock: commits reach the disk in the order they were made.
        let sent = lock(&self.shared.queue).as_ref().map(|queue| {
            queue.send(Commit {
                writes,
                undo,
                changes: changes.clone(),
                told,
            })
        });
        drop(world);
        if !matches!(sent, Some(Ok(()))) {
            return Err(Error::Write("the database is closed".into()).into());
        }
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

    /// What happened, for people.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// Closes the database: waits for what is queued and gives its lock free.
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
    /// A batch did not become durable: the world goes back to what the disk says.
    fn take_back(&self, batch: Vec<Commit>, behind: &Receiver<Commit>) {
        let mut world = lock(&self.world);
        // What queued behind the failed batch was built on it. Nothing more can queue while the world is locked.
        let commits: Vec<Commit> = batch.into_iter().chain(behind.try_iter()).collect();
        for commit in commits.into_iter().rev() {
            let Commit {
                undo,
                changes,
                told,
                ..
            } = commit;
            for undo in undo.into_iter().rev() {
                undo(&mut world);
            }
            for change in changes {
                if let Change::Page(uid) = change {
                    // Whoever wrote it may not have waited, and go by what it said.
                    let _ = self.changes.send(Change::Vm(uid));
                }
                let _ = self.changes.send(change);
            }
            if let Some(told) = told {
                let _ = told.send(Err("the change was taken back; see the log".into()));
            }
        }
    }
}

/// A panic elsewhere leaves the data whole: every change is made by complete steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
