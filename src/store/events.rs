//! Events, newest last: a buffer of fixed size in memory. A repeated event is counted instead of added again.
//! Out of scope: what is reported as an event. Events are lost when the daemon stops; conditions are stored.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::retention;
use crate::api::event::{Event, EventReason, EventType, ObjectRef};
use crate::api::event_text;
use crate::api::meta::Timestamp;

/// The number of events that are kept.
const CAPACITY: usize = 2000;

/// The number of events that are dropped together when the buffer is full: the choice looks at all of them.
const DROPPED_AT_ONCE: usize = CAPACITY / 10;

/// The buffer. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    ring: Arc<Mutex<VecDeque<Event>>>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        let (sender, _) = broadcast::channel(CAPACITY);
        Self {
            ring: Arc::default(),
            sender,
        }
    }
}

impl Events {
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
        let message = event_text::message(message);
        let event = {
            let mut ring = self.ring.lock();
            let is_same = |e: &Event| {
                e.object == *object && e.reason == reason && e.message == message && e.kind == kind
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
                reason,
                message: message.into_owned(),
                count,
                kind,
            };
            if ring.len() == CAPACITY {
                retention::drop_excess(&mut ring, DROPPED_AT_ONCE);
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
