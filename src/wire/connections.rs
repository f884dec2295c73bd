//! The open connections with their phases and deadlines, and the eviction of connections when a limit is reached.
//! Out of scope: accepting connections ([`super::listener`]), HTTP.
//!
//! # Why connections that wait for their peer are evicted
//! With a limit alone, one client could lock out all others, including root: idle connections cost a client nothing. A connection that
//! waits for its peer to send or to read may be evicted; one with a request in progress, or a stream, may not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::agents::AgentPermit;
use super::limits::Limits;
use super::stream::Socket;
use super::user::User;
use crate::clock;

/// A connection may be evicted after its peer has read nothing for this time, in favour of a response to another peer.
const EVICTION_DELAY: Duration = Duration::from_millis(50);

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a request head since `since`, with the deadline `until`.
    ReceivingHead { since: Instant, until: Instant },
    /// Waits for a request body.
    ReceivingBody { since: Instant, until: Instant },
    /// A request is in progress.
    Working,
    /// A response is being sent, with the deadline `until`.
    Responding { until: Instant },
    /// A stream is being sent.
    Streaming,
    /// A request is forwarded to an agent, until the connection ends. It may wait for its peer as long as the peer takes: for keys, or for
    /// a reader of its output. Its limit is that of such requests ([`super::agents`]).
    Forwarding,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
    closed: CancellationToken,
    is_forwarding: AtomicBool,
    /// Whether a request on it was permitted.
    is_authenticated: AtomicBool,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when writes are blocked because the peer does not read.
    blocked: Option<Instant>,
    /// Deadline for the peer to read the response that is being written.
    response_deadline: Option<Instant>,
    /// Held until the response has been written.
    permits: Vec<OwnedSemaphorePermit>,
    /// Acquired until the connection ends, if it is forwarding.
    agent: Option<Arc<AgentPermit>>,
}

