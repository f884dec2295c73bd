//! `GET /fs/watch`: changes of files as Server-Sent Events.
//! Out of scope: what the kernel reports (`tree`); which events are one (`merge`).
//!
//! The watches exist before the head of the response is sent. The stream ends at the timeout, after the maximum number of events, when
//! nothing that is watched exists any more, and when the kernel has lost events (`IN_Q_OVERFLOW`): then the client watches again.
//! Without a change nothing runs but a comment every 15 s.

mod merge;
mod tree;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use self::merge::Merge;
use self::tree::{Change, Kind, Tree};
use super::super::error::{Error, query};
use super::target;
use crate::clock;
use crate::guest::archive::exclude::Patterns;
use crate::guest::go_duration;
use crate::guest::protocol::{WatchEvent, WatchQuery};

/// The maximum number of streams at once, and of paths of one.
const STREAMS: usize = 32;
const PATHS: usize = 64;

/// The interval of comments, which show that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The maximum time within which events are one event.
const DEBOUNCE_LIMIT: Duration = Duration::from_secs(60);

/// The streams that may be opened.
#[derive(Clone)]
pub struct Slots(Arc<Semaphore>);

impl Default for Slots {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STREAMS)))
    }
}

/// Which events are sent, and when the stream ends.
struct Options {
    patterns: Patterns,
    kinds: Vec<Kind>,
    debounce: Duration,
    end: Option<Instant>,
    remaining: u64,
}

/// `GET /fs/watch`.
pub async fn watch(
    State(slots): State<Slots>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Error> {
    let query: WatchQuery = query(&uri)?;
    let options = options(&query, &headers)?;
    let slot = slots.0.try_acquire_owned().map_err(|_| {
        Error::unavailable(format!("{STREAMS} streams of changes are open already"))
    })?;
    let tree = super::blocking(move || {
        let user = target::user(query.uid, None)?;
        let paths = query.paths.iter().map(|path| target::path(path, &user));
        let paths = paths.collect::<Result<Vec<_>, _>>()?;
        Tree::new(&paths, query.recursive)
    });
    let watch = Watch {
        tree: tree.await?,
        merge: Merge::new(options.debounce),
        ready: VecDeque::new(),
        options,
        last_id: 0,
        _slot: slot,
    };
    let events = stream::unfold(watch, |mut watch| async {
        let event = watch.next().await?;
        // The type is plain data, which is always JSON.
        let data = serde_json::to_string(&event).unwrap_or_default();
        let event = Event::default()
            .id(event.id.to_string())
            .event("watch")
            .data(data);
        Some((Ok(event), watch))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// `Last-Event-ID` is checked and has no effect: a stream begins with what happens after it.
fn options(query: &WatchQuery, headers: &HeaderMap) -> Result<Options, Error> {
    if query.paths.is_empty() || query.paths.len() > PATHS {
        return Err(Error::bad_request(format!(
            "1 to {PATHS} parameters \"paths\" are required"
        )));
    }
    if let Some(id) = headers.get("last-event-id") {
        let id = id.to_str().ok().and_then(|id| id.parse::<u64>().ok());
        id.ok_or_else(|| Error::bad_request("invalid Last-Event-ID: expected a number"))?;
    }
    let patterns = Patterns::parse(&query.patterns);
    let time = |text: &Option<String>| match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match go_duration::parse(text) {
            Ok(duration) => Ok(Some(duration)),
            Err(error) => Err(Error::bad_request(error.to_string())),
        },
    };
    let debounce = time(&query.debounce)?.unwrap_or_default();
    if debounce > DEBOUNCE_LIMIT {
        return Err(Error::bad_request("debounce is at most 60s"));
    }
    let mut remaining = query.max_events.filter(|max| *max > 0).unwrap_or(u64::MAX);
    if query.one_shot {
        remaining = 1;
    }
    Ok(Options {
        patterns: patterns.map_err(|error| Error::bad_request(error.to_string()))?,
        kinds: kinds(&query.events)?,
        debounce,
        end: time(&query.timeout)?
            .filter(|timeout| !timeout.is_zero())
            .and_then(|timeout| now().checked_add(timeout)),
        remaining,
    })
}

fn kinds(texts: &[String]) -> Result<Vec<Kind>, Error> {
    let mut kinds = Vec::new();
    // Clients send a list as repeated keys, or separated by commas.
    for text in texts.iter().flat_map(|text| text.split(',')) {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        match (text, kind) {
            ("all" | "", _) => kinds.extend(Kind::ALL),
            (_, Some(kind)) => kinds.push(kind),
            _ => {
                return Err(Error::bad_request(format!(
                    "invalid event \"{text}\": expected create, write, remove, rename, chmod or all"
                )));
            }
        }
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL);
    }
    Ok(kinds)
}

fn now() -> Instant {
    Instant::from_std(clock::monotonic())
}

/// A stream of changes.
struct Watch {
    tree: Tree,
    merge: Merge,
    ready: VecDeque<Change>,
    options: Options,
    last_id: u64,
    _slot: OwnedSemaphorePermit,
}

impl Watch {
    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<WatchEvent> {
        if self.options.remaining == 0 {
            return None;
        }
        loop {
            while let Some(change) = self.ready.pop_front() {
                if self.options.kinds.contains(&change.kind) {
                    self.options.remaining -= 1;
                    return Some(self.event(change).await);
                }
            }
            let due = self.merge.due();
            tokio::select! {
                event = self.tree.event(), if self.tree.is_watching() => {
                    let changes = self.tree.changes(event?).await?;
                    let mut changes: Vec<Change> = changes;
                    changes.retain(|change| self.is_selected(&change.path));
                    self.ready.extend(self.merge.push(changes, now()));
                }
                () = wait(due) => self.ready.extend(self.merge.take(now())),
                () = wait(self.options.end) => return None,
                else => return None,
            }
            if !self.tree.is_watching() && self.merge.due().is_none() && self.ready.is_empty() {
                return None;
            }
        }
    }

    fn is_selected(&self, path: &Path) -> bool {
        let patterns = &self.options.patterns;
        patterns.is_empty() || patterns.matches(path)
    }

    async fn event(&mut self, change: Change) -> WatchEvent {
        self.last_id += 1;
        let found = tokio::fs::symlink_metadata(&change.path).await.ok();
        WatchEvent {
            id: self.last_id,
            kind: change.kind.name().to_owned(),
            path: change.path.to_string_lossy().into_owned(),
            timestamp: clock::now(),
            size: found.as_ref().map_or(0, std::fs::Metadata::len),
            is_dir: change.is_dir,
        }
    }
}

/// Waits until a time; forever without one.
async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
