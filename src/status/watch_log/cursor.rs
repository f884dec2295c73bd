//! The position of a watch in the log, and the lines that it sends next.
//! Out of scope: waiting for more changes.
//!
//! # Why
//! The existing objects are sent in pages, each as of the time at which it is read, so that a watch holds one page however large the
//! host is. The changes during the list follow; those that a page contains already are left out, so that no object goes back in time.

use bytes::Bytes;

use super::{Line, Subject, WatchLog};
use crate::api::event::{Event, ObjectRef};
use crate::api::meta::Name;
use crate::api::view::{Kind, Object, Problem, ResourceVersion, WatchFilter, WatchRequest};

/// The number of events in a page.
const EVENTS_PAGE: usize = 200;

/// Why a watch cannot be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Expired {
    /// The version is of another run of the daemon.
    #[error(
        "the resource version is of another run of sliced: list again, then watch from the version of the list"
    )]
    OtherRun,
    /// The changes after the version are no longer kept.
    #[error(
        "the changes after the resource version are no longer kept: list again, then watch from the version of the list"
    )]
    TooOld,
}

impl Expired {
    /// The error as the body of a response.
    pub fn problem(self) -> Problem {
        Problem {
            error: self.to_string(),
            problems: Vec::new(),
        }
    }
}

/// The position of a watch.
#[derive(Debug)]
pub struct Cursor {
    kinds: Vec<Kind>,
    events: bool,
    object: Option<ObjectRef>,
    versions: bool,
    /// The number of the last change that was sent or did not match.
    position: u64,
    /// The number of the last version that was sent.
    sent: u64,
    phase: Phase,
    /// Lines that wait until the change with this number is visible.
    held: Option<(u64, Bytes)>,
    pages: Vec<Page>,
    /// The number of the last event that was sent as one that existed.
    listed_events: u64,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Existing objects: of the kind with this index, those after this name.
    Objects(usize, Option<Name>),
    /// Existing events.
    Events,
    /// Changes during the list; it is complete at this number.
    Missed(u64),
    /// Changes.
    Changes,
}

/// A page of the list: objects of a kind up to this name, after the change with this number.
#[derive(Debug)]
struct Page {
    kind: Kind,
    end: Option<Name>,
    number: u64,
}

impl WatchLog {
    /// The start of a watch. Without a version, the existing objects are those that the log knows: the caller has observed them.
    ///
    /// # Errors
    /// The watch cannot be continued from its version.
    pub fn start(&self, request: WatchRequest) -> Result<Cursor, Expired> {
        let WatchRequest {
            since,
            filter:
                WatchFilter {
                    mut kinds,
                    events,
                    object,
                },
            versions,
        } = request;
        kinds.sort_unstable();
        kinds.dedup();
        kinds.retain(|kind| match &object {
            None => true,
            Some(ObjectRef::Named(named, _)) => named == kind,
            Some(ObjectRef::Manifest(_) | ObjectRef::Host | ObjectRef::Orphan(_)) => false,
        });
        let (position, phase) = match since {
            None => (self.last, Phase::Objects(0, None)),
            Some(version) => (self.number_of(version)?, Phase::Changes),
        };
        let cursor = Cursor {
            kinds,
            events,
            object,
            versions,
            position,
            sent: position,
            phase,
            held: None,
            pages: Vec::new(),
            listed_events: 0,
        };
        self.check(&cursor)?;
        Ok(cursor)
    }

    fn number_of(&self, version: ResourceVersion) -> Result<u64, Expired> {
        match version.incarnation == self.incarnation && version.number <= self.last {
            true => Ok(version.number),
            false => Err(Expired::OtherRun),
        }
    }

    /// Whether all changes after the position are kept.
    fn check(&self, cursor: &Cursor) -> Result<(), Expired> {
        let is_kept = cursor.position >= self.floor
            && (!cursor.events || cursor.position >= self.events_floor);
        is_kept.then_some(()).ok_or(Expired::TooOld)
    }

    /// The next lines. `None`: there are none until more changes are visible. `existing_events` returns events after a number.
    ///
    /// # Errors
    /// The next changes are no longer kept: the watch ends.
    pub fn read(
        &self,
        cursor: &mut Cursor,
        existing_events: impl Fn(u64, usize) -> Vec<(u64, Event)>,
    ) -> Result<Option<Bytes>, Expired> {
        loop {
            self.check(cursor)?;
            if let Some((number, lines)) = cursor.held.take() {
                if number <= self.visible {
                    return Ok(Some(lines));
                }
                cursor.held = Some((number, lines));
                return Ok(None);
            }
            let lines = match cursor.phase.clone() {
                Phase::Objects(kind, after) => {
                    let lines = self.read_objects(cursor, kind, after);
                    cursor.held = (!lines.is_empty()).then(|| (self.last, lines.into()));
                    continue;
                }
                Phase::Events => match read_events(cursor, &existing_events) {
                    Some(lines) if lines.is_empty() => continue,
                    Some(lines) => lines,
                    // A watch that continues from the end of the list would be sent these events again.
                    None if self.last_event < cursor.listed_events => return Ok(None),
                    None => {
                        cursor.phase = Phase::Missed(self.last);
                        continue;
                    }
                },
                Phase::Missed(until) => self.read_changes(cursor, Some(until)),
                Phase::Changes => self.read_changes(cursor, None),
            };
            // All visible changes were read, unless there are lines.
            return Ok((!lines.is_empty()).then(|| lines.into()));
        }
    }

