//! The log of changes for watches: what clients have been told of objects, and the last changes, bounded. Pure.
//! Out of scope: building objects, waiting for changes, HTTP.
//!
//! # Why
//! All watches read one log, so a change is computed and encoded once, however many there are. A watch has a position in the log and
//! nothing else: one that is too slow loses its position and costs no memory.
//!
//! Every list is added to the log before it is sent ([`WatchLog::replace`]), so that its version is exact: what the list contains is
//! known to the log, and its later removal is a change. Changes are added when they are read and become visible when they are on the
//! disk ([`WatchLog::publish`]); if the disk refuses one of them, all versions end ([`WatchLog::begin`]).

mod cursor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::Serialize;

pub use cursor::{Cursor, Expired};

use crate::api::event::{Event, ObjectRef};
use crate::api::meta::Name;
use crate::api::view::{Kind, Object, ResourceVersion, WatchLine};

/// The size of a log.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Maximum number of changes.
    pub entries: usize,
    /// Maximum size of all changes as JSON, in bytes; the last change is always kept.
    pub bytes: usize,
    /// The size of the lines that a watch sends at once, in bytes; one line may be longer.
    pub chunk: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            entries: 4096,
            bytes: 8 << 20,
            chunk: 64 << 10,
        }
    }
}

/// What a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Object(Kind, Name),
    /// The object of an event, and the number of the event.
    Event(ObjectRef, u64),
}

/// A change, as the line that watches send.
#[derive(Debug)]
struct Entry {
    number: u64,
    subject: Subject,
    line: Bytes,
}

/// The log.
#[derive(Debug)]
pub struct WatchLog {
    incarnation: u64,
    bounds: Bounds,
    /// The objects after all changes.
    known: BTreeMap<Kind, BTreeMap<Name, Object>>,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The number of the last change.
    last: u64,
    /// The number of the last change that is on the disk.
    visible: u64,
    /// All changes after this one are kept: no older version can be continued.
    floor: u64,
    /// As `floor`, for watches of events.
    events_floor: u64,
    /// The number of the last event in the log.
    last_event: u64,
    /// The number of changes that had been rolled back at the last observation.
    rollbacks: u64,
}

/// The fields of [`WatchLine`], borrowed.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<ResourceVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Event>,
}

impl Line<'_> {
    fn write(&self, text: &mut Vec<u8>) {
        encode(self, text);
    }
}

/// Appends a value as a line of JSON.
fn encode(value: &impl Serialize, text: &mut Vec<u8>) {
    let start = text.len();
    match serde_json::to_writer(&mut *text, value) {
        Ok(()) => text.push(b'\n'),
        Err(error) => {
            text.truncate(start);
            tracing::error!(%error, "cannot encode a change as JSON");
        }
    }
}

/// The line that ends a watch if its next changes are no longer kept.
pub fn expired_line(expired: Expired) -> Bytes {
    let mut text = Vec::new();
    let problem = expired.problem();
    encode(&WatchLine::Error { code: 410, problem }, &mut text);
    text.into()
}

impl WatchLog {
    /// An empty log of a run of the daemon. Events up to the number `last_event` are not part of it.
    pub fn new(incarnation: u64, bounds: Bounds, last_event: u64) -> Self {
        Self {
            incarnation,
            bounds,
            known: BTreeMap::new(),
            entries: VecDeque::new(),
            bytes: 0,
            last: 0,
            visible: 0,
            floor: 0,
            events_floor: 0,
            last_event,
            rollbacks: 0,
        }
    }

    /// The version of the last change.
    pub fn version(&self) -> ResourceVersion {
        self.version_of(self.last)
    }

    fn version_of(&self, number: u64) -> ResourceVersion {
        ResourceVersion {
            incarnation: self.incarnation,
            number,
        }
    }

    /// Whether there are changes that are not visible yet.
    pub fn has_invisible(&self) -> bool {
        self.visible < self.last
    }

