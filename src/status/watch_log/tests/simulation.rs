//! A host that changes, a disk that refuses, and clients that are slow, disconnect and continue, in every order.
//! Out of scope: real time and tasks.
//!
//! # Why
//! Whatever happens: a client's objects are those of the host at the end, none ever goes back in time, no event is missed or sent
//! twice, nothing is sent that was not on the disk, and the log stays within its bounds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;

const NAMES: [&str; 5] = ["a-1", "a-2", "b-1", "c-1", "c-2"];
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// The object is written; it is created if it does not exist.
    Write(usize),
    Delete(usize),
    Note,
    /// The oldest events are dropped, whether the log has them or not.
    DropEvents,
    /// The log is brought up to date.
    Look,
    /// A part of the objects is brought up to date.
    LookAt(usize),
    /// All changes are on the disk.
    Commit,
    /// All changes that are not on the disk are rolled back.
    Refuse,
    /// A client receives the next lines.
    Read(usize),
    Disconnect(usize),
    /// A client lists, to watch from the version of the list.
    List(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    prop_oneof![
        8 => (0..NAMES.len()).prop_map(Step::Write),
        3 => (0..NAMES.len()).prop_map(Step::Delete),
        3 => Just(Step::Note),
        1 => Just(Step::DropEvents),
        5 => Just(Step::Look),
        3 => (0..NAMES.len()).prop_map(Step::LookAt),
        5 => Just(Step::Commit),
        1 => Just(Step::Refuse),
        12 => client.clone().prop_map(Step::Read),
        2 => client.clone().prop_map(Step::Disconnect),
        2 => client.prop_map(Step::List),
    ]
}

type Objects = BTreeMap<&'static str, Object>;

fn revision(object: &Object) -> u32 {
    match object {
        Object::Lease(lease) => lease.ip.into(),
        other => panic!("{other:?}"),
    }
}

/// What a client knows.
#[derive(Default)]
struct Client {
    objects: BTreeMap<String, Object>,
    events: BTreeSet<u64>,
    /// The last revision of each name, for as long as the client lives.
    newest: BTreeMap<String, u32>,
    version: Option<ResourceVersion>,
    /// Versions can be continued: not before the list is complete.
    is_synced: bool,
    cursor: Option<Cursor>,
    /// A list that waits for the disk.
    listing: Option<(Objects, ResourceVersion)>,
}

impl Client {
    /// As a client that is told to list again.
    fn forget(&mut self) {
        self.objects.clear();
        self.events.clear();
        (self.version, self.cursor) = (None, None);
    }

    fn see(&mut self, object: &Object, durable: &BTreeSet<u32>) -> Result<(), TestCaseError> {
        let name = object.metadata().name.to_string();
        let found = revision(object);
        prop_assert!(
            durable.contains(&found),
            "{name} of {found} was not on the disk"
        );
        let newest = self.newest.entry(name.clone()).or_default();
        prop_assert!(
            found >= *newest,
            "{name} goes back from {newest} to {found}"
        );
        *newest = found;
        Ok(())
    }

    fn receive(&mut self, line: WatchLine, durable: &BTreeSet<u32>) -> Result<(), TestCaseError> {
        let version = match line {
            WatchLine::Added {
                resource_version,
                object,
            } => {
                self.see(&object, durable)?;
                self.objects
                    .insert(object.metadata().name.to_string(), object);
                resource_version
            }
            WatchLine::Modified {
                resource_version,
                object,
            } => {
                self.see(&object, durable)?;
                let before = self
                    .objects
                    .insert(object.metadata().name.to_string(), object);
                prop_assert!(before.is_some(), "modified before it was added");
                Some(resource_version)
            }
            WatchLine::Deleted {
                resource_version,
                object,
            } => {
                self.see(&object, durable)?;
                self.objects.remove(object.metadata().name.as_str());
                Some(resource_version)
            }
            WatchLine::Event {
                resource_version,
                event,
            } => {
                let number = event.message.parse().unwrap();
                prop_assert!(self.events.insert(number), "event {number} is sent twice");
                resource_version
            }
            WatchLine::Synced { resource_version } | WatchLine::Bookmark { resource_version } => {
                self.is_synced = true;
                Some(resource_version)
            }
            WatchLine::Error { .. } => unreachable!("the log returns an error"),
        };
        if self.is_synced {
            self.version = version.or(self.version);
        }
        Ok(())
    }
}

