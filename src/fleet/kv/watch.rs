//! Watches: all changes of keys with given prefixes, from a revision on.
//! Out of scope: what the caller does after an error: it continues from [`Batch::next`], or lists again.
//!
//! # Why
//! A watch without changes receives nothing for 10 minutes by default, and the gateway does not pass on requests for progress. So that a
//! watch does not wait at a member that is suspended or cut off, or for a user that was removed, it reads from its endpoint in an
//! interval; each of these ends it with an error. A connection of which the peer is gone is closed by TCP.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::answer::{Failure, failure, refused};
use super::client::{Client, Reading};
use super::connection::{Endpoint, Exchange, of_http};
use super::error::{Cause, Code, Error, Malformed};
use super::lines::Lines;
use super::message::{Int, RangeRequest, RangeResponse, Request};
use super::types::{EtcdKey, Header, KeyValue, Revision};
use super::watch_message::{EventMessage, EventType, Message, Response, requests};
use crate::clock;

/// The longest line, in bytes: a value of 1.5 MiB and the one before it, in base64, and the fragment that they are in.
const MAX_LINE: usize = 16 << 20;

/// The number of messages before all watches of a stream are created.
const MAX_EARLY: usize = 256;

/// Longer than any deadline: the attempt has a limit of its own.
const LONGEST_CREATION: Duration = Duration::from_secs(86_400);

/// The largest body of an error.
const MAX_ERROR: usize = 64 << 10;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchTarget {
    /// Keys with this prefix.
    pub prefix: EtcdKey,
    /// The first revision of which changes are reported; 0: from now on.
    pub from: Revision,
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was written.
    Put {
        /// The key as it is now.
        kv: KeyValue,
    },
    /// It was deleted, or its lease ended.
    Delete {
        /// The key.
        key: EtcdKey,
        /// The revision of the deletion.
        mod_revision: Revision,
    },
}

