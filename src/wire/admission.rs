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
use tokio_util::sync::CancellationToken;

use super::auth::{Auth, HEALTH};
use super::browser;
use super::compat;
use super::connections::{Connection, Connections};
use super::guarded::TrackedBody;
use super::limits::{
    BODIES_LIMIT, BODY_LIMIT, Limits, MEDIUM_BODY_LIMIT, RESPONSES_LIMIT, SMALL_BODY_LIMIT,
    SMALL_RESPONSE,
};
use super::origin::Origin;
use super::peer::incoming::Forwarded;
use super::peer::{self, PeerConnection, Peers};
use super::problem::problem;
use super::ui::{self, Page};
use super::user::User;
use super::weight::{Weight, weight};
use crate::clock;

/// Interval of checks whether the limit of [`RESPONSES_LIMIT`] permits another response.
const RETRY_INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

/// The peer of a connection, attached to each of its requests.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) origin: Origin,
    pub(super) user: User,
    pub(super) connection: Arc<Connection>,
    /// The node of the fleet at the other end, if it is one.
    pub(super) peer: Option<Arc<PeerConnection>>,
}

impl Client {
    /// Cancelled when its requests must end: with the daemon, or when the certificate of a node is revoked.
    pub(super) fn stop(&self, daemon: &CancellationToken) -> CancellationToken {
        self.peer.as_ref().map_or(daemon, |peer| peer.end()).clone()
    }
}

/// The limits that requests share. Privileged users have separate ones.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    auth: Auth,
    page: Page,
    connections: Arc<Connections>,
    peers: Arc<Peers>,
    privileged: Quota,
    others: Quota,
    streams: parking_lot::Mutex<Vec<User>>,
}

#[derive(Debug)]
struct Quota {
    heavy: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    /// One permit per KiB of request bodies.
    bodies: Arc<Semaphore>,
    /// One permit per KiB of responses.
    answers: Arc<Semaphore>,
}

impl Quota {
    fn of(limits: &Limits) -> Self {
        let semaphore = |count| Arc::new(Semaphore::new(count));
        Self {
            heavy: semaphore(limits.heavy),
            lists: semaphore(limits.lists),
            bodies: semaphore(BODIES_LIMIT >> 10),
            answers: semaphore(RESPONSES_LIMIT >> 10),
        }
    }
}

impl Admission {
    pub(super) fn new(
        limits: Limits,
        auth: Auth,
        page: Page,
        connections: Arc<Connections>,
        peers: Arc<Peers>,
    ) -> Self {
        Self {
            auth,
            page,
            connections,
            peers,
            privileged: Quota::of(&limits),
            others: Quota::of(&limits),
            streams: parking_lot::Mutex::default(),
            limits,
        }
    }

    /// Whether requests need a token.
    pub(super) fn asks(&self) -> bool {
        self.auth.is_required()
    }

    /// Whether there is a page.
    pub(super) fn page(&self) -> Page {
        self.page
    }

    /// Whether a request is for a file of the page. It needs no token, and its response no memory.
    fn is_page(&self, request: &Request) -> bool {
        self.page == Page::On && ui::is_file(request.method(), request.uri().path())
    }

    fn share(&self, user: User) -> &Quota {
        match user {
            User::Privileged => &self.privileged,
            User::Of(_) | User::Remote(_) | User::Forwarded(_) => &self.others,
        }
    }

    /// Registers a stream.
    ///
    /// # Errors
    /// A limit is reached; the message specifies which one.
    fn stream(self: &Arc<Self>, user: User) -> Result<StreamPermit, String> {
        let mut streams = self.streams.lock();
        let (total, by_user) = (
            streams.len(),
            streams.iter().filter(|other| **other == user).count(),
        );
        let most = self.limits.streams;
        // Half of the streams are reserved for privileged users.
        let is_full = match user {
            User::Privileged => total >= most,
            User::Of(_) | User::Remote(_) | User::Forwarded(_) => {
                by_user >= most / 4 || total >= most / 2
            }
        };
        if is_full {
            return Err(format!(
                "the limit of streams is reached: {total} are open, {by_user} of them by this user"
            ));
        }
        streams.push(user);
        Ok(StreamPermit {
            user,
            admission: Arc::clone(self),
        })
    }
}

/// A registered stream, until dropped.
struct StreamPermit {
    user: User,
    admission: Arc<Admission>,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut streams = self.admission.streams.lock();
        if let Some(at) = streams.iter().position(|user| *user == self.user) {
            streams.swap_remove(at);
        }
    }
}

