//! Events, newest last: a ring buffer in memory. A repeated event is counted instead of added again.
//! Out of scope: what is reported as an event. Events are lost when the daemon stops; conditions are stored.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::api::event::{Event, EventReason, EventType, ObjectRef};
use crate::api::meta::{Timestamp, Uid};

use super::{Change, World};

/// The number of events that are kept.
const CAPACITY: usize = 2000;

/// The uid that each name has, or had last. An event belongs to the object that had the name when it was noted, not to a later one.
type Uids = HashMap<ObjectRef, Uid>;

/// The ring buffer. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    ring: Arc<Mutex<VecDeque<Event>>>,
    sender: broadcast::Sender<Event>,
    uids: Arc<Mutex<Uids>>,
}

impl Default for Events {
    fn default() -> Self {
        let (sender, _) = broadcast::channel(CAPACITY);
        Self {
            ring: Arc::default(),
            sender,
            uids: Arc::default(),
        }
    }
}

impl Events {
    /// Events of the objects of this world.
    pub(super) fn of(world: &World) -> Self {
        let events = Self::default();
        events.learn_all(world);
        events
    }

    /// Records the uids of objects that a transaction has written. Those of removed objects are kept for the events of their removal.
    pub(super) fn learn(&self, world: &World, changes: &[Change]) {
        let mut uids = self.uids.lock();
        for change in changes {
            match change {
                Change::Group(name) => {
                    if let Some(group) = world.group(name) {
                        uids.insert(ObjectRef::host_group(name), group.meta.uid);
                    }
                }
                Change::Vm(uid) => {
                    if let Some(vm) = world.vm(*uid) {
                        uids.insert(ObjectRef::vm(&vm.meta.name), *uid);
                    }
                }
                Change::StageStatus(_)
                | Change::Observed(_)
                | Change::Lease(_)
                | Change::HostNetwork
                | Change::Everything => {}
            }
        }
        if uids.len() > 2 * (world.groups.len() + world.vms.len()) + CAPACITY {
            uids.clear();
            drop(uids);
            self.learn_all(world);
        }
    }

    fn learn_all(&self, world: &World) {
        let groups = world
            .groups()
            .map(|group| (ObjectRef::host_group(&group.meta.name), group.meta.uid));
        let vms = world
            .vms()
            .map(|vm| (ObjectRef::vm(&vm.meta.name), vm.meta.uid));
        self.uids.lock().extend(groups.chain(vms));
    }

    /// Records an event.
    pub fn note(
        &self,
        now: Timestamp,
        kind: EventType,
        object: &ObjectRef,
        reason: impl Into<EventReason>,
        message: &str,
    ) {
        let reason = reason.into();
        let uid = self.uids.lock().get(object).copied();
        let event = {
            let mut ring = self.ring.lock();
            let is_same = |e: &Event| {
                e.object == *object
                    && e.uid == uid
                    && e.reason == reason
                    && e.message == message
                    && e.kind == kind
            };
            // More than the last event is compared: otherwise events of several objects that fail alternately would not be counted.
            let count = match ring.iter().rev().take(64).position(is_same) {
                None => 1,
                Some(back) => {
                    let at = ring.len() - 1 - back;
                    ring.remove(at).map_or(1, |e| e.count + 1)
                }
            };
            let event = Event {
                time: now,
                object: object.clone(),
                uid,
                reason,
                message: message.to_owned(),
                count,
                kind,
            };
            if ring.len() == CAPACITY {
                ring.pop_front();
            }
            ring.push_back(event.clone());
            event
        };
        // Sending fails only if there is no receiver.
        let _ = self.sender.send(event);
    }

    /// All events that are kept, oldest first.
    pub fn all(&self) -> Vec<Event> {
        let ring = self.ring.lock();
        ring.iter().cloned().collect()
    }

    /// Subscribes to new events.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}
