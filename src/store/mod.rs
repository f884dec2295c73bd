//! The store: the only access to the database, and notifications of changes.
//! Out of scope: the kernel, decisions. What a transaction does is a pure function over the [`World`].
//!
//! # Why
//! All state is small (a VM is about 2 kB) and is read far more often than written, so reads are served from memory and the
//! database is a durable log. Writers queue their changes, and one thread writes everything that is queued as one batch
//! and flushes it once: 256 VMs that are brought up together cost a few flushes instead of a thousand.
//!
//! If the database cannot be written (its disk is full or read-only), the store is read-only until it can: observations are kept in
//! memory, and requested changes are refused ([`Store::read_only`]). If the database does not answer, the store is permanently stuck:
//! the host must not be changed without a durable record, so every change fails at once ([`Store::stuck`]).
//!
//! During a boot of the host the run directory contains two more files: a copy of the database (`state.journal`), and the
//! list of VMs that are being deleted (`tombstones`, also on the state disk).

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
mod failure;
mod fleet;
mod fleet_state;
mod format;
mod integrity;
mod journal;
mod keys;
mod lease;
mod load;
mod observation;
mod open;
mod position;
mod progress;
mod readonly;
mod reserve;
mod retention;
mod stages;
mod sync;
mod taking_back;
#[cfg(test)]
mod tests;
mod tombstones;
mod txn;
mod unknown;
mod unobserved;
mod verify;
mod vmm_ids;
mod witness;
mod world;
mod writer;

use parking_lot::Mutex;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

use crate::api::meta::{Name, Uid};

pub use degraded::ReadOnly;
pub use durable::Durable;
pub use events::{Events, LaterEvents};
pub use integrity::RunCopy;
pub use journal::JOURNAL;
pub use lease::{LeaseError, is_valid_address};
pub use open::Opened;
pub use stages::Acquisition;
pub use tombstones::TOMBSTONES;
pub use txn::Txn;
pub use world::{ConflictingWriter, HostFault, HostNetworkStatus, HostRequirements, Pool, World};

use backing::Batch;
use degraded::Degraded;
use durable::PendingCommit;
use failure::Failure;
use progress::{Number, Progress};
use tombstones::TombstoneSet;
use txn::Kind;
use writer::DiskThread;

/// The number of changes that are buffered for a slow watcher; one that falls further behind must read everything again.
const WATCH_BACKLOG: usize = 4096;

/// Why nothing can be stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be opened.
    #[error("cannot open the state database {path}: {why}")]
    Open {
        /// Its directory.
        path: String,
        /// The cause and the remedy.
        why: String,
    },
    /// A change could not be made durable, and was rolled back.
    #[error("cannot write the state: {0}")]
    Write(String),
    /// The database does not answer. Whether the change became durable is known only after it is opened again.
    #[error("the state database does not answer; restart sliced")]
    Stuck,
}

/// A change made by a committed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// A group was written or removed.
    Group(Name),
    /// A VM object was written or removed.
    Vm(Uid),
    /// The status of a stage of a VM was written.
    StageStatus(Uid),
    /// All stages of a VM were observed for the first time by this process, or the observation of a stage failed. Nothing that is stored
    /// has changed.
    Observed(Uid),
    /// What users see of objects has changed although nothing that is stored has: why a group is blocked, the problems of a manifest, or
    /// that nothing can be written.
    View,
    /// Whether the agent of a VM answers has changed, which is not stored.
    Agent(Uid),
    /// A lease was written or removed.
    Lease(Name),
    /// The host requirements: what the rules and bridges of the host must provide.
    HostNetwork,
    /// Changes that were refused may be accepted now: everything must be read again.
    Everything,
}

/// The initial state of a store.
#[derive(Default)]
struct InitialState {
    world: World,
    tombstones: TombstoneSet,
    read_only_reason: Option<String>,
    notes: Vec<String>,
    restricted: Vec<Name>,
}

/// The state that the run directory contains of a database that is lost.
pub enum RunDirState {
    /// Nothing to recover: the database is intact, or there is no journal of this boot.
    Nothing,
    /// Everything that was acknowledged in this boot.
    World(Box<World>),
    /// The journal cannot be read, with the reason.
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
    /// Cancelled when the database does not answer; then `queue` is `None`.
    stuck: CancellationToken,
    changes: broadcast::Sender<Change>,
    events: Events,
    degraded: Mutex<Option<Degraded>>,
    tombstones: TombstoneSet,
    progress: Progress,
    /// Notes made when the store was opened.
    notes: Vec<String>,
    /// Groups for which the reserve had entries that the database did not have.
    restricted: Vec<Name>,
}