pub(super) async fn admit(
    State(admission): State<Arc<Admission>>,
    ConnectInfo(caller): ConnectInfo<Client>,
    request: Request,
    next: Next,
) -> Response {
    let connection = Arc::clone(&caller.connection);
    let weight = weight(&request);
    let result = work(&admission, &caller, weight, request, next).await;
    let (mut response, stream_permit, permits) = match result {
        Ok((answer, AcquiredPermits { stream, permits })) => (answer, stream, permits),
        Err(refusal) => (refusal, None, Vec::new()),
    };
    if caller.peer.is_some() {
        admission.peers.sign(&mut response);
    }
    let is_stream = stream_permit.is_some() && response.status().is_success();
    connection.answers(clock::monotonic(), is_stream, permits);
    response.map(|body| Body::new(TrackedBody::new(body, connection, stream_permit)))
}

/// Permits held until the response has been sent.
#[derive(Default)]
struct AcquiredPermits {
    stream: Option<StreamPermit>,
    permits: Vec<OwnedSemaphorePermit>,
}

/// Refuses a user of a Unix socket who is not a member of its group.
fn permit(caller: &Client) -> Result<(), Box<Response>> {
    let Origin::Local(peer) = &caller.origin else {
        return Ok(());
    };
    if peer.is_permitted {
        return Ok(());
    }
    tracing::warn!(
        uid = peer.uid,
        pid = peer.pid,
        "permission denied for a client"
    );
    let error = format!(
        "user {} may not connect to sliced: only root, the user of sliced and members of the socket's group may",
        peer.uid
    );
    Err(Box::new(problem(StatusCode::FORBIDDEN, error, Vec::new())))
}

async fn work(
    admission: &Arc<Admission>,
    caller: &Client,
    weight: Weight,
    request: Request,
    next: Next,
) -> Result<(Response, AcquiredPermits), Response> {
    permit(caller).map_err(|refusal| *refusal)?;
    if caller.peer.is_none() && admission.is_page(&request) {
        caller.connection.works();
        return Ok((next.run(request).await, AcquiredPermits::default()));
    }
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let forwarded = admission
        .peers
        .forwarded(caller.peer.as_deref(), headers)
        .map_err(|refusal| *refusal)?;
    if forwarded.is_none() {
        let checked = admission.auth.check(&caller.origin, method, uri, headers);
        checked.map_err(|refusal| *refusal)?;
    }
    let of_node = match forwarded {
        Some(_) => peer::permitted(&request).map_err(|refusal| *refusal)?,
        None => None,
    };
    let has_bearer = admission.asks() && headers.contains_key(header::AUTHORIZATION);
    browser::check_origin(headers, has_bearer).map_err(|refusal| *refusal)?;
    if uri.path() != HEALTH {
        caller.connection.authenticated();
    }
    // One hop at most.
    let elsewhere = match forwarded {
        Some(_) => None,
        None => admission.peers.destination(&request),
    };
    let weight = match weight {
        // The other node does the work.
        Weight::Heavy | Weight::List if elsewhere.is_some() => Weight::Light,
        weight => weight,
    };
    let caller = &of_request(caller, forwarded.as_ref());
    let (mut request, body) = match weight {
        // It is not read into memory.
        Weight::Agent => (request, Vec::new()),
        _ => whole(admission, caller, request).await?,
    };
    caller.connection.works();
    let quota = admission.share(caller.user);
    let mut acquired = AcquiredPermits::default();
    let turn_permit = match weight {
        Weight::Heavy => Some(
            turn(
                admission,
                &quota.heavy,
                "read manifests or inspect the host",
            )
            .await?,
        ),
        Weight::List => Some(turn(admission, &quota.lists, "list objects").await?),
        Weight::Stream => {
            acquired.stream = Some(admission.stream(caller.user).map_err(busy)?);
            None
        }
        Weight::Light | Weight::Agent => None,
    };
    let is_stream = weight == Weight::Stream;
    // What an agent or another node sends is passed on, whatever length it announces.
    let is_in_memory = weight != Weight::Agent && elsewhere.is_none();
    let response = match elsewhere {
        Some(to) => {
            admission
                .peers
                .forward(caller, to, is_stream, request)
                .await
        }
        None => {
            let has_vm = admission.peers.has(of_node.as_ref());
            has_vm.map_err(|refusal| *refusal)?;
            request.extensions_mut().insert(ConnectInfo(caller.clone()));
            let user = forwarded.map_or_else(|| caller.origin.caller(), |it| it.caller);
            user.scope(next.run(request)).await
        }
    };
    drop((turn_permit, body));
    let length = counted(&response, is_in_memory);
    acquired
        .permits
        .extend(acquire_response_permit(admission, caller.user, length).await?);
    Ok((response, acquired))
}

