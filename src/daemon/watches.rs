//! Watches: keeps the log of changes up to date while somebody watches, and sends it to clients.
//! Out of scope: the log ([`crate::status::watch_log`]), building objects (`objects`), HTTP.

mod dirty;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, watch};

use self::dirty::Dirty;
use super::app_state::AppState;
use super::objects::{objects, one};
use crate::api::event::{Event, ObjectRef};
use crate::api::meta::{Name, Uid};
use crate::api::view::{Kind, Object, ResourceVersion, WatchRequest};
use crate::clock;
use crate::status::watch_log::{Bounds, Cursor, Expired, WatchLog, expired_line};
use crate::store::{Change, Events, World};
use crate::wire::Refusal;

/// Minimum time for which changes are collected: bringing up one VM causes a dozen.
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// Changes are collected for this multiple of the time that computing the last ones took, which bounds the CPU use.
const PAUSE_FACTOR: u32 = 20;

/// The number of events that are read at once.
const EVENTS_AT_ONCE: usize = 256;

/// The log of changes, shared by all watches.
pub struct Watches {
    log: Mutex<WatchLog>,
    /// The number of the last change that watches may send.
    visible: watch::Sender<u64>,
    /// The number of watches.
    count: watch::Sender<usize>,
    /// A list has added changes to the log.
    added: Notify,
}

/// A watch that is counted, until dropped.
struct Counted(Arc<Watches>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| *count -= 1);
    }
}

impl Watches {
    /// The log of this run of the daemon.
    pub(super) fn new(events: &Events) -> Self {
        let (incarnation, _) = Uid::random().0.as_u64_pair();
        let log = WatchLog::new(incarnation, Bounds::default(), events.last_number());
        Self {
            log: Mutex::new(log),
            visible: watch::Sender::new(0),
            count: watch::Sender::new(0),
            added: Notify::new(),
        }
    }

    /// Adds a list to the log: all objects of a kind, or the one of a name. Returns the version from which a watch continues. The world
    /// is locked, so the log does not get a newer state of the objects first.
    pub(super) fn add_list(
        &self,
        world: &World,
        kind: Kind,
        name: Option<&Name>,
        found: &[Object],
    ) -> ResourceVersion {
        let mut log = self.log.lock();
        log.begin(world.rollbacks());
        match (name, found) {
            (None, all) => log.replace(kind, all),
            (Some(name), []) => log.remove(kind, name),
            (Some(_), found) => found.iter().for_each(|object| log.put(object)),
        }
        self.notify_added(&log);
        log.version()
    }

    /// As [`Self::add_list`], for a list without the objects that did not fit.
    pub(super) fn add_part(&self, world: &World, found: &[Object]) -> ResourceVersion {
        let mut log = self.log.lock();
        log.begin(world.rollbacks());
        found.iter().for_each(|object| log.put(object));
        self.notify_added(&log);
        log.version()
    }

    fn notify_added(&self, log: &WatchLog) {
        if log.has_invisible() {
            self.added.notify_one();
        }
    }

    fn publish(&self, version: ResourceVersion) {
        let mut log = self.log.lock();
        let visible = log.publish(version.number);
        drop(log);
        self.visible.send_if_modified(|before| {
            let is_new = visible != *before;
            *before = visible;
            is_new
        });
    }

    /// Adds new events to the log.
    fn add_events(log: &mut WatchLog, events: &Events) {
        let mut later = events.after(log.last_event(), EVENTS_AT_ONCE);
        if later.incomplete {
            log.lose_events();
        }
        while !later.events.is_empty() {
            for (number, event) in &later.events {
                log.note(*number, event);
            }
            later = events.after(log.last_event(), EVENTS_AT_ONCE);
        }
    }
}