/// A transaction that is queued for the disk.
struct Commit {
    /// 0: it changes nothing and only makes the writer flush at once.
    number: Number,
    batch: Batch,
    kind: Kind,
    undo: Vec<txn::Undo>,
    changes: Vec<Change>,
    /// Receives the result, if a caller waits for it.
    reply: Option<oneshot::Sender<Result<(), Error>>>,
}

/// Whether the caller waits until a transaction is on the disk.
enum WaitScope<'a> {
    All,
    /// As `Yes`; a transaction that changes nothing waits only for pending changes of these objects.
    Objects(&'a [Change]),
    Nothing,
}

impl Store {
    /// Creates a store with this content. `write` makes a batch durable within `timeout`.
    #[cfg(test)]
    fn with_write(
        world: World,
        write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        timeout: Duration,
    ) -> std::io::Result<Self> {
        let state = InitialState {
            world,
            ..InitialState::default()
        };
        Self::start(state, write, timeout)
    }

    fn start(
        state: InitialState,
        write: impl FnMut(Batch) -> Result<(), Failure> + Send + 'static,
        timeout: Duration,
    ) -> std::io::Result<Self> {
        let disk = DiskThread::start(write, timeout)?;
        let (queue, commits) = std::sync::mpsc::channel();
        let (changes, _) = broadcast::channel(WATCH_BACKLOG);
        let events = Events::of(&state.world);
        let shared = Arc::new(Shared {
            world: Mutex::new(state.world),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(None),
            stuck: CancellationToken::new(),
            changes,
            events,
            degraded: Mutex::new(state.read_only_reason.clone().map(Degraded::new)),
            progress: Progress::default(),
            tombstones: state.tombstones,
            notes: state.notes,
            restricted: state.restricted,
        });
        if let Some(reason) = state.read_only_reason {
            shared.report_degraded(&reason);
        }
        let weak = Arc::downgrade(&shared);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer::write_commits(disk, &commits, &weak))?;
        *shared.writer.lock() = Some(writer);
        Ok(Self { shared })
    }

    /// The reason why no change is accepted now. `None`: changes are accepted.
    pub fn read_only(&self) -> Option<ReadOnly> {
        self.shared.read_only()
    }

    /// Wakes watches: something that users see of objects and that is not stored has changed.
    pub fn view_changed(&self) {
        self.shared.view_changed();
    }

    /// Whether a VM has a tombstone, which proves its deletion: nothing of a running VM is removed without it.
    pub fn has_tombstone(&self, uid: Uid) -> bool {
        self.shared.tombstones.contains(uid)
    }

    /// All VMs with a tombstone.
    pub fn tombstones(&self) -> Vec<Uid> {
        self.shared.tombstones.all()
    }

    /// Reads the world. `f` must be short: writers wait meanwhile.
    pub fn read<T>(&self, f: impl FnOnce(&World) -> T) -> T {
        f(&self.shared.world.lock())
    }

    /// Returns the result of a transaction that is always rolled back: what it would change.
    pub fn dry_run<T>(&self, change: impl FnOnce(&mut Txn<'_>) -> T) -> T {
        let mut world = self.shared.world.lock();
        let mut txn = Txn::new(&mut world);
        let value = change(&mut txn);
        txn.roll_back();
        value
    }

    /// Changes the world in one transaction; if `change` fails, nothing changes. The transaction is durable when this returns.
    ///
    /// # Errors
    /// The error of `change`, [`Error::Write`] or [`Error::Stuck`].
    pub async fn write<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (value, durable) = self.begin(change)?;
        durable.wait().await?;
        Ok(value)
    }

    /// As [`Store::write`], but the caller can read the host's state during the disk write. It must wait before it changes the host.
    ///
    /// # Errors
    /// The error of `change`, [`Error::Write`] if the database is closed, [`Error::Stuck`] if it does not answer.
    pub fn begin<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<(T, Durable), E> {
        self.queue(&WaitScope::All, change)
    }

    /// As [`Store::write`], but does not wait: the change becomes durable soon, after all earlier changes. For observations, which are
    /// made again after a crash; never for what must be durable before the host is changed.
    ///
    /// # Errors
    /// The error of `change`, [`Error::Write`] if the database is closed, [`Error::Stuck`] if it does not answer.
    pub fn write_behind<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (value, _nobody_waits) = self.queue(&WaitScope::Nothing, change)?;
        Ok(value)
    }

    /// As [`Store::write`], for observations of the host: while nothing can be written, they are kept in memory only.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn write_observation<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let observed = |txn: &mut Txn<'_>| {
            let value = change(txn)?;
            txn.mark_observation();
            Ok(value)
        };
        self.write(observed).await
    }

    /// Changes the world and queues the change for the disk.
    fn queue<T, E: From<Error>>(
        &self,
        scope: &WaitScope<'_>,
        change: impl FnOnce(&mut Txn<'_>) -> Result<T, E>,
    ) -> Result<(T, Durable), E> {
        let mut world = self.shared.world.lock();
        let mut txn = Txn::new(&mut world);
        let value = match change(&mut txn) {
            Ok(value) => value,
            Err(error) => {
                txn.roll_back();
                return Err(error);
            }
        };
        if let Some(refusal) = self.shared.refusal(&txn) {
            txn.roll_back();
            return Err(refusal.into());
        }
        let finished = txn.finish();
        self.shared.events.learn(&world, &finished.changes);
        if finished.writes.is_empty() && finished.buried.is_empty() && !finished.begins {
            let pending = match scope {
                WaitScope::All => self.shared.progress.pending(),
                WaitScope::Objects(objects) => self.shared.progress.pending_of(objects),
                WaitScope::Nothing => None,
            };
            drop(world);
            self.shared.notify(finished.changes);
            return Ok((value, self.durable_at(pending)));
        }
        let (reply, durable) = match scope {
            WaitScope::Nothing => (None, PendingCommit::Nothing),
            WaitScope::All | WaitScope::Objects(_) => {
                let (caller, durable) = oneshot::channel();
                (Some(caller), PendingCommit::Own(durable))
            }
        };
        let changes = finished.changes.clone();
        let mut commit = Commit {
            number: 0,
            batch: Batch {
                entries: finished.writes.into_iter().collect(),
                deleting: finished.condemned,
                removed: finished.buried,
                ends_recovery: finished.begins,
                restricts: finished.kind == Kind::Restriction,
                to_reserve: false,
            },
            kind: finished.kind,
            undo: finished.undo,
            changes: finished.changes,
            reply,
        };
        if self.shared.keep_in_memory(&world, &commit) {
            drop(world);
            self.shared.notify(changes);
            return Ok((value, Durable::default()));
        }
        let number = self.shared.progress.add(&changes);
        commit.number = number;
        // Queued while the world is locked: commits reach the disk in the order in which they were made.
        let rejected = match self.shared.queue.lock().as_ref() {
            Some(queue) => queue.send(commit).err().map(|unsent| unsent.0),
            None => Some(commit),
        };
        if let Some(unsent) = rejected {
            unsent.undo(&mut world);
            self.shared.progress.rolled_back(number, number);
            return Err(self.shared.queue_error().into());
        }
        drop(world);
        self.shared.notify(changes);
        Ok((value, Durable(durable)))
    }

    /// Subscribes to changes. A receiver that lags must read everything again.
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.shared.changes.subscribe()
    }

    /// Notifies watchers that an agent has begun or ceased to answer.
    pub fn notify_agent(&self, uid: Uid) {
        // An error: nobody watches.
        let _ = self.shared.changes.send(Change::Agent(uid));
    }

    /// Notes made when the store was opened; they need no decision by the user.
    pub fn notes(&self) -> &[String] {
        &self.shared.notes
    }

    /// Records that everything that could be recovered of a database that was set aside is in this one: the next start reports
    /// [`Opened::Existing`].
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Stuck`].
    pub async fn end_recovery(&self) -> Result<(), Error> {
        self.write_observation(|txn| txn.end_recovery()).await
    }

    /// The events for users.
    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    /// Resolves when the database does not answer, at once if that is so already. From then on every change fails with
    /// [`Error::Stuck`], and the process must be restarted.
    pub async fn stuck(&self) {
        self.shared.stuck.cancelled().await;
    }

    /// Closes the database: waits until all queued changes are written and releases its lock. A database that does not answer is not
    /// closed.
    pub fn close(&self) {
        self.shared.queue.lock().take();
        if let Some(writer) = self.shared.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the writer thread of the store panicked");
        }
    }
}

fn rolled_back_error() -> Error {
    Error::Write("the change was rolled back; see the log".into())
}

fn closed_error() -> Error {
    Error::Write("the database is closed".into())
}
