//! Events, newest last: a buffer of fixed size in memory. A repeated event is counted instead of added again.
//! Out of scope: what is reported as an event. Events are lost when the daemon stops; conditions are stored.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::api::event::{Event, EventReason, EventType, ObjectRef};
use crate::api::meta::{Timestamp, Uid};
use crate::api::plain_text;

use super::{Change, World, retention};

/// The number of events that are kept.
const CAPACITY: usize = 2000;

/// The number of events that are dropped together when the buffer is full: the choice looks at all of them.
const DROPPED_AT_ONCE: usize = CAPACITY / 10;

/// The uid that each name has, or had last. An event belongs to the object that had the name when it was noted, not to a later one.
type Uids = HashMap<ObjectRef, Uid>;

/// An event with its number: events are numbered in the order in which they are recorded, and a repeated event gets a new number.
struct Numbered {
    number: u64,
    event: Event,
}

/// The events that are kept, ordered by time.
#[derive(Default)]
struct Ring {
    events: VecDeque<Numbered>,
    /// The number of the event that was recorded last.
    last: u64,
    /// The highest number of an event that was dropped.
    dropped: u64,
}

/// The events that were recorded after another one.
#[derive(Debug, Default)]
pub struct LaterEvents {
    /// With their numbers, in the order of these.
    pub events: Vec<(u64, Event)>,
    /// Some of them are not kept.
    pub incomplete: bool,
}

/// The buffer. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    ring: Arc<Mutex<Ring>>,
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
                | Change::View
                | Change::Agent(_)
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

    /// Records an event of the time `now`.
    pub fn note(
        &self,
        now: Timestamp,
        kind: EventType,
        object: &ObjectRef,
        reason: impl Into<EventReason>,
        message: &str,
    ) {
        let reason = reason.into();
        let message = plain_text::message(message);
        let uid = self.uids.lock().get(object).copied();
        let event = {
            let mut ring = self.ring.lock();
            let Ring {
                events: ring,
                last,
                dropped,
            } = &mut *ring;
            let is_same = |Numbered { event: e, .. }: &Numbered| {
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
                    ring.remove(at).map_or(1, |e| e.event.count + 1)
                }
            };
            let event = Event {
                time: now,
                object: object.clone(),
                uid,
                reason,
                message: message.into_owned(),
                count,
                kind,
            };
            if ring.len() == CAPACITY {
                let on_drop = |e: &Numbered| *dropped = e.number.max(*dropped);
                retention::drop_excess(ring, |e| &e.event.object, DROPPED_AT_ONCE, on_drop);
            }
            // An event about a change is recorded when the change is stored, which may be after the first events of its effect.
            let later = ring.iter().rev().take_while(|other| other.event.time > now);
            let at = ring.len() - later.count();
            *last += 1;
            let numbered = Numbered {
                number: *last,
                event: event.clone(),
            };
            ring.insert(at, numbered);
            event
        };
        // Sending fails only if there is no receiver.
        let _ = self.sender.send(event);
    }

    /// All events that are kept, oldest first.
    pub fn all(&self) -> Vec<Event> {
        let ring = self.ring.lock();
        ring.events.iter().map(|e| e.event.clone()).collect()
    }

    /// The first `limit` events that were recorded after the one with this number.
    pub fn after(&self, number: u64, limit: usize) -> LaterEvents {
        let ring = self.ring.lock();
        let incomplete = ring.dropped > number;
        if ring.last <= number {
            return LaterEvents {
                events: Vec::new(),
                incomplete,
            };
        }
        let later = ring.events.iter().filter(|e| e.number > number);
        let mut later: Vec<&Numbered> = later.collect();
        later.sort_unstable_by_key(|e| e.number);
        let first = later.into_iter().take(limit);
        LaterEvents {
            events: first.map(|e| (e.number, e.event.clone())).collect(),
            incomplete,
        }
    }

    /// The number of the event that was recorded last.
    pub fn last_number(&self) -> u64 {
        self.ring.lock().last
    }

    /// Subscribes to new events.
    pub fn watch(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_in_the_order_of_their_times_and_bounded() {
        let events = Events::default();
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let note = |second, message: &str| {
            let reason = EventReason::Ready;
            events.note(
                at(second),
                EventType::Normal,
                &ObjectRef::Host,
                reason,
                message,
            );
        };
        for (second, message) in [(1, "a"), (3, "c"), (2, "b"), (3, "d"), (4, "b")] {
            note(second, message);
        }
        let found = events.all();
        let found: Vec<_> = found
            .iter()
            .map(|e| (e.message.as_str(), e.count))
            .collect();
        assert_eq!(found, [("a", 1), ("c", 1), ("d", 1), ("b", 2)]);
        for n in 0..2 * CAPACITY {
            note(5, &n.to_string());
        }
        assert!((CAPACITY - DROPPED_AT_ONCE..=CAPACITY).contains(&events.all().len()));
        let last = (2 * CAPACITY - 1).to_string();
        assert_eq!(events.all().pop().expect("an event").message, last);
    }

    #[test]
    fn events_are_read_on_from_a_number_and_those_that_were_dropped_are_missed() {
        let events = Events::default();
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let note = |second, message: &str| {
            let (kind, reason) = (EventType::Normal, EventReason::Ready);
            events.note(at(second), kind, &ObjectRef::Host, reason, message);
        };
        let after = |number, limit| {
            let later = events.after(number, limit);
            let found = later.events.into_iter();
            let found = found.map(|(number, e)| (number, e.message, e.count));
            (found.collect::<Vec<_>>(), later.incomplete)
        };
        assert_eq!(after(0, 10), (vec![], false));
        // The time of the third is earlier; the fourth repeats the first.
        for (second, message) in [(1, "a"), (3, "b"), (2, "c"), (4, "a")] {
            note(second, message);
        }
        let found = |number, text: &str, count| (number, text.to_owned(), count);
        let all = vec![found(2, "b", 1), found(3, "c", 1), found(4, "a", 2)];
        assert_eq!(after(0, 10), (all.clone(), false));
        assert_eq!(after(0, 2), (all[..2].to_vec(), false));
        assert_eq!(after(3, 10), (all[2..].to_vec(), false));
        assert_eq!(after(events.last_number(), 10), (vec![], false));
        for n in 0..CAPACITY {
            note(5, &n.to_string());
        }
        assert!(after(4, 1).1, "the first events were dropped");
        assert!(!after(events.last_number(), 1).1);
    }
}
