//! The limits and deadlines of connections.
//! Out of scope: HTTP.

use tokio::net::UnixStream;

use super::super::agents::Agents;
use super::*;

const ALICE: User = User::Of(1000);
const BOB: User = User::Of(1001);

fn limits() -> Limits {
    Limits::of(16)
}

/// Admits up to `count` connections of a user; with `busy`, each has a request in progress.
fn fill(all: &Arc<Connections>, user: User, count: usize, busy: bool) -> Vec<Registration> {
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

fn closed(places: &[Registration]) -> usize {
    let closed = |place: &&Registration| place.connection.closed.is_cancelled();
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
fn connections_without_a_permitted_request_are_closed_for_others_and_cost_nobody_else() {
    let address = |last: u8| User::of_address([192, 0, 2, last].into());
    let all = Arc::new(Connections::new(Limits::remote(16)));
    // One client has permitted connections that wait, and one a request in progress.
    let permitted = fill(&all, address(1), 4, false);
    for place in &permitted {
        place.connection.authenticated();
    }
    let working = fill(&all, address(2), 2, true);
    let strangers: Vec<Registration> = (10..200)
        .flat_map(|last| fill(&all, address(last), 3, false))
        .collect();
    assert_eq!(strangers.len(), 190 * 3, "a new one is always admitted");
    assert_eq!(closed(&strangers), 190 * 3 - 10);
    assert_eq!(closed(&permitted) + closed(&working), 0);
    // The address that has most of them loses them first.
    let all = Arc::new(Connections::new(Limits::remote(16)));
    let few: Vec<Registration> = (1..4)
        .flat_map(|last| fill(&all, address(last), 1, false))
        .collect();
    let many = fill(&all, address(4), 12, false);
    let more = fill(&all, address(5), 3, false);
    assert_eq!(
        (closed(&few), closed(&many), closed(&more)),
        (0, 2, 0),
        "16 are open"
    );
    // No address has all of them, whatever it does on them.
    let all = Arc::new(Connections::new(Limits::remote(16)));
    let one = fill(&all, address(1), 50, true);
    let other = fill(&all, address(2), 50, true);
    assert_eq!((one.len(), other.len()), (12, 4));
}

#[test]
fn each_phase_has_its_deadline_and_a_stream_has_none_while_the_peer_reads() {
    let (limits, now) = (limits(), Instant::now());
    let connection = Connection::new(limits, now);
    assert_eq!(connection.deadline(), Some(now + limits.head));
    connection.works();
    assert_eq!(connection.deadline(), None);
    connection.start_body(now);
    assert_eq!(connection.deadline(), Some(now + limits.body));
    connection.answers(now, true, Vec::new());
    assert_eq!(
        (connection.deadline(), connection.waiting_since()),
        (None, None)
    );
    connection.write_blocked(now);
    assert_eq!(connection.deadline(), Some(now + limits.write));
    assert_eq!(connection.waiting_since(), Some(now));
    connection.write_progressed(now);
    assert_eq!(connection.deadline(), None);
    connection.answers(now, false, Vec::new());
    connection.answered(now);
    let later = now + Duration::from_secs(100);
    connection.write_progressed(later);
    assert_eq!(
        connection.deadline(),
        Some(now + limits.response),
        "a slow reader"
    );
    connection.write_flushed();
    assert_eq!(connection.deadline(), Some(later + limits.idle));
}

#[tokio::test]
async fn a_connection_that_forwards_a_request_is_not_counted_never_late_and_ends_with_its_client() {
    let all = Arc::new(Connections::new(limits()));
    let agents = Arc::new(Agents::new(64));
    let first = fill(&all, ALICE, limits().per_user, true);
    for place in &first {
        let permit = agents.acquire(ALICE, &"vm".parse().unwrap()).unwrap();
        place.connection.forwards(Arc::new(permit));
    }
    let more = fill(&all, ALICE, 50, true);
    assert_eq!(more.len(), limits().per_user, "those of the API");
    assert_eq!(closed(&first), 0);
    let connection = &first[0].connection;
    let now = Instant::now();
    connection.write_blocked(now);
    connection.answers(now, false, Vec::new());
    connection.answered(now);
    assert_eq!(
        (connection.deadline(), connection.waiting_since()),
        (None, None)
    );
    let (local, theirs) = UnixStream::pair().unwrap();
    let local = Socket::Unix(local);
    let short = Duration::from_millis(50);
    let waits = tokio::time::timeout(short, connection.wait_for_close(&local));
    assert!(waits.await.is_err(), "both are there");
    drop(theirs);
    connection.wait_for_close(&local).await;
}

#[test]
fn a_second_listener_on_a_unix_socket_reserves_a_quarter_for_root() {
    let all = Arc::new(Connections::new(Limits::remote(16).local()));
    let others = [ALICE, BOB].map(|user| fill(&all, user, 50, true));
    assert_eq!(others.iter().map(Vec::len).sum::<usize>(), 12);
    let root = fill(&all, User::Privileged, 50, true);
    assert_eq!(root.len(), 4);
}
