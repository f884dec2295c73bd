//! Sends the log of changes to clients, and keeps it up to date while somebody watches.
//! Out of scope: the log (`watches`), building objects (`objects`), HTTP.

mod dirty;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::watch;

use self::dirty::Dirty;
use super::app_state::AppState;
use super::objects::{objects, one};
use super::watches::{Counted, Watches};
use crate::api::event::{Event, ObjectRef};
use crate::api::view::WatchRequest;
use crate::clock;
use crate::status::watch_log::{Cursor, Expired, expired_line};
use crate::store::{Change, Events};
use crate::wire::Refusal;

/// Minimum time for which changes are collected: bringing up one VM causes a dozen.
const MIN_PAUSE: Duration = Duration::from_millis(1);

/// Changes are collected for this multiple of the time that computing the last ones took, which bounds the CPU use.
const PAUSE_FACTOR: u32 = 20;

/// Starts a watch.
///
/// # Errors
/// [`Refusal::Gone`]: it cannot be continued from its version.
pub(super) fn watch(
    state: &AppState,
    request: WatchRequest,
) -> Result<BoxStream<'static, Bytes>, Refusal> {
    let watches = Arc::clone(&state.watches);
    let counted = Counted::new(&watches);
    let versions = request.versions;
    let cursor = match request.since {
        Some(_) => watches.log().start(request),
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
            watches.log().start(request)
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
            let lines = self.watches.log().read(&mut self.cursor, existing)?;
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
            let mut log = watches.log();
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