    /// Begins an observation. `rollbacks` is the number of changes that were rolled back until now: a change that is not visible yet may
    /// be one of them.
    pub fn begin(&mut self, rollbacks: u64) {
        if std::mem::replace(&mut self.rollbacks, rollbacks) != rollbacks && self.has_invisible() {
            self.last += 1;
            (self.floor, self.visible) = (self.last, self.last);
            self.entries.clear();
            self.bytes = 0;
        }
    }

    /// Adds what has changed of an object that exists.
    pub fn put(&mut self, object: &Object) {
        let name = &object.metadata().name;
        let known = self.known.entry(object.kind()).or_default();
        let before = match known.get_mut(name) {
            Some(before) if before == object => return,
            Some(before) => Some(std::mem::replace(before, object.clone())),
            None => {
                known.insert(name.clone(), object.clone());
                None
            }
        };
        match before {
            Some(before) if before.metadata().uid == object.metadata().uid => {
                self.append_object("MODIFIED", object);
            }
            Some(before) => {
                self.append_object("DELETED", &before);
                self.append_object("ADDED", object);
            }
            None => self.append_object("ADDED", object),
        }
    }

    /// Adds the removal of an object that does not exist, unless it was not known.
    pub fn remove(&mut self, kind: Kind, name: &Name) {
        let known = self.known.get_mut(&kind);
        if let Some(before) = known.and_then(|known| known.remove(name)) {
            self.append_object("DELETED", &before);
        }
    }

    /// Removes the objects of a kind that do not exist.
    pub fn retain(&mut self, kind: Kind, exists: impl Fn(&Name) -> bool) {
        let names = self.known.get(&kind).into_iter().flat_map(BTreeMap::keys);
        let gone: Vec<Name> = names.filter(|name| !exists(name)).cloned().collect();
        for name in &gone {
            self.remove(kind, name);
        }
    }

    /// Adds what has changed of the objects of a kind; these are all.
    pub fn replace(&mut self, kind: Kind, all: &[Object]) {
        let exists: std::collections::BTreeSet<&Name> =
            all.iter().map(|object| &object.metadata().name).collect();
        self.retain(kind, |name| exists.contains(name));
        all.iter().for_each(|object| self.put(object));
    }

    /// The names of the known objects of a kind.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &Name> {
        self.known.get(&kind).into_iter().flat_map(BTreeMap::keys)
    }

    /// The number of the last event in the log.
    pub fn last_event(&self) -> u64 {
        self.last_event
    }

    /// Adds an event. Events have increasing numbers.
    pub fn note(&mut self, number: u64, event: &Event) {
        self.last_event = number;
        let line = Line {
            kind: "EVENT",
            resource_version: Some(self.version_of(self.last + 1)),
            object: None,
            event: Some(event),
        };
        self.append(Subject::Event(event.object.clone(), number), &line);
    }

    /// Records that events after the last one are missing: no watch of events can be continued.
    pub fn lose_events(&mut self) {
        self.last += 1;
        self.events_floor = self.last;
    }

    fn append_object(&mut self, kind: &'static str, object: &Object) {
        let line = Line {
            kind,
            resource_version: Some(self.version_of(self.last + 1)),
            object: Some(object),
            event: None,
        };
        let subject = Subject::Object(object.kind(), object.metadata().name.clone());
        self.append(subject, &line);
    }

    fn append(&mut self, subject: Subject, line: &Line<'_>) {
        let mut text = Vec::new();
        line.write(&mut text);
        text.shrink_to_fit();
        self.last += 1;
        self.bytes += text.len();
        self.entries.push_back(Entry {
            number: self.last,
            subject,
            line: text.into(),
        });
        while self.entries.len() > 1
            && (self.entries.len() > self.bounds.entries || self.bytes > self.bounds.bytes)
        {
            if let Some(oldest) = self.entries.pop_front() {
                self.bytes -= oldest.line.len();
                self.floor = oldest.number;
            }
        }
    }

    /// Makes all changes up to this number visible: they are on the disk. Returns the number of the last visible change.
    pub fn publish(&mut self, number: u64) -> u64 {
        self.visible = self.visible.max(number.min(self.last));
        self.visible
    }
}
