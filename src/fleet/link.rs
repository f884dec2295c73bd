//! The connection of this node to the fleet: its lease, the list and the watch of all objects, and its contact.
//! Out of scope: what the node and the scheduler do with the objects.
//!
//! # Order
//! An event of the connection is applied to a copy of the contact, the facts of the copy are stored, and then readers see it together with
//! the objects that it brings: nothing is done on facts that are not stored.
//!
//! # Load
//! A node without changes sends two requests every [`RENEW_INTERVAL`]: the renewal of the lease and a read of its key. The watch of the client
//! reads one key in its own interval.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::contact::{Boottime, Contact, Event, Facts, Header, Ticket};
use super::kv;
use super::mirror::Mirror;
use crate::api::meta::Name;
use crate::clock;

mod errors;
mod objects;
mod renewal;
mod retry;
#[cfg(test)]
mod tests;

use errors::Errors;
pub(super) use retry::{Backoff, jittered};

/// The time to live of the lease of a node.
pub const LEASE_TTL: Duration = Duration::from_secs(40);

/// How often the lease is renewed.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(10);

/// How often a revision alone is stored.
const STORE_INTERVAL: Duration = Duration::from_secs(30);

/// The connection.
pub struct Link {
    node: Name,
    host: String,
    client: kv::Client,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// One event is applied at a time.
    turn: tokio::sync::Mutex<()>,
    /// An administrator has accepted a cluster: the renewal does not wait.
    accepted: Notify,
}

struct State {
    contact: Contact,
    mirror: Mirror,
    /// The number of lists; changes are watched without a gap between two of them.
    lists: u64,
    /// The number of changes of the contact by [`Link::accept`].
    acceptances: u64,
    /// What was stored last, and when.
    stored: (Option<Facts>, Boottime),
    errors: Errors,
}

/// What [`Link::run`] stores facts with. An error is a sentence.
trait Store: Fn(Facts) -> Self::Future + Sync {
    type Future: Future<Output = Result<(), String>> + Send;
}

impl<F, R> Store for F
where
    F: Fn(Facts) -> R + Sync,
    R: Future<Output = Result<(), String>> + Send,
{
    type Future = R;
}

/// Why an attempt has failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Etcd(#[from] kv::Error),
    #[error("cannot store the facts of the fleet: {0}")]
    Store(String),
    #[error("{0}")]
    Other(String),
}

/// The present time.
pub fn boottime() -> Boottime {
    Boottime(clock::boottime())
}

impl Link {
    /// A connection that is not made yet ([`Link::run`]). `host`: what no other host has, and this one has until it is booted again;
    /// `contact` has the facts that are stored.
    pub fn new(node: Name, host: String, client: kv::Client, contact: Contact) -> Arc<Self> {
        Arc::new(Self {
            node,
            host,
            client,
            state: Mutex::new(State {
                stored: (contact.facts(), Boottime::default()),
                contact,
                mirror: Mirror::default(),
                lists: 0,
                acceptances: 0,
                errors: Errors::default(),
            }),
            changed: watch::Sender::new(0),
            turn: tokio::sync::Mutex::new(()),
            accepted: Notify::new(),
        })
    }

    /// The name of this node.
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// The client.
    pub fn client(&self) -> &kv::Client {
        &self.client
    }

    /// Reads the objects and the contact, at one moment.
    pub fn read<T>(&self, f: impl FnOnce(&Mirror, &Contact) -> T) -> T {
        let state = self.state.lock();
        f(&state.mirror, &state.contact)
    }

    /// The same, with the number of the list that the objects were watched from without a gap.
    pub(super) fn read_listed<T>(&self, f: impl FnOnce(&Mirror, &Contact, u64) -> T) -> T {
        let state = self.state.lock();
        f(&state.mirror, &state.contact, state.lists)
    }

    /// How often an administrator has accepted a cluster: revisions before the last time are of another history.
    pub(super) fn acceptances(&self) -> u64 {
        self.state.lock().acceptances
    }

    /// A number that changes with the objects and with the contact.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// An administrator has decided that this cluster is that of the fleet. [`Link::run`] stores the decision; it is stored when
    /// [`Link::is_stored`].
    pub fn accept(&self, cluster_id: u64, now: Boottime) {
        let mut state = self.state.lock();
        let before = state.contact.facts();
        state.contact.handle(Event::Accepted { cluster_id }, now);
        if state.contact.facts() == before {
            return;
        }
        state.acceptances += 1;
        drop(state);
        self.accepted.notify_one();
        self.notify();
    }

    /// What is stored: [`Contact::facts`].
    pub fn facts(&self) -> Option<Facts> {
        self.state.lock().contact.facts()
    }