impl Event {
    /// The key.
    pub fn key(&self) -> &EtcdKey {
        match self {
            Self::Put { kv, .. } => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn mod_revision(&self) -> Revision {
        match self {
            Self::Put { kv, .. } => kv.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

impl From<EventMessage> for Event {
    fn from(message: EventMessage) -> Self {
        let kv = KeyValue::from(message.kv);
        match message.kind {
            EventType::Put => Self::Put { kv },
            EventType::Delete => Self::Delete {
                key: kv.key,
                mod_revision: kv.mod_revision,
            },
        }
    }
}

/// Changes of the keys of one target, in the order of their revisions. Without events, it reports progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The revision of the store when this was sent, which may be after that of the events.
    pub header: Header,
    /// The position of the target.
    pub target: usize,
    /// Where a new watch of this target continues without a gap. If it is the revision of the last event, that event comes again.
    pub next: Revision,
    /// The changes.
    pub events: Vec<Event>,
}

/// Batches until the first error. Nothing is read from the connection until the next batch is polled: etcd keeps what is not read, and
/// ends the watch with [`Error::Compacted`] when that is compacted.
pub type Watch = BoxStream<'static, Result<Batch, Error>>;

impl Client {
    /// Watches keys. Returns when etcd has confirmed the watches of all targets; changes from their revisions on are reported without a gap.
    ///
    /// # Errors
    /// [`Error::Denied`] if the user may not read one of them.
    pub async fn watch(&self, targets: Vec<WatchTarget>) -> Result<Watch, Error> {
        let pairs = targets.iter().map(|target| (&target.prefix, target.from));
        let body = requests(pairs)?;
        let reading = Creation { targets: &targets };
        let connection = self.perform(Request::Watch, body.into(), &reading).await?;
        let interval = self.watch_check_interval();
        let state = State {
            client: self.clone(),
            connection,
            targets,
            interval,
            next_check: clock::monotonic() + interval,
        };
        let batches = stream::unfold(Some(state), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(batch) => Some((Ok(batch), Some(state))),
                Err(error) => {
                    if matches!(error, Error::WatchEnded { .. }) {
                        state.client.demote(&state.connection.endpoint);
                    }
                    Some((Err(error), None))
                }
            }
        });
        Ok(batches.boxed())
    }
}

/// A stream of messages.
struct Connection {
    endpoint: Arc<Endpoint>,
    body: Incoming,
    lines: Lines,
    /// Messages that were received before all watches were created.
    early: VecDeque<Response>,
    /// That of the cluster in which the watches were created.
    header: Option<Header>,
}

impl Connection {
    /// The next message, by the end of this time; `None` if there is none.
    async fn receive(&mut self, time: Duration) -> Result<Option<Response>, Failure> {
        let end = clock::monotonic() + time;
        loop {
            if let Some(line) = self.lines.next().map_err(|_| too_long())? {
                return self.response(&line).map(Some);
            }
            let time = end.saturating_duration_since(clock::monotonic());
            let Ok(frame) = tokio::time::timeout(time, self.body.frame()).await else {
                return Ok(None);
            };
            let frame = frame.ok_or(Failure::Unknown(Cause::Ended))?;
            let frame = frame.map_err(|error| Failure::Unknown(of_http(error)))?;
            if let Some(chunk) = frame.data_ref() {
                self.lines.push(chunk);
            }
        }
    }

    fn response(&self, line: &[u8]) -> Result<Response, Failure> {
        let malformed = |error: Malformed| Failure::Unknown(error.into());
        let message: Message =
            serde_json::from_slice(line).map_err(|error| malformed(error.into()))?;
        match (message.result, message.error) {
            (_, Some(error)) => {
                let code = Code::of(error.code);
                let url = &self.endpoint.url;
                Err(failure(url, Request::Watch, code, &error.message))
            }
            (Some(response), None) => Ok(response),
            (None, None) => Err(malformed(Malformed::Missing("result"))),
        }
    }

    /// The failure of a watch that etcd has canceled.
    fn canceled(&self, response: &Response) -> Failure {
        let endpoint = self.endpoint.url.clone();
        let request = Request::Watch;
        if response.compact_revision > 0 {
            let at = Some(Revision(response.compact_revision));
            return Failure::Final(Error::Compacted { endpoint, at });
        }
        let reason = response.cancel_reason.as_str();
        let (code, message) = Code::parse(reason).unwrap_or((Code::Unknown, reason));
        match failure(&endpoint, request, code, message) {
            // Some versions answer so to a token that has expired.
            Failure::Final(error @ Error::Denied { .. }) => Failure::InvalidToken(error),
            failure => failure,
        }
    }
}

fn too_long() -> Failure {
    Failure::Unknown(Malformed::TooLong(MAX_LINE).into())
}

/// Reads until all watches are created.
struct Creation<'a> {
    targets: &'a [WatchTarget],
}

impl Reading for Creation<'_> {
    type Output = Connection;

    async fn read(
        &self,
        endpoint: &Arc<Endpoint>,
        exchange: Exchange,
    ) -> Result<Connection, Failure> {
        if !exchange.response.status().is_success() {
            let (status, body) = endpoint
                .read(exchange, MAX_ERROR)
                .await
                .map_err(Failure::Unknown)?;
            return Err(refused(
                &endpoint.url,
                Request::Watch,
                status.as_u16(),
                &body,
            ));
        }
        let mut connection = Connection {
            endpoint: Arc::clone(endpoint),
            body: exchange.response.into_body(),
            lines: Lines::new(MAX_LINE),
            early: VecDeque::new(),
            header: None,
        };
        let mut created = 0;
        while created < self.targets.len() {
            let Some(response) = connection.receive(LONGEST_CREATION).await? else {
                continue;
            };
            if response.canceled {
                return Err(connection.canceled(&response));
            }
            if response.created {
                created += 1;
                connection.header.get_or_insert(response.header.into());
            }
            if connection.early.len() == MAX_EARLY {
                let error = Malformed::Missing("confirmation of a watch");
                return Err(Failure::Unknown(error.into()));
            }
            connection.early.push_back(response);
        }
        Ok(connection)
    }
}

