//! The open connections with their phases and deadlines, and the eviction of connections when a limit is reached.
//! Out of scope: accepting connections ([`super::listener`]), HTTP.
//!
//! # Why connections that wait for their peer are evicted
//! With a limit alone, one client could lock out all others, including root: idle connections cost a client nothing. A connection that
//! waits for its peer to send or to read may be evicted; one with a request in progress, or a stream, may not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::limits::Limits;
use crate::clock;

/// A connection whose peer has read nothing for this time may be evicted in favour of a response to another peer.
const BLOCKED: Duration = Duration::from_millis(50);

/// The phase of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a request head since `since`, with the deadline `until`.
    Head { since: Instant, until: Instant },
    /// Waits for a request body.
    Body { since: Instant, until: Instant },
    /// A request is in progress.
    Working,
    /// A response is being sent, with the deadline `until`.
    Answering { until: Instant },
    /// A stream is being sent.
    Following,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
    closed: CancellationToken,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Since when writes are blocked because the peer does not read.
    blocked: Option<Instant>,
    /// Deadline for the peer to read the response that is being written.
    answer_until: Option<Instant>,
    /// Held until the response has been written.
    permits: Vec<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                phase: Phase::Head {
                    since: now,
                    until: now + limits.head,
                },
                blocked: None,
                answer_until: None,
                permits: Vec::new(),
            }),
            changed: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        self.state().phase = phase;
        self.changed.notify_one();
    }

    pub(super) fn works(&self) {
        self.enter(Phase::Working);
    }

    pub(super) fn awaits_body(&self, now: Instant) {
        let until = now + self.limits.body;
        self.enter(Phase::Body { since: now, until });
    }

    /// A response starts; `held` is released when it has been written.
    pub(super) fn answers(&self, now: Instant, follows: bool, held: Vec<OwnedSemaphorePermit>) {
        let until = now + self.limits.response;
        let mut state = self.state();
        state.permits.extend(held);
        state.phase = match follows {
            true => Phase::Following,
            false => Phase::Answering { until },
        };
        state.answer_until = (!follows).then_some(until);
        drop(state);
        self.changed.notify_one();
    }

    /// The complete response has been passed to the writer.
    pub(super) fn answered(&self, now: Instant) {
        let until = now + self.limits.idle;
        self.enter(Phase::Head { since: now, until });
    }

    /// A write is blocked because the peer does not read.
    pub(super) fn is_blocked(&self, now: Instant) {
        let mut state = self.state();
        if state.blocked.is_none() {
            state.blocked = Some(now);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// A write has made progress.
    pub(super) fn moves(&self, now: Instant) {
        let mut state = self.state();
        state.blocked = None;
        // The peer is still reading a long response: the idle timeout starts later.
        let answering = state.answer_until.is_some();
        if let Phase::Head { since, until } = &mut state.phase
            && answering
        {
            *since = now;
            *until = now + self.limits.idle;
        }
    }

    /// All data has been written.
    pub(super) fn is_flushed(&self) {
        let mut state = self.state();
        state.blocked = None;
        if matches!(state.phase, Phase::Head { .. }) {
            state.answer_until = None;
            state.permits.clear();
        }
    }

    /// Since when the connection has waited for its peer; `None` if it does not wait.
    fn waits_since(&self) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::Head { since, .. } | Phase::Body { since, .. } => Some(since),
            Phase::Working | Phase::Answering { .. } | Phase::Following => None,
        };
        state.blocked.or(phase)
    }

    /// Since when writes are blocked, if the connection holds permits for its response.
    fn blocked_with_answer(&self) -> Option<Instant> {
        let state = self.state();
        state.blocked.filter(|_| !state.permits.is_empty())
    }

    fn deadline(&self) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::Head { until, .. } | Phase::Body { until, .. } | Phase::Answering { until } => {
                Some(until)
            }
            Phase::Working | Phase::Following => None,
        };
        let blocked = state.blocked.map(|since| since + self.limits.write);
        [phase, blocked, state.answer_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns when the connection must be closed: a deadline has passed, or it is evicted.
    pub(super) async fn must_close(&self) {
        loop {
            let changed = self.changed.notified();
            let overdue = async {
                match self.deadline() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.closed.cancelled() => return,
                () = changed => {}
                () = overdue => {
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
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: BTreeMap<u64, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    user: User,
    connection: Arc<Connection>,
}

/// The user of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum User {
    /// Root, or the daemon's own user.
    Privileged,
    /// Another user, by its id.
    Of(u32),
}

/// Registration of a connection, until dropped.
#[derive(Debug)]
pub(super) struct Place {
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
    pub(super) fn admit(self: &Arc<Self>, user: User, now: Instant) -> Result<Place, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_room(&mut open, user)?;
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
        Ok(Place {
            id,
            connection,
            all: Arc::clone(self),
        })
    }

    /// Closes the connection that has been blocked longest among those that hold permits for a response. Returns false if there is none.
    pub(super) fn evict_blocked(&self, privileged: bool, now: Instant) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let blocked = open.all.iter().filter_map(|(id, entry)| {
            let same = (entry.user == User::Privileged) == privileged;
            let since = entry.connection.blocked_with_answer()?;
            (same && since + BLOCKED <= now).then_some((since, *id))
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

    fn make_room(&self, open: &mut Open, user: User) -> Result<(), String> {
        let limits = &self.limits;
        let (mine, others) = (open.of(user), open.all.len() - open.of(User::Privileged));
        match user {
            User::Of(uid) if mine >= limits.per_user => open.evict(&[user]).ok_or_else(|| {
                format!("user {uid} has {mine} connections, which is the limit per user")
            }),
            User::Of(_) if others >= limits.connections - limits.reserved => {
                // Evicts from the user with most connections, if that has more than this one.
                let most = open.most();
                let most = most.filter(|(other, count)| *other != user && *count > mine);
                let from = most.map_or(user, |(other, _)| other);
                open.evict(&[from]).ok_or_else(|| full(others))
            }
            User::Of(_) | User::Privileged if open.all.len() >= limits.connections => {
                let anybody = open.users();
                let from = match user {
                    User::Privileged => anybody,
                    User::Of(_) => vec![user],
                };
                open.evict(&from).ok_or_else(|| full(open.all.len()))
            }
            User::Of(_) | User::Privileged => Ok(()),
        }
    }
}

fn full(count: usize) -> String {
    format!("{count} connections are open, which is the limit")
}

impl Open {
    fn of(&self, user: User) -> usize {
        self.all.values().filter(|entry| entry.user == user).count()
    }

    /// All users, the privileged last.
    fn users(&self) -> Vec<User> {
        let mut users: Vec<User> = self.all.values().map(|entry| entry.user).collect();
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

    /// Closes the connection that has waited longest for its peer, of the first of these users that has one.
    fn evict(&mut self, from: &[User]) -> Option<()> {
        let longest = from.iter().find_map(|user| {
            let theirs = self.all.iter().filter(|(_, entry)| entry.user == *user);
            let waiting =
                theirs.filter_map(|(id, entry)| Some((entry.connection.waits_since()?, *id)));
            waiting.min()
        });
        let (_, id) = longest?;
        let entry = self.all.remove(&id)?;
        entry.connection.closed.cancel();
        Some(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: User = User::Of(1000);
    const BOB: User = User::Of(1001);

    fn limits() -> Limits {
        Limits::of(16)
    }

    /// Admits up to `count` connections of a user; with `busy`, each has a request in progress.
    fn fill(all: &Arc<Connections>, user: User, count: usize, busy: bool) -> Vec<Place> {
        let now = Instant::now();
        let admit = |at| {
            let place = all.admit(user, now + Duration::from_millis(at)).ok()?;
            if busy {
                place.connection.works();
            }
            Some(place)
        };
        (0..count as u64).filter_map(admit).collect()
    }

    fn closed(places: &[Place]) -> usize {
        let closed = |place: &&Place| place.connection.closed.is_cancelled();
        places.iter().filter(closed).count()
    }

    #[test]
    fn root_is_admitted_at_the_limit_and_no_user_has_all_connections() {
        let all = Arc::new(Connections::new(limits()));
        let alice = fill(&all, ALICE, 50, true);
        assert_eq!(
            alice.len(),
            limits().per_user,
            "busy connections are not evicted"
        );
        let bob = fill(&all, BOB, 50, true);
        assert_eq!(alice.len() + bob.len(), 12);
        let root = fill(&all, User::Privileged, 50, true);
        assert_eq!(root.len(), limits().reserved);
        assert_eq!(closed(&alice) + closed(&bob), 0);
        drop(root);
        // Idle connections of root are evicted for new ones of root.
        let root = fill(&all, User::Privileged, 50, false);
        assert_eq!(root.len(), 50);
        assert_eq!(closed(&root), 46);
        assert!(
            !root[49].connection.closed.is_cancelled(),
            "the newest is kept"
        );
    }

    #[test]
    fn the_oldest_idle_connection_of_the_user_with_most_is_evicted_first() {
        let all = Arc::new(Connections::new(limits()));
        let alice = fill(&all, ALICE, 6, false);
        let bob = fill(&all, BOB, 6, false);
        let carol = all.admit(User::Of(1002), Instant::now()).unwrap();
        assert_eq!(closed(&alice) + closed(&bob), 1);
        let more = fill(&all, User::Privileged, 16, true);
        assert_eq!(
            more.len(),
            16,
            "idle connections of others are evicted for root"
        );
        assert_eq!(closed(&alice) + closed(&bob), 12);
        assert!(carol.connection.closed.is_cancelled());
        assert!(all.admit(User::Privileged, Instant::now()).is_err());
        assert!(all.admit(ALICE, Instant::now()).is_err());
    }

    #[test]
    fn each_phase_has_its_deadline_and_a_stream_has_none_while_the_peer_reads() {
        let (limits, now) = (limits(), Instant::now());
        let connection = Connection::new(limits, now);
        assert_eq!(connection.deadline(), Some(now + limits.head));
        connection.works();
        assert_eq!(connection.deadline(), None);
        connection.awaits_body(now);
        assert_eq!(connection.deadline(), Some(now + limits.body));
        connection.answers(now, true, Vec::new());
        assert_eq!(
            (connection.deadline(), connection.waits_since()),
            (None, None)
        );
        connection.is_blocked(now);
        assert_eq!(connection.deadline(), Some(now + limits.write));
        assert_eq!(connection.waits_since(), Some(now));
        connection.moves(now);
        assert_eq!(connection.deadline(), None);
        connection.answers(now, false, Vec::new());
        connection.answered(now);
        let later = now + Duration::from_secs(100);
        connection.moves(later);
        assert_eq!(
            connection.deadline(),
            Some(now + limits.response),
            "a slow reader"
        );
        connection.is_flushed();
        assert_eq!(connection.deadline(), Some(later + limits.idle));
    }
}