impl Connection {
    fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                phase: Phase::ReceivingHead {
                    since: now,
                    until: now + limits.head,
                },
                blocked: None,
                response_deadline: None,
                permits: Vec::new(),
                agent: None,
            }),
            changed: Notify::new(),
            closed: CancellationToken::new(),
            is_forwarding: AtomicBool::new(false),
            is_authenticated: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state();
        if state.phase != Phase::Forwarding {
            state.phase = phase;
            drop(state);
            self.changed.notify_one();
        }
    }

    /// A request is forwarded to an agent from now on. The connection no longer counts as one of the API.
    pub(super) fn forwards(&self, permit: Arc<AgentPermit>) {
        self.is_forwarding.store(true, Ordering::Relaxed);
        let mut state = self.state();
        state.phase = Phase::Forwarding;
        state.agent = Some(permit);
        drop(state);
        self.changed.notify_one();
    }

    fn is_forwarding(&self) -> bool {
        self.is_forwarding.load(Ordering::Relaxed)
    }

    /// A request on it was permitted.
    pub(super) fn authenticated(&self) {
        self.is_authenticated.store(true, Ordering::Relaxed);
    }

    fn is_stranger(&self) -> bool {
        !self.is_authenticated.load(Ordering::Relaxed)
    }

    pub(super) fn works(&self) {
        self.enter(Phase::Working);
    }

    pub(super) fn start_body(&self, now: Instant) {
        let until = now + self.limits.body;
        self.enter(Phase::ReceivingBody { since: now, until });
    }

    /// A response starts; `held` is released when it has been written.
    pub(super) fn answers(
        &self,
        now: Instant,
        is_stream: bool,
        permits: Vec<OwnedSemaphorePermit>,
    ) {
        let until = now + self.limits.response;
        let mut state = self.state();
        if state.phase == Phase::Forwarding {
            return;
        }
        state.permits.extend(permits);
        state.phase = match is_stream {
            true => Phase::Streaming,
            false => Phase::Responding { until },
        };
        state.response_deadline = (!is_stream).then_some(until);
        drop(state);
        self.changed.notify_one();
    }

    /// The complete response has been passed to the writer.
    pub(super) fn answered(&self, now: Instant) {
        let until = now + self.limits.idle;
        self.enter(Phase::ReceivingHead { since: now, until });
    }

    /// A write is blocked because the peer does not read.
    pub(super) fn write_blocked(&self, now: Instant) {
        let mut state = self.state();
        if state.blocked.is_none() && state.phase != Phase::Forwarding {
            state.blocked = Some(now);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// A write has made progress.
    pub(super) fn write_progressed(&self, now: Instant) {
        let mut state = self.state();
        state.blocked = None;
        // The peer is still reading a long response: the idle timeout starts later.
        let is_responding = state.response_deadline.is_some();
        if let Phase::ReceivingHead { since, until } = &mut state.phase
            && is_responding
        {
            *since = now;
            *until = now + self.limits.idle;
        }
    }

    /// All data has been written.
    pub(super) fn write_flushed(&self) {
        let mut state = self.state();
        state.blocked = None;
        if matches!(state.phase, Phase::ReceivingHead { .. }) {
            state.response_deadline = None;
            state.permits.clear();
        }
    }

    /// Since when the connection has waited for its peer; `None` if it does not wait.
    fn waiting_since(&self) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::ReceivingHead { since, .. } | Phase::ReceivingBody { since, .. } => Some(since),
            Phase::Working | Phase::Responding { .. } | Phase::Streaming | Phase::Forwarding => {
                None
            }
        };
        state.blocked.or(phase)
    }

    /// Since when writes are blocked, if the connection holds permits for its response.
    fn blocked_with_permits_since(&self) -> Option<Instant> {
        let state = self.state();
        state.blocked.filter(|_| !state.permits.is_empty())
    }

    fn deadline(&self) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::ReceivingHead { until, .. }
            | Phase::ReceivingBody { until, .. }
            | Phase::Responding { until } => Some(until),
            Phase::Working | Phase::Streaming | Phase::Forwarding => None,
        };
        let blocked = state.blocked.map(|since| since + self.limits.write);
        [phase, blocked, state.response_deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns when the connection must be closed: a deadline has passed, it is evicted, or the client of a forwarded request has gone.
    pub(super) async fn wait_for_close(&self, socket: &Socket) {
        loop {
            let changed = self.changed.notified();
            let deadline_passed = async {
                match self.deadline() {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.closed.cancelled() => return,
                // A command in a guest ends with its client, also while it does not read what the client has sent.
                () = socket.closed_by_peer(), if self.is_forwarding() => return,
                () = changed => {}
                () = deadline_passed => {
                    let now = clock::monotonic();
                    if self.deadline().is_some_and(|at| at <= now) {
                        return;
                    }
                }
            }
        }
    }
}

/// All connections of a server.
#[derive(Debug)]
pub(super) struct Connections {
    limits: Limits,
    open: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    all: BTreeMap<u64, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    user: User,
    connection: Arc<Connection>,
}

/// Registration of a connection, until dropped.
#[derive(Debug)]
pub(super) struct Registration {
    id: u64,
    pub(super) connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Mutex::default(),
        }
    }

    /// Registers a connection; if a limit is reached, evicts one that waits for its peer.
    ///
    /// # Errors
    /// A limit is reached and no connection can be evicted; the message specifies the limit.
    pub(super) fn admit(
        self: &Arc<Self>,
        user: User,
        now: Instant,
    ) -> Result<Registration, String> {
        let mut open = self.open.lock();
        self.evict_if_full(&mut open, user)?;
        let id = open.next;
        open.next += 1;
        let connection = Arc::new(Connection::new(self.limits, now));
        open.all.insert(
            id,
            Entry {
                user,
                connection: Arc::clone(&connection),
            },
        );
        Ok(Registration {
            id,
            connection,
            all: Arc::clone(self),
        })
    }

    /// Closes the connection that has been blocked longest among those that hold permits for a response. Returns false if there is none.
    pub(super) fn evict_blocked(&self, privileged: bool, now: Instant) -> bool {
        let mut open = self.open.lock();
        let blocked = open.all.iter().filter_map(|(id, entry)| {
            let same_class = (entry.user == User::Privileged) == privileged;
            let since = entry.connection.blocked_with_permits_since()?;
            (same_class && since + EVICTION_DELAY <= now).then_some((since, *id))
        });
        let Some((_, id)) = blocked.min() else {
            return false;
        };
        if let Some(entry) = open.all.remove(&id) {
            entry.connection.closed.cancel();
            entry.connection.state().permits.clear();
        }
        true
    }

    fn evict_if_full(&self, open: &mut OpenConnections, user: User) -> Result<(), String> {
        let limits = &self.limits;
        let all = open.counted().count();
        let (by_user, others) = (open.of(user), all - open.of(User::Privileged));
        match user {
            User::Of(_) | User::Remote(_) | User::Forwarded(_) if by_user >= limits.per_user => {
                open.evict(&[user])
                    .ok_or_else(|| format!("{user} has {by_user} connections, which is its limit"))
            }
            // Whoever has no token costs only others who have none.
            User::Remote(_) if all >= limits.connections && open.evict_stranger() => Ok(()),
            User::Of(_) | User::Remote(_) | User::Forwarded(_)
                if others >= limits.connections - limits.reserved =>
            {
                // Evicts from the user with most connections, if that has more than this one.
                let top_user = open.most();
                let most = top_user.filter(|(other, count)| *other != user && *count > by_user);
                let user_to_evict = most.map_or(user, |(other, _)| other);
                open.evict(&[user_to_evict]).ok_or_else(|| full(others))
            }
            _ if all >= limits.connections => {
                let all_users = open.users();
                let users = match user {
                    User::Privileged => all_users,
                    User::Of(_) | User::Remote(_) | User::Forwarded(_) => vec![user],
                };
                open.evict(&users).ok_or_else(|| full(all))
            }
            _ => Ok(()),
        }
    }
}

