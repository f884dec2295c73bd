//! Who is connected, what each connection waits for, and which one goes when there is no place for another.
//! Out of scope: accepting ([`super::server`]), HTTP.
//!
//! # Why connections that wait for their peer may go
//! A limit alone would let whoever fills it first keep everybody else out, root too: idle connections cost a client nothing. One that
//! waits for its peer, to ask or to read, has no claim to its place; one that we work for, or that follows something, keeps it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::limits::Limits;
use crate::clock;

/// Whoever has taken nothing for so long makes room for an answer to somebody else.
const BLOCKED: Duration = Duration::from_millis(50);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a request, since then and until then.
    Head { since: Instant, until: Instant },
    /// Waits for a request's body.
    Body { since: Instant, until: Instant },
    /// We work for it.
    Working,
    /// It is answered, until then.
    Answering { until: Instant },
    /// It follows something.
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
    /// Since when the peer has taken nothing of what is written.
    blocked: Option<Instant>,
    /// Until when the answer must have been taken that is still being written.
    answer_until: Option<Instant>,
    /// Held until the answer has been written.
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

    /// An answer begins; what is held for it is given back when it has been written.
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

    /// All of the answer has been handed on to be written.
    pub(super) fn answered(&self, now: Instant) {
        let until = now + self.limits.idle;
        self.enter(Phase::Head { since: now, until });
    }

    /// The peer takes nothing.
    pub(super) fn is_blocked(&self, now: Instant) {
        let mut state = self.state();
        if state.blocked.is_none() {
            state.blocked = Some(now);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The peer has taken something.
    pub(super) fn moves(&self, now: Instant) {
        let mut state = self.state();
        state.blocked = None;
        // A long answer is still being read: the time for the next request has not begun.
        let answering = state.answer_until.is_some();
        if let Phase::Head { since, until } = &mut state.phase
            && answering
        {
            *since = now;
            *until = now + self.limits.idle;
        }
    }

    /// Everything has been written.
    pub(super) fn is_flushed(&self) {
        let mut state = self.state();
        state.blocked = None;
        if matches!(state.phase, Phase::Head { .. }) {
            state.answer_until = None;
            state.permits.clear();
        }
    }

    /// Since when it has waited for its peer. None: it does not.
    fn waits_since(&self) -> Option<Instant> {
        let state = self.state();
        let phase = match state.phase {
            Phase::Head { since, .. } | Phase::Body { since, .. } => Some(since),
            Phase::Working | Phase::Answering { .. } | Phase::Following => None,
        };
        state.blocked.or(phase)
    }

    /// Since when its peer has taken nothing, where something is held for its answer.
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

    /// Comes back when the connection is to be closed: a deadline has passed, or its place is needed.
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

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum User {
    /// Root, or the daemon's own.
    Privileged,
    /// Another.
    Of(u32),
}

/// A connection's place, until it is dropped.
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

    /// A place for one more; if need be, that of one that waits for its peer.
    ///
    /// # Errors
    /// Why there is none.
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

    /// Closes, for its answer's sake, the connection whose peer has taken nothing of it for longest. False: there is none.
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
                format!("user {uid} has {mine} connections, which are as many as one user may have")
            }),
            User::Of(_) if others >= limits.connections - limits.reserved => {
                // From whoever has the most; never from one with as few.
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
    format!("{count} connections are open, which are as many as there may be")
}

impl Open {
    fn of(&self, user: User) -> usize {
        self.all.values().filter(|entry| entry.user == user).count()
    }

    /// The others first.
    fn users(&self) -> Vec<User> {
        let mut users: Vec<User> = self.all.values().map(|entry| entry.user).collect();
        users.sort_by_key(|user| *user == User::Privileged);
        users.dedup();
        users
    }

    /// Who of those that are not privileged has the most.
    fn most(&self) -> Option<(User, usize)> {
        let users = self.users().into_iter();
        let others = users.filter(|user| *user != User::Privileged);
        others
            .map(|user| (user, self.of(user)))
            .max_by_key(|(_, count)| *count)
    }

    /// Closes the connection that has waited longest for its peer, of the first of these users who has one.
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

    /// So many of one user's; `busy` ones are worked for.
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
    fn whoever_has_filled_it_root_finds_a_place_and_one_user_never_has_them_all() {
        let all = Arc::new(Connections::new(limits()));
        let alice = fill(&all, ALICE, 50, true);
        assert_eq!(
            alice.len(),
            limits().per_user,
            "busy ones keep their places"
        );
        let bob = fill(&all, BOB, 50, true);
        assert_eq!(alice.len() + bob.len(), 12);
        let root = fill(&all, User::Privileged, 50, true);
        assert_eq!(root.len(), limits().reserved);
        assert_eq!(closed(&alice) + closed(&bob), 0);
        drop(root);
        // Idle ones of root itself make room for its next.
        let root = fill(&all, User::Privileged, 50, false);
        assert_eq!(root.len(), 50);
        assert_eq!(closed(&root), 46);
        assert!(
            !root[49].connection.closed.is_cancelled(),
            "the newest stays"
        );
    }

    #[test]
    fn idle_ones_go_the_oldest_first_and_those_of_whoever_has_most() {
        let all = Arc::new(Connections::new(limits()));
        let alice = fill(&all, ALICE, 6, false);
        let bob = fill(&all, BOB, 6, false);
        let carol = all.admit(User::Of(1002), Instant::now()).unwrap();
        assert_eq!(closed(&alice) + closed(&bob), 1);
        let more = fill(&all, User::Privileged, 16, true);
        assert_eq!(more.len(), 16, "the others' idle ones go for root's");
        assert_eq!(closed(&alice) + closed(&bob), 12);
        assert!(carol.connection.closed.is_cancelled());
        assert!(all.admit(User::Privileged, Instant::now()).is_err());
        assert!(all.admit(ALICE, Instant::now()).is_err());
    }

    #[test]
    fn each_phase_has_its_deadline_and_a_stream_has_none_while_its_peer_reads() {
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