/// A watch between two batches.
struct State {
    client: Client,
    connection: Connection,
    targets: Vec<WatchTarget>,
    interval: Duration,
    next_check: Instant,
}

impl State {
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if let Some(response) = self.connection.early.pop_front() {
                match self.batch(response)? {
                    Some(batch) => return Ok(batch),
                    None => continue,
                }
            }
            let now = clock::monotonic();
            if now >= self.next_check {
                self.check().await?;
                self.next_check = clock::monotonic() + self.interval;
            }
            let time = self.next_check.saturating_duration_since(now);
            let received = self.connection.receive(time).await;
            match received.map_err(|failure| self.error(failure))? {
                Some(response) => self.connection.early.push_back(response),
                None => continue,
            }
        }
    }

    /// Reads from the endpoint of the watch, as the majority has it.
    async fn check(&self) -> Result<(), Error> {
        let Some(target) = self.targets.first() else {
            return Ok(());
        };
        let message = RangeRequest {
            key: (&target.prefix.prefix_start()).into(),
            range_end: None,
            limit: Int(1),
            revision: Int(Revision(0)),
        };
        let endpoint = &self.connection.endpoint;
        let read = self.client.call_at(endpoint, Request::Range, &message);
        let response: RangeResponse = read.await.map_err(|error| match error {
            Error::Unreachable { endpoint, cause } => Error::WatchEnded { endpoint, cause },
            error => error,
        })?;
        self.same_cluster(response.header.into())
    }

    fn same_cluster(&self, header: Header) -> Result<(), Error> {
        match self.connection.header {
            Some(first) if first.cluster_id != header.cluster_id => Err(Error::ClusterChanged {
                endpoint: self.connection.endpoint.url.clone(),
                expected: first.cluster_id,
                found: header.cluster_id,
            }),
            _ => Ok(()),
        }
    }

    fn error(&self, failure: Failure) -> Error {
        let endpoint = self.connection.endpoint.url.clone();
        let request = Request::Watch;
        match failure {
            Failure::Unknown(Cause::Malformed(cause)) => Error::Malformed {
                endpoint,
                request,
                cause,
            },
            Failure::NotApplied(cause) | Failure::Unknown(cause) => {
                Error::WatchEnded { endpoint, cause }
            }
            Failure::InvalidToken(error) | Failure::Final(error) => error,
        }
    }

    /// The batch of a response; `None` if it only confirms a watch.
    fn batch(&mut self, response: Response) -> Result<Option<Batch>, Error> {
        let malformed = |state: &Self, error: Malformed| {
            Err(state.error(Failure::Unknown(Cause::Malformed(error))))
        };
        if response.canceled {
            return Err(self.error(self.connection.canceled(&response)));
        }
        let header = Header::from(response.header);
        self.same_cluster(header)?;
        let at = match response.target(self.targets.len()) {
            Ok(at) => at,
            Err(error) => return malformed(self, error),
        };
        let from = self.targets[at].from;
        if response.created {
            // A watch from now on: what follows it has a revision.
            if from == Revision(0) {
                self.targets[at].from = header.revision.next();
            }
            return Ok(None);
        }
        let events: Vec<Event> = response.events.into_iter().map(Event::from).collect();
        let is_ordered = events.is_sorted_by_key(Event::mod_revision);
        let first = events.first().map(Event::mod_revision);
        if !is_ordered || first.is_some_and(|first| first < from) {
            return malformed(self, Malformed::Field("order of events"));
        }
        let next = match events.last().map(Event::mod_revision) {
            Some(last) if response.fragment => last,
            Some(last) => last.next(),
            None => from.max(header.revision.next()),
        };
        self.targets[at].from = next;
        Ok(Some(Batch {
            header,
            target: at,
            next,
            events,
        }))
    }
}