/// Starts a watch.
///
/// # Errors
/// [`Refusal::Gone`]: it cannot be continued from its version.
pub(super) fn watch(
    state: &AppState,
    request: WatchRequest,
) -> Result<BoxStream<'static, Bytes>, Refusal> {
    let watches = Arc::clone(&state.watches);
    watches.count.send_modify(|count| *count += 1);
    let counted = Counted(Arc::clone(&watches));
    let versions = request.versions;
    let cursor = match request.since {
        Some(_) => watches.log.lock().start(request),
        None => state.engine.store.read(|world| {
            let name = match &request.filter.object {
                Some(ObjectRef::Named(_, name)) => Some(name),
                Some(_) | None => None,
            };
            for kind in &request.filter.kinds {
                let (builder, engine) = (&state.status_builder, &state.engine);
                let found = objects(builder, engine, &state.intake, world, *kind, name);
                watches.add_list(world, *kind, name, &found);
            }
            watches.log.lock().start(request)
        }),
    };
    let cursor = cursor.map_err(|expired| Refusal::Gone(expired.to_string()))?;
    let position = Position {
        visible: watches.visible.subscribe(),
        events: state.engine.store.events().clone(),
        cursor,
        versions,
        _counted: counted,
        watches,
    };
    let lines = stream::unfold(Some(position), |position| async move {
        let mut position = position?;
        match position.next().await {
            Ok(lines) => Some((lines?, Some(position))),
            Err(expired) if position.versions => Some((expired_line(expired), None)),
            Err(_) => None,
        }
    });
    Ok(lines.boxed())
}

/// The position of a watch, and what it needs to wait.
struct Position {
    watches: Arc<Watches>,
    visible: watch::Receiver<u64>,
    events: Events,
    cursor: Cursor,
    versions: bool,
    _counted: Counted,
}

impl Position {
    /// The next lines; `None` when the daemon ends.
    async fn next(&mut self) -> Result<Option<Bytes>, Expired> {
        loop {
            self.visible.mark_unchanged();
            let existing = |after, limit| self.events.after(after, limit).events;
            let lines = self.watches.log.lock().read(&mut self.cursor, existing)?;
            if lines.is_some() {
                return Ok(lines);
            }
            if self.visible.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

/// Adds changes to the log while there are watches.
///
/// # Why
/// Nothing is computed while nobody watches. The receivers of changes are kept meanwhile, which costs nothing: their buffers are bounded
/// and exist anyway. When the next watch begins, the changes in the buffer are read, or everything if there were more.
pub(super) async fn run(state: AppState) {
    let store = &state.engine.store;
    let watches = Arc::clone(&state.watches);
    let (mut changes, mut events) = (store.watch(), store.events().watch());
    let mut count = watches.count.subscribe();
    let mut dirty = Dirty::everything();
    loop {
        // An error: the daemon ends.
        if count.wait_for(|count| *count > 0).await.is_err() {
            return;
        }
        drain(&mut changes, &mut events, &mut dirty);
        let took = catch_up(&state, &mut dirty).await;
        tokio::time::sleep(MIN_PAUSE.max(took * PAUSE_FACTOR)).await;
        if !dirty.is_empty() {
            continue;
        }
        tokio::select! {
            change = changes.recv() => match change {
                Ok(change) => dirty.add(change),
                Err(RecvError::Lagged(_)) => dirty = Dirty::everything(),
                Err(RecvError::Closed) => return,
            },
            event = events.recv() => if matches!(event, Err(RecvError::Closed)) {
                return;
            },
            () = watches.added.notified() => {}
            // The next watch begins with what has changed until then.
            _ = count.wait_for(|count| *count == 0) => {}
        }
    }
}

/// Reads the changes that are there.
fn drain(changes: &mut Receiver<Change>, events: &mut Receiver<Event>, dirty: &mut Dirty) {
    loop {
        match changes.try_recv() {
            Ok(change) => dirty.add(change),
            Err(TryRecvError::Lagged(_)) => *dirty = Dirty::everything(),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    while matches!(events.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
}

/// Computes what has changed, adds it to the log, and publishes it when it is on the disk. Returns the time that it took to compute it.
async fn catch_up(state: &AppState, dirty: &mut Dirty) -> Duration {
    let (store, watches) = (&state.engine.store, &state.watches);
    let mut took = Duration::ZERO;
    let (version, durable) = loop {
        let ((is_complete, version), durable) = store.read_pending(|world| {
            let began = clock::monotonic();
            let mut log = watches.log.lock();
            log.begin(world.rollbacks());
            let is_complete = dirty.take_some(world, &mut log, |kind, name| {
                one(
                    &state.status_builder,
                    &state.engine,
                    &state.intake,
                    world,
                    kind,
                    name,
                )
            });
            Watches::add_events(&mut log, store.events());
            took += clock::monotonic().saturating_duration_since(began);
            (is_complete, log.version())
        });
        if is_complete {
            break (version, durable);
        }
        // Others use the world between two parts.
        tokio::task::yield_now().await;
    };
    match durable.wait().await {
        Ok(()) => watches.publish(version),
        // Some of it was rolled back.
        Err(_) => *dirty = Dirty::everything(),
    }
    took
}