struct Simulation {
    log: WatchLog,
    host: Objects,
    on_disk: Objects,
    /// Changes wait for the disk.
    pending: bool,
    rollbacks: u64,
    revision: u32,
    /// All revisions that were on the disk.
    durable: BTreeSet<u32>,
    /// Those that wait for it.
    written: Vec<u32>,
    /// The version that becomes visible when the disk has written.
    looked: Option<u64>,
    events: BTreeMap<u64, Event>,
    last_event: u64,
    dropped: u64,
    clients: [Client; CLIENTS],
}

impl Simulation {
    fn new(bounds: Bounds) -> Self {
        Self {
            log: WatchLog::new(7, bounds, 0),
            host: Objects::new(),
            on_disk: Objects::new(),
            pending: false,
            rollbacks: 0,
            revision: 0,
            durable: BTreeSet::new(),
            written: Vec::new(),
            looked: None,
            events: BTreeMap::new(),
            last_event: 0,
            dropped: 0,
            clients: Default::default(),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Write(at) => {
                self.revision += 1;
                self.pending = true;
                self.written.push(self.revision);
                let name = NAMES[at];
                let before = self.host.get(name).map(|object| object.metadata().uid);
                let uid = before.flatten().map(|uid| uid.0.as_u64_pair().0);
                let uid = uid.unwrap_or(self.revision.into());
                self.host.insert(name, lease(name, uid, self.revision));
            }
            Step::Delete(at) => {
                self.pending |= self.host.remove(NAMES[at]).is_some();
            }
            Step::Note => {
                self.last_event += 1;
                self.events.insert(self.last_event, event(self.last_event));
            }
            Step::DropEvents => {
                // The last one is always kept.
                self.dropped = self.last_event.saturating_sub(1);
                self.events = self.events.split_off(&self.last_event);
            }
            Step::Look => self.look(None),
            Step::LookAt(at) => self.look(Some(at)),
            Step::Commit => self.commit()?,
            Step::Refuse => {
                if std::mem::take(&mut self.pending) {
                    self.host = self.on_disk.clone();
                    self.rollbacks += 1;
                    self.written.clear();
                    self.looked = None;
                    self.clients
                        .iter_mut()
                        .for_each(|client| client.listing = None);
                }
            }
            Step::Read(client) => self.read(client)?,
            Step::Disconnect(client) => self.clients[client].cursor = None,
            Step::List(client) => {
                self.log.begin(self.rollbacks);
                let all: Vec<Object> = self.host.values().cloned().collect();
                self.log.replace(Kind::Lease, &all);
                self.clients[client].listing = Some((self.host.clone(), self.log.version()));
                if !self.pending {
                    self.deliver_lists()?;
                }
            }
        }
        prop_assert!(self.log.entries.len() <= self.log.bounds.entries);
        prop_assert!(self.log.bytes <= self.log.bounds.bytes || self.log.entries.len() == 1);
        Ok(())
    }

    fn look(&mut self, at: Option<usize>) {
        self.log.begin(self.rollbacks);
        let names = NAMES.iter().enumerate();
        for (_, name) in names.filter(|(index, _)| at.is_none_or(|at| at == *index)) {
            match self.host.get(name) {
                Some(object) => self.log.put(object),
                None => self.log.remove(Kind::Lease, &Name::new(*name).unwrap()),
            }
        }
        if self.dropped > self.log.last_event() {
            self.log.lose_events();
        }
        for (number, event) in self.events.range(self.log.last_event() + 1..) {
            self.log.note(*number, event);
        }
        self.looked = Some(self.log.last);
        if !self.pending {
            self.log.publish(self.log.last);
        }
    }