fn full(count: usize) -> String {
    format!("{count} connections are open, which is the limit")
}

impl OpenConnections {
    /// The connections that are not forwarding.
    fn counted(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.all.values();
        entries.filter(|entry| !entry.connection.is_forwarding())
    }

    fn of(&self, user: User) -> usize {
        self.counted().filter(|entry| entry.user == user).count()
    }

    /// All users, the privileged last.
    fn users(&self) -> Vec<User> {
        let mut users: Vec<User> = self.counted().map(|entry| entry.user).collect();
        users.sort_by_key(|user| *user == User::Privileged);
        users.dedup();
        users
    }

    /// The unprivileged user with most connections, and their number.
    fn most(&self) -> Option<(User, usize)> {
        let users = self.users().into_iter();
        let others = users.filter(|user| *user != User::Privileged);
        others
            .map(|user| (user, self.of(user)))
            .max_by_key(|(_, count)| *count)
    }

    /// Closes the connection without a permitted request that has waited longest for its peer, of the user with most such connections.
    /// Returns false if there is none.
    fn evict_stranger(&mut self) -> bool {
        let mut waiting: Vec<(User, Instant, u64)> = Vec::new();
        for (id, entry) in &self.all {
            if let Some(since) = entry.connection.waiting_since()
                && entry.connection.is_stranger()
            {
                waiting.push((entry.user, since, *id));
            }
        }
        let mut counts: HashMap<User, usize> = HashMap::new();
        for (user, ..) in &waiting {
            *counts.entry(*user).or_default() += 1;
        }
        let first = waiting
            .iter()
            .max_by_key(|(user, since, id)| (counts.get(user), Reverse((since, id))));
        let Some(entry) = first.and_then(|(_, _, id)| self.all.remove(id)) else {
            return false;
        };
        entry.connection.closed.cancel();
        true
    }

    /// Closes the connection that has waited longest for its peer, of the first of these users that has one.
    fn evict(&mut self, users: &[User]) -> Option<()> {
        let longest = users.iter().find_map(|user| {
            let of_user = self.all.iter().filter(|(_, entry)| entry.user == *user);
            let waiting =
                of_user.filter_map(|(id, entry)| Some((entry.connection.waiting_since()?, *id)));
            waiting.min()
        });
        let (_, id) = longest?;
        let entry = self.all.remove(&id)?;
        entry.connection.closed.cancel();
        Some(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut open = self.all.open.lock();
        open.all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