    /// A page of existing objects.
    fn read_objects(&self, cursor: &mut Cursor, index: usize, after: Option<Name>) -> Vec<u8> {
        let mut lines = Vec::new();
        let Some(kind) = cursor.kinds.get(index).copied() else {
            cursor.phase = match cursor.events {
                true => Phase::Events,
                false => Phase::Missed(cursor.complete_at()),
            };
            return lines;
        };
        let mut end = None;
        for object in self.existing(kind, after.as_ref(), cursor.object.as_ref()) {
            let line = Line {
                kind: "ADDED",
                resource_version: None,
                object: Some(object),
                event: None,
            };
            line.write(&mut lines);
            if lines.len() >= self.bounds.chunk {
                end = Some(object.metadata().name.clone());
                break;
            }
        }
        cursor.phase = match &end {
            Some(name) => Phase::Objects(index, Some(name.clone())),
            None => Phase::Objects(index + 1, None),
        };
        let number = self.last;
        cursor.pages.push(Page { kind, end, number });
        lines
    }

    fn existing<'a>(
        &'a self,
        kind: Kind,
        after: Option<&Name>,
        object: Option<&'a ObjectRef>,
    ) -> Box<dyn Iterator<Item = &'a Object> + 'a> {
        let Some(known) = self.known.get(&kind) else {
            return Box::new(std::iter::empty());
        };
        match (object, after) {
            (Some(ObjectRef::Named(_, name)), None) => Box::new(known.get(name).into_iter()),
            (Some(_), _) => Box::new(std::iter::empty()),
            (None, None) => Box::new(known.values()),
            (None, Some(after)) => {
                let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                Box::new(known.range::<Name, _>(range).map(|(_, object)| object))
            }
        }
    }

    /// The changes after the position, up to `until` if the list is not complete before it.
    fn read_changes(&self, cursor: &mut Cursor, until: Option<u64>) -> Vec<u8> {
        let mut lines = Vec::new();
        let first = self
            .entries
            .partition_point(|entry| entry.number <= cursor.position);
        let limit = self.visible.min(until.unwrap_or(u64::MAX));
        let mut is_full = false;
        for entry in self.entries.range(first..) {
            if entry.number > limit {
                break;
            }
            cursor.position = entry.number;
            if cursor.sends(&entry.subject) && !cursor.has_listed(entry.number, &entry.subject) {
                lines.extend_from_slice(&entry.line);
                cursor.sent = entry.number;
                is_full = lines.len() >= self.bounds.chunk;
                if is_full {
                    break;
                }
            }
        }
        if !is_full {
            // Numbers without an entry are passed, too.
            cursor.position = cursor.position.max(limit);
        }
        if until.is_some_and(|until| cursor.position >= until) {
            cursor.phase = Phase::Changes;
            cursor.pages = Vec::new();
            self.write_version(cursor, "SYNCED", &mut lines);
        } else if until.is_none() && self.is_bookmark_due(cursor) {
            // Not before the list is complete: it may contain later changes, and a watch from this version would be sent them again.
            self.write_version(cursor, "BOOKMARK", &mut lines);
        }
        lines
    }

    /// Whether a watch is sent a newer version because so many changes did not match: long before its version is too old.
    fn is_bookmark_due(&self, cursor: &Cursor) -> bool {
        let interval = (self.bounds.entries as u64 / 4).max(1);
        cursor.versions && cursor.position - cursor.sent >= interval
    }

    fn write_version(&self, cursor: &mut Cursor, kind: &'static str, lines: &mut Vec<u8>) {
        cursor.sent = cursor.position;
        let line = Line {
            kind,
            resource_version: Some(self.version_of(cursor.position)),
            object: None,
            event: None,
        };
        line.write(lines);
    }
}

/// A page of existing events; `None` after the last one.
fn read_events(
    cursor: &mut Cursor,
    existing: impl Fn(u64, usize) -> Vec<(u64, Event)>,
) -> Option<Vec<u8>> {
    let mut lines = Vec::new();
    let events = existing(cursor.listed_events, EVENTS_PAGE);
    cursor.listed_events = events.last()?.0;
    for (_, event) in events.iter().filter(|(_, e)| cursor.is_about(&e.object)) {
        let line = Line {
            kind: "EVENT",
            resource_version: None,
            object: None,
            event: Some(event),
        };
        line.write(&mut lines);
    }
    Some(lines)
}

impl Cursor {
    /// The number of the change at which all pages are in the past.
    fn complete_at(&self) -> u64 {
        let last = self.pages.iter().map(|page| page.number).max();
        last.unwrap_or(0).max(self.position)
    }

    fn is_about(&self, object: &ObjectRef) -> bool {
        self.object.as_ref().is_none_or(|only| only == object)
    }

    fn sends(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Object(kind, name) => {
                self.kinds.contains(kind)
                    && match &self.object {
                        None => true,
                        Some(ObjectRef::Named(_, only)) => only == name,
                        Some(_) => false,
                    }
            }
            Subject::Event(object, _) => self.events && self.is_about(object),
        }
    }

    /// Whether the list contains a change already.
    fn has_listed(&self, change: u64, subject: &Subject) -> bool {
        match subject {
            Subject::Object(kind, name) => {
                let covers = |page: &&Page| {
                    page.kind == *kind && page.end.as_ref().is_none_or(|end| name <= end)
                };
                let page = self.pages.iter().find(covers);
                page.is_some_and(|page| change <= page.number)
            }
            Subject::Event(_, number) => *number <= self.listed_events,
        }
    }
}