/// How much of a response is in the memory of the daemon until the client has read it, in bytes. Of one that is passed on, which may
/// announce any length, that is a buffer.
fn counted(response: &Response, is_in_memory: bool) -> u64 {
    match is_in_memory {
        true => hyper::body::Body::size_hint(response.body()).lower(),
        false => 0,
    }
}

/// The client of a request: a node forwards those of its users.
fn of_request(caller: &Client, forwarded: Option<&Forwarded>) -> Client {
    let user = forwarded.map_or(caller.user, |it| it.user);
    Client {
        user,
        ..caller.clone()
    }
}

/// Permits for a response of this length, until the client has read it. `None` if the response is too small to be counted.
async fn acquire_response_permit(
    admission: &Admission,
    user: User,
    length: u64,
) -> Result<Option<OwnedSemaphorePermit>, Response> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length < SMALL_RESPONSE {
        return Ok(None);
    }
    let answers = &admission.share(user).answers;
    let permits = u32::try_from(length.min(RESPONSES_LIMIT) >> 10).unwrap_or(u32::MAX);
    let start = clock::monotonic();
    loop {
        if let Ok(permit) = Arc::clone(answers).try_acquire_many_owned(permits) {
            return Ok(Some(permit));
        }
        let now = clock::monotonic();
        if admission
            .connections
            .evict_blocked(user == User::Privileged, now)
        {
            continue;
        }
        if now.saturating_duration_since(start) > admission.limits.turn {
            let reason = "too many large responses are being sent; try again";
            return Err(busy(reason.to_owned()));
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

async fn turn(
    admissions: &Admission,
    semaphore: &Arc<Semaphore>,
    what: &str,
) -> Result<OwnedSemaphorePermit, Response> {
    let acquire = Arc::clone(semaphore).acquire_owned();
    match tokio::time::timeout(admissions.limits.turn, acquire).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(busy(format!(
            "too many requests {what} at the same time; try again"
        ))),
    }
}

/// Reads the request's body into memory. Also returns the permits for its size.
async fn whole(
    admissions: &Admission,
    caller: &Client,
    request: Request,
) -> Result<(Request, Vec<OwnedSemaphorePermit>), Response> {
    if matches!(
        *request.method(),
        Method::GET | Method::DELETE | Method::HEAD
    ) {
        return Ok((request, Vec::new()));
    }
    let limit = match request.uri().path() {
        "/v1/apply" | "/v1/diff" | "/v1/names" => BODY_LIMIT,
        "/v1/fleet/apply" | "/v1/fleet/diff" => BODY_LIMIT,
        path if path.starts_with("/v1/secrets") => MEDIUM_BODY_LIMIT,
        path if path.starts_with("/v1/groups/") => MEDIUM_BODY_LIMIT,
        path if compat::has_medium_body(path) => MEDIUM_BODY_LIMIT,
        _ => SMALL_BODY_LIMIT,
    };
    let too_large = || {
        let error = format!("the request body is larger than {limit} bytes");
        problem(StatusCode::PAYLOAD_TOO_LARGE, error, Vec::new())
    };
    let content_length = request.headers().get(header::CONTENT_LENGTH);
    let announced = content_length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    caller.connection.start_body(clock::monotonic());
    let bodies = &admissions.share(caller.user).bodies;
    let (parts, body) = request.into_parts();
    let (mut stream, mut bytes, mut held) = (body.into_data_stream(), BytesMut::new(), Vec::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            let error = format!("cannot read the request body: {error}");
            problem(StatusCode::BAD_REQUEST, error, Vec::new())
        })?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        // Permits for the received bytes, not for the announced length: a client that sends nothing takes none.
        let permits = (bytes.len() + chunk.len()).div_ceil(1024) - bytes.len().div_ceil(1024);
        let needs = u32::try_from(permits).unwrap_or(u32::MAX);
        match Arc::clone(bodies).try_acquire_many_owned(needs) {
            Ok(permit) => held.push(permit),
            Err(_) => {
                let reason = "too many large requests are being received; try again";
                return Err(busy(reason.to_owned()));
            }
        }
        bytes.extend_from_slice(&chunk);
    }
    let request = Request::from_parts(parts, Body::from(Bytes::from(bytes)));
    Ok((request, held))
}

pub(super) fn busy(error: String) -> Response {
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, error, Vec::new());
    let retry_after = header::HeaderValue::from_static("1");
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, retry_after);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_response_counts_only_if_it_is_in_memory() {
        let response = || Response::new(Body::from(vec![0; 1 << 20]));
        assert_eq!(counted(&response(), true), 1 << 20);
        assert_eq!(counted(&response(), false), 0);
    }
}
