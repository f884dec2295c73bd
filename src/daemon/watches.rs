//! The log of changes, shared by all watches of all listeners.
//! Out of scope: bringing it up to date (`changes`), the log itself ([`crate::status::watch_log`]).

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::api::meta::{Name, Uid};
use crate::api::view::{Kind, Object, ResourceVersion};
use crate::status::watch_log::{Bounds, WatchLog};
use crate::store::{Events, World};

/// The number of events that are read at once.
const EVENTS_AT_ONCE: usize = 256;

/// The log of changes, shared by all watches.
pub struct Watches {
    log: Mutex<WatchLog>,
    /// The number of the last change that watches may send.
    pub(super) visible: watch::Sender<u64>,
    /// The number of watches.
    pub(super) count: watch::Sender<usize>,
    /// A list has added changes to the log.
    pub(super) added: Notify,
}

/// A watch that is counted, until dropped.
pub(super) struct Counted(Arc<Watches>);

impl Counted {
    pub(super) fn new(watches: &Arc<Watches>) -> Self {
        watches.count.send_modify(|count| *count += 1);
        Self(Arc::clone(watches))
    }
}

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

    /// The log. Whoever locks the world, too, locks it first.
    pub(super) fn log(&self) -> MutexGuard<'_, WatchLog> {
        self.log.lock()
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

    /// Makes the changes up to a version visible, and wakes the watches.
    pub(super) fn publish(&self, version: ResourceVersion) {
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
    pub(super) fn add_events(log: &mut WatchLog, events: &Events) {
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
