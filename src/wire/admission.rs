//! Admission of requests: checks the peer's permission and the limits, and reads the complete body up to its limit.
//! Out of scope: connections ([`super::connections`]), the content of requests.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connections::{Connection, Connections, User};
use super::door::Peer;
use super::guarded::Tracked;
use super::limits::{
    ANSWERS_LIMIT, BODIES_LIMIT, BODY_LIMIT, Limits, SMALL_ANSWER, SMALL_BODY_LIMIT,
};
use super::problem::problem;
use crate::clock;

/// Interval of checks whether the limit of [`ANSWERS_LIMIT`] permits another response.
const ANSWER_STEP: std::time::Duration = std::time::Duration::from_millis(10);

/// The peer of a connection, attached to each of its requests.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) peer: Peer,
    pub(super) user: User,
    pub(super) connection: Arc<Connection>,
}

/// The limits that requests share. Privileged users have separate ones.
#[derive(Debug)]
pub(super) struct Room {
    limits: Limits,
    connections: Arc<Connections>,
    privileged: Share,
    others: Share,
    streams: std::sync::Mutex<Vec<User>>,
}

#[derive(Debug)]
struct Share {
    heavy: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    /// One permit per KiB of request bodies.
    bodies: Arc<Semaphore>,
    /// One permit per KiB of responses.
    answers: Arc<Semaphore>,
}

impl Share {
    fn of(limits: &Limits) -> Self {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        Self {
            heavy: semaphore(limits.heavy),
            lists: semaphore(limits.lists),
            bodies: semaphore(BODIES_LIMIT >> 10),
            answers: semaphore(ANSWERS_LIMIT >> 10),
        }
    }
}

impl Room {
    pub(super) fn new(limits: Limits, connections: Arc<Connections>) -> Self {
        Self {
            connections,
            privileged: Share::of(&limits),
            others: Share::of(&limits),
            streams: std::sync::Mutex::default(),
            limits,
        }
    }

    fn share(&self, user: User) -> &Share {
        match user {
            User::Privileged => &self.privileged,
            User::Of(_) => &self.others,
        }
    }

    /// Registers a stream.
    ///
    /// # Errors
    /// A limit is reached; the message specifies which one.
    fn stream(self: &Arc<Self>, user: User) -> Result<Stream, String> {
        let mut streams = self.streams.lock().unwrap_or_else(|p| p.into_inner());
        let (all, mine) = (
            streams.len(),
            streams.iter().filter(|of| **of == user).count(),
        );
        let most = self.limits.streams;
        // Half of the streams are reserved for privileged users.
        let full = match user {
            User::Privileged => all >= most,
            User::Of(_) => mine >= most / 4 || all >= most / 2,
        };
        if full {
            return Err(format!(
                "the limit of streams is reached: {all} are open, {mine} of them by this user"
            ));
        }
        streams.push(user);
        Ok(Stream {
            user,
            room: Arc::clone(self),
        })
    }
}

/// A registered stream, until dropped.
struct Stream {
    user: User,
    room: Arc<Room>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = self.room.streams.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(at) = streams.iter().position(|user| *user == self.user) {
            streams.swap_remove(at);
        }
    }
}

/// The resources that a request needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Light,
    /// Parses manifests or observes the whole host.
    Heavy,
    /// Lists objects.
    List,
    /// Is a stream (`follow=true`).
    Follows,
}

fn weight(request: &Request) -> Weight {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let follows = query.split('&').any(|pair| pair == "follow=true");
    let reads = request.method() == Method::GET;
    match path.strip_prefix("/v1/").unwrap_or_default() {
        "apply" | "diff" | "names" | "gc" | "doctor" => Weight::Heavy,
        _ if follows && reads => Weight::Follows,
        rest if rest.starts_with("objects/") && reads => Weight::List,
        _ => Weight::Light,
    }
}

pub(super) async fn admit(
    State(room): State<Arc<Room>>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let connection = Arc::clone(&caller.connection);
    let weight = weight(&request);
    let answer = work(&room, &caller, weight, request, next).await;
    let (answer, held, permits) = match answer {
        Ok((answer, Held { stream, permits })) => (answer, stream, permits),
        Err(refusal) => (refusal, None, Vec::new()),
    };
    let follows = held.is_some() && answer.status().is_success();
    connection.answers(clock::monotonic(), follows, permits);
    answer.map(|body| Body::new(Tracked::new(body, connection, held)))
}

/// Permits held until the response has been sent.
#[derive(Default)]
struct Held {
    stream: Option<Stream>,
    permits: Vec<OwnedSemaphorePermit>,
}