    fn commit(&mut self) -> Result<(), TestCaseError> {
        self.on_disk = self.host.clone();
        self.pending = false;
        self.durable.extend(self.written.drain(..));
        if let Some(number) = self.looked.take() {
            self.log.publish(number);
        }
        self.deliver_lists()
    }

    /// The client has its list, and watches from its version.
    fn deliver_lists(&mut self) -> Result<(), TestCaseError> {
        for client in &mut self.clients {
            let Some((objects, version)) = client.listing.take() else {
                continue;
            };
            client.forget();
            for object in objects.values() {
                client.see(object, &self.durable)?;
            }
            let objects = objects.into_iter();
            client.objects = objects
                .map(|(name, object)| (name.to_owned(), object))
                .collect();
            client.version = Some(version);
        }
        Ok(())
    }

    fn read(&mut self, client: usize) -> Result<(), TestCaseError> {
        if self.clients[client].cursor.is_none() {
            let since = self.clients[client].version;
            if since.is_none() {
                self.clients[client].forget();
                self.log.begin(self.rollbacks);
                let all: Vec<Object> = self.host.values().cloned().collect();
                self.log.replace(Kind::Lease, &all);
            }
            self.clients[client].is_synced = since.is_some();
            match self.log.start(request(since, true)) {
                Ok(cursor) => self.clients[client].cursor = Some(cursor),
                Err(_) => {
                    self.clients[client].forget();
                    return Ok(());
                }
            }
        }
        let client = &mut self.clients[client];
        let cursor = client.cursor.as_mut().unwrap();
        let existing = |after: u64, limit| {
            let later = self.events.range(after + 1..).take(limit);
            later
                .map(|(number, event)| (*number, event.clone()))
                .collect()
        };
        match self.log.read(cursor, existing) {
            Err(_) => client.forget(),
            Ok(None) => {}
            Ok(Some(lines)) => {
                for line in decode(&lines) {
                    client.receive(line, &self.durable)?;
                }
            }
        }
        Ok(())
    }

    /// Nothing changes any more, and everything is read.
    fn end(&mut self) -> Result<(), TestCaseError> {
        self.step(&Step::Look)?;
        self.commit()?;
        for _ in 0..200 {
            for client in 0..CLIENTS {
                self.read(client)?;
                self.step(&Step::Look)?;
            }
        }
        for client in &self.clients {
            let host = self.host.iter();
            let host: BTreeMap<String, Object> = host
                .map(|(name, object)| ((*name).to_owned(), object.clone()))
                .collect();
            prop_assert_eq!(&client.objects, &host);
            // A watch from the version of a list begins in the middle of the events.
            if let Some(first) = client.events.first() {
                let from = (*first).max(self.dropped + 1);
                let seen: Vec<u64> = client.events.range(from..).copied().collect();
                prop_assert_eq!(seen, (from..=self.last_event).collect::<Vec<_>>());
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn clients_that_are_slow_disconnect_and_continue_have_the_objects_of_the_host_at_the_end(
        steps in prop::collection::vec(step(), 0..150),
        entries in 1_usize..30,
        bytes in prop_oneof![Just(500_usize), Just(100_000)],
        chunk in prop_oneof![Just(1_usize), Just(400), Just(100_000)],
    ) {
        let bounds = Bounds { entries, bytes, chunk };
        let mut simulation = Simulation::new(bounds);
        for step in &steps {
            simulation.step(step)?;
        }
        simulation.end()?;
    }
}

/// A bookmark during the list had a version before an event that the list contained.
#[test]
fn no_version_can_be_continued_before_the_list_is_complete() {
    use Step::*;
    let before = [Write(0), Read(2), Look, Commit, Write(1), Note, Note, Look];
    let list = [Read(2), Commit, Write(0), Note, Look, Read(2), Read(2)];
    let mut simulation = Simulation::new(Bounds {
        entries: 5,
        bytes: 100_000,
        chunk: 400,
    });
    for step in before.iter().chain(&list).chain(&[Disconnect(2)]) {
        simulation.step(step).unwrap();
    }
    simulation.end().unwrap();
}