    /// Whether the cluster and `unaccepted` of the facts are stored.
    pub fn is_stored(&self) -> bool {
        let state = self.state.lock();
        state.contact.facts().map(decisive) == state.stored.0.map(decisive)
    }

    /// Why the connection does not work, a sentence; `None` while it works.
    pub fn last_error(&self) -> Option<String> {
        self.state.lock().errors.text()
    }

    /// Keeps the connection until `stop`. `store` stores the facts; its error is a sentence. The lease is not revoked at the end: the VMs
    /// of this node continue to run, and the next daemon renews the key before the lease ends.
    pub async fn run<S, R>(&self, store: S, stop: CancellationToken)
    where
        S: Fn(Facts) -> R + Sync,
        R: Future<Output = Result<(), String>> + Send,
    {
        let work = async {
            tokio::join!(self.renewals(&store), self.objects(&store), self.ticks());
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
        // The revision, which may be newer than what is stored.
        let facts = self.facts();
        let stored = self.state.lock().stored.0;
        if let Some(facts) = facts.filter(|_| facts != stored)
            && let Err(error) = self.store(&store, facts).await
        {
            tracing::warn!("{error}");
        }
    }

    /// A request is about to be sent.
    fn ticket(&self) -> Ticket {
        let now = boottime();
        self.state.lock().contact.send(now)
    }

    /// Whether a response of another cluster, or of another history, is not accepted.
    fn is_foreign(&self) -> bool {
        let facts = self.facts();
        facts.is_some_and(|facts| facts.unaccepted.is_some())
    }

    /// Applies an event with the objects that it brings. Returns whether the content of the response may be used.
    async fn handle(
        &self,
        store: &impl Store,
        event: Event,
        mirror: Option<Mirror>,
    ) -> Result<bool, Failure> {
        let _turn = self.turn.lock().await;
        let mut mirror = mirror;
        loop {
            let (acceptances, mut contact, stored) = {
                let state = self.state.lock();
                (state.acceptances, state.contact.clone(), state.stored)
            };
            let now = boottime();
            let is_usable = contact.handle(event, now);
            if let Some(facts) = contact.facts() {
                self.store_if_due(store, facts, stored).await?;
            }
            let mut state = self.state.lock();
            // Otherwise an administrator has accepted a cluster in the meantime.
            if state.acceptances != acceptances {
                continue;
            }
            state.contact = contact;
            if let Some(mirror) = mirror.take().filter(|_| is_usable) {
                state.mirror = mirror;
                state.lists += 1;
            }
            drop(state);
            self.notify();
            return Ok(is_usable);
        }
    }

    async fn store_if_due(
        &self,
        store: &impl Store,
        facts: Facts,
        (stored, at): (Option<Facts>, Boottime),
    ) -> Result<(), Failure> {
        if stored.map(decisive) != Some(decisive(facts)) {
            return self.store(store, facts).await;
        }
        if stored != Some(facts) && boottime().since(at) >= STORE_INTERVAL {
            // A revision that is not stored makes a restored cluster less noticeable after a start; it is stored with the next event.
            if let Err(error) = self.store(store, facts).await {
                tracing::warn!("{error}");
            }
        }
        Ok(())
    }

    async fn store(&self, store: &impl Store, facts: Facts) -> Result<(), Failure> {
        store(facts).await.map_err(Failure::Store)?;
        self.state.lock().stored = (Some(facts), boottime());
        Ok(())
    }

    /// Reports that contact ends by time.
    async fn ticks(&self) {
        loop {
            let due = self.read(|_, contact| {
                let renewed = contact.renewed()?;
                Some(renewed.plus(super::contact::LOST_AFTER))
            });
            let now = boottime();
            match due.filter(|due| *due > now) {
                Some(due) => tokio::time::sleep(due.since(now)).await,
                None => {
                    let mut changed = self.subscribe();
                    let turn = self.turn.lock().await;
                    self.state.lock().contact.handle(Event::Tick, now);
                    drop(turn);
                    self.notify();
                    let renewed = self.read(|_, contact| contact.renewed());
                    let is_renewed = |_: &u64| self.read(|_, it| it.renewed() != renewed);
                    // The sender is in `self`.
                    let _ = changed.wait_for(is_renewed).await;
                }
            }
        }
    }

    fn notify(&self) {
        self.changed
            .send_modify(|number| *number = number.wrapping_add(1));
    }
}

/// The facts that are stored before anything is done on them.
fn decisive(facts: Facts) -> (u64, Option<Header>) {
    (facts.cluster_id, facts.unaccepted)
}

impl From<kv::Header> for Header {
    fn from(header: kv::Header) -> Self {
        Self {
            cluster_id: header.cluster_id.0,
            revision: header.revision.0,
        }
    }
}