async fn work(
    room: &Arc<Room>,
    caller: &Caller,
    weight: Weight,
    request: Request,
    next: Next,
) -> Result<(Response, Held), Response> {
    let peer = &caller.peer;
    if !peer.admitted {
        tracing::warn!(
            uid = peer.uid,
            pid = peer.pid,
            "permission denied for a client"
        );
        let error = format!(
            "user {} may not connect to sliced: only root, the user of sliced and members of the socket's group may",
            peer.uid
        );
        return Err(problem(StatusCode::FORBIDDEN, error, Vec::new()));
    }
    let (request, body) = whole(room, caller, request).await?;
    caller.connection.works();
    let share = room.share(caller.user);
    let mut held = Held::default();
    let working = match weight {
        Weight::Heavy => {
            Some(turn(room, &share.heavy, "read manifests or inspect the host").await?)
        }
        Weight::List => Some(turn(room, &share.lists, "list objects").await?),
        Weight::Follows => {
            held.stream = Some(room.stream(caller.user).map_err(busy)?);
            None
        }
        Weight::Light => None,
    };
    let answer = next.run(request).await;
    drop((working, body));
    let length = hyper::body::Body::size_hint(answer.body()).lower();
    held.permits
        .extend(for_answer(room, caller.user, length).await?);
    Ok((answer, held))
}

/// Permits for a response of this length, until the client has read it. `None` if the response is too small to be counted.
async fn for_answer(
    room: &Room,
    user: User,
    length: u64,
) -> Result<Option<OwnedSemaphorePermit>, Response> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length < SMALL_ANSWER {
        return Ok(None);
    }
    let answers = &room.share(user).answers;
    let needs = u32::try_from(length.min(ANSWERS_LIMIT) >> 10).unwrap_or(u32::MAX);
    let since = clock::monotonic();
    loop {
        if let Ok(permit) = Arc::clone(answers).try_acquire_many_owned(needs) {
            return Ok(Some(permit));
        }
        let now = clock::monotonic();
        if room
            .connections
            .evict_blocked(user == User::Privileged, now)
        {
            continue;
        }
        if now.saturating_duration_since(since) > room.limits.turn {
            let why = "too many large responses are being sent; try again";
            return Err(busy(why.to_owned()));
        }
        tokio::time::sleep(ANSWER_STEP).await;
    }
}

async fn turn(
    room: &Room,
    semaphore: &Arc<Semaphore>,
    what: &str,
) -> Result<OwnedSemaphorePermit, Response> {
    let turn = Arc::clone(semaphore).acquire_owned();
    match tokio::time::timeout(room.limits.turn, turn).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(busy(format!(
            "too many requests {what} at the same time; try again"
        ))),
    }
}

/// Reads the request's body into memory. Also returns the permits for its size.
async fn whole(
    room: &Room,
    caller: &Caller,
    request: Request,
) -> Result<(Request, Vec<OwnedSemaphorePermit>), Response> {
    if matches!(
        *request.method(),
        Method::GET | Method::DELETE | Method::HEAD
    ) {
        return Ok((request, Vec::new()));
    }
    let most = match request.uri().path() {
        "/v1/apply" | "/v1/diff" | "/v1/names" => BODY_LIMIT,
        _ => SMALL_BODY_LIMIT,
    };
    let too_large = || {
        let error = format!("the request body is larger than {most} bytes");
        problem(StatusCode::PAYLOAD_TOO_LARGE, error, Vec::new())
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    caller.connection.awaits_body(clock::monotonic());
    let bodies = &room.share(caller.user).bodies;
    let (parts, body) = request.into_parts();
    let (mut stream, mut bytes, mut held) = (body.into_data_stream(), BytesMut::new(), Vec::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            let error = format!("cannot read the request body: {error}");
            problem(StatusCode::BAD_REQUEST, error, Vec::new())
        })?;
        if bytes.len() + chunk.len() > most {
            return Err(too_large());
        }
        // Permits for the received bytes, not for the announced length: a client that sends nothing takes none.
        let needs = (bytes.len() + chunk.len()).div_ceil(1024) - bytes.len().div_ceil(1024);
        let needs = u32::try_from(needs).unwrap_or(u32::MAX);
        match Arc::clone(bodies).try_acquire_many_owned(needs) {
            Ok(permit) => held.push(permit),
            Err(_) => {
                let why = "too many large requests are being received; try again";
                return Err(busy(why.to_owned()));
            }
        }
        bytes.extend_from_slice(&chunk);
    }
    let request = Request::from_parts(parts, Body::from(Bytes::from(bytes)));
    Ok((request, held))
}

fn busy(error: String) -> Response {
    let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, error, Vec::new());
    let later = header::HeaderValue::from_static("1");
    answer.headers_mut().insert(header::RETRY_AFTER, later);
    answer
}
