//! The client: one connection per request; responses are decoded to the types of [`crate::api`].
//! Out of scope: messages for users except those of [`ClientError`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::auth::Token;
use super::backend::{Deletion, Detail, Effect, LogStart, StreamMode};
use super::endpoint::{Endpoint, Stream as Connection, Url};
use super::packet;
use super::v1::{LOG_OFFSET, Sources};
use crate::api::event::{Event, ObjectRef};
use crate::api::meta::Name;
use crate::api::metrics::Metrics;
use crate::api::on_demand::NewVm;
use crate::api::policy::Packet;
use crate::api::usage::Usage;
use crate::api::view::{
    Applied, ApplyResult, Change, Check, DiffResult, Explanation, Kind, List, NewVmResult, Orphan,
    Problem, RouteInfo, Scale, ServerInfo, Source,
};
use crate::api::vm::PowerCommand;
use crate::guest::early_response::EarlyResponse;

/// Timeout until the response head is received. `gc` and `doctor` observe the whole host.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Number and interval of connect attempts while the backlog of the socket is full: 5 s.
const BACKLOG_ATTEMPTS: u32 = 500;
const BACKLOG_INTERVAL: Duration = Duration::from_millis(10);

/// Number and interval of connect attempts while no daemon listens, because it may be starting: 2 s.
const START_ATTEMPTS: u32 = 80;
const START_INTERVAL: Duration = Duration::from_millis(25);

/// Sends requests to the daemon that listens on a socket, or at a URL.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Arc<Endpoint>,
    token: Option<Token>,
    start_attempts: u32,
}

pub use super::client_error::ClientError;

pub(super) type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// A client for the daemon that listens on `socket`. Connects separately for each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Arc::new(Endpoint::unix(socket.into())),
            token: None,
            start_attempts: START_ATTEMPTS,
        }
    }

    /// A client for the daemon at a URL. `authorities`: a file with the certificates of those that are trusted instead of those of this host.
    ///
    /// # Errors
    /// The authorities cannot be read, or there are none.
    pub fn at(url: Url, authorities: Option<&Path>) -> std::result::Result<Self, String> {
        Ok(Self {
            endpoint: Arc::new(Endpoint::of(url, authorities)?),
            token: None,
            start_attempts: START_ATTEMPTS,
        })
    }

    /// Sends this token with each request.
    pub fn with_token(self, token: Option<Token>) -> Self {
        Self { token, ..self }
    }

    /// Whether a token is sent.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Fails immediately if no daemon listens on the socket.
    pub fn without_retry(self) -> Self {
        Self {
            start_attempts: 0,
            ..self
        }
    }

    /// Where the daemon is.
    pub fn url(&self) -> &Url {
        &self.endpoint.url
    }

    /// See [`super::Backend::apply`].
    pub async fn apply(&self, sources: Vec<Source>, effect: Effect) -> Result<Vec<ApplyResult>> {
        let path = format!("/v1/apply?dry_run={}", effect == Effect::DryRun);
        self.json(Method::POST, &path, Some(&Sources { sources }))
            .await
    }

    /// See [`super::Backend::diff`].
    pub async fn diff(&self, sources: Vec<Source>, detail: Detail) -> Result<DiffResult> {
        let path = format!("/v1/diff?steps={}", detail == Detail::Steps);
        self.json(Method::POST, &path, Some(&Sources { sources }))
            .await
    }

    /// See [`super::Backend::names`].
    pub async fn names(&self, sources: Vec<Source>) -> Result<Vec<Name>> {
        self.json(Method::POST, "/v1/names", Some(&Sources { sources }))
            .await
    }

    /// See [`super::Backend::get`].
    pub async fn get(&self, kind: Kind, name: Option<&Name>) -> Result<List> {
        self.json(Method::GET, &object_path(kind, name), NO_BODY)
            .await
    }

    /// See [`super::Backend::watch`]. The stream ends when the daemon stops.
    pub async fn watch(
        &self,
        kind: Kind,
        name: Option<&Name>,
    ) -> Result<BoxStream<'static, Result<Change>>> {
        let path = format!("{}?follow=true", object_path(kind, name));
        self.lines(&path).await
    }

    /// See [`super::Backend::delete`].
    pub async fn delete(&self, kind: Kind, name: &Name, deletion: Deletion) -> Result<()> {
        let is_forced = deletion == Deletion::Forced;
        let path = format!("{}?force={is_forced}", object_path(kind, Some(name)));
        self.request(Method::DELETE, &path, NO_BODY).await.map(drop)
    }

    /// See [`super::Backend::scale`].
    pub async fn scale(&self, group: &Name, scale: &Scale) -> Result<ApplyResult> {
        let path = format!("/v1/groups/{group}/scale");
        self.json(Method::PUT, &path, Some(scale)).await
    }

    /// See [`super::Backend::add_vm`].
    pub async fn add_vm(&self, group: &Name, request: &NewVm) -> Result<NewVmResult> {
        let path = format!("/v1/groups/{group}/vms");
        self.json(Method::POST, &path, Some(request)).await
    }

    /// See [`super::Backend::remove_vm`].
    pub async fn remove_vm(&self, vm: &Name) -> Result<()> {
        let path = format!("/v1/vms/{vm}");
        self.request(Method::DELETE, &path, NO_BODY).await.map(drop)
    }

    /// See [`super::Backend::power`].
    pub async fn power(&self, vm: &Name, verb: PowerCommand) -> Result<Applied> {
        let path = format!("/v1/vms/{vm}/{verb}");
        self.json(Method::POST, &path, NO_BODY).await
    }

    /// See [`super::Backend::metrics`].
    pub async fn metrics(&self, vm: &Name) -> Result<Metrics> {
        self.json(Method::GET, &format!("/v1/metrics/{vm}"), NO_BODY)
            .await
    }

    /// See [`super::Backend::usage`].
    pub async fn usage(&self, vm: &Name) -> Result<Usage> {
        self.json(Method::GET, &format!("/v1/usage/{vm}"), NO_BODY)
            .await
    }

    /// See [`super::Backend::events`].
    pub async fn events(
        &self,
        object: Option<&ObjectRef>,
        span: StreamMode,
    ) -> Result<BoxStream<'static, Result<Event>>> {
        let mut path = format!("/v1/events?follow={}", span == StreamMode::Follow);
        if let Some(object) = object {
            path.push_str("&object=");
            path.push_str(&percent_encode(&object.to_string()));
        }
        self.lines(&path).await
    }

    /// See [`super::Backend::logs`]. The offset is `None` if the daemon is of an earlier version.
    pub async fn logs(
        &self,
        vm: &Name,
        start: LogStart,
        span: StreamMode,
    ) -> Result<(
        Option<u64>,
        impl Stream<Item = Result<Bytes>> + Send + use<>,
    )> {
        let follow = span == StreamMode::Follow;
        let start = match start {
            LogStart::Beginning => String::new(),
            LogStart::LastLines(lines) => format!("&lines={lines}"),
            LogStart::Offset(offset) => format!("&offset={offset}"),
        };
        let path = format!("/v1/logs/{vm}?follow={follow}{start}");
        let response = self.request(Method::GET, &path, NO_BODY).await?;
        let offset = response.headers().get(LOG_OFFSET);
        let offset = offset.and_then(|offset| offset.to_str().ok()?.parse().ok());
        Ok((offset, chunks(self.url().clone(), response.into_body())))
    }

    /// See [`super::Backend::write_console`].
    pub async fn write_console(&self, vm: &Name, keys: Bytes) -> Result<()> {
        let path = format!("/v1/console/{vm}");
        let content_type = "application/octet-stream";
        self.request_with_type(Method::POST, &path, content_type, keys)
            .await?;
        Ok(())
    }

    /// See [`super::Backend::gc`].
    pub async fn gc(&self, effect: Effect) -> Result<Vec<Orphan>> {
        let path = format!("/v1/gc?dry_run={}", effect == Effect::DryRun);
        self.json(Method::POST, &path, NO_BODY).await
    }

    /// See [`super::Backend::doctor`].
    pub async fn doctor(&self) -> Result<Vec<Check>> {
        self.json(Method::GET, "/v1/doctor", NO_BODY).await
    }

    /// See [`super::Backend::explain`].
    pub async fn explain(&self, vm: &Name, packet: &Packet) -> Result<Explanation> {
        let packet = percent_encode(&packet::text(packet));
        let path = format!("/v1/explain/{vm}?packet={packet}");
        self.json(Method::GET, &path, NO_BODY).await
    }

    /// See [`super::Backend::route`].
    pub async fn route(&self, group: &Name) -> Result<RouteInfo> {
        let path = format!("/v1/route/{group}");
        self.json(Method::GET, &path, NO_BODY).await
    }

    /// See [`super::Backend::version`].
    pub async fn version(&self) -> Result<ServerInfo> {
        self.json(Method::GET, "/v1/version", NO_BODY).await
    }

    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let response = self.request(method, path, body).await?;
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| self.broken(error))
    }

    pub(super) async fn lines<T: DeserializeOwned + Send + 'static>(
        &self,
        path: &str,
    ) -> Result<BoxStream<'static, Result<T>>> {
        let response = self.request(Method::GET, path, NO_BODY).await?;
        let at = self.url().clone();
        let lines = split_lines(chunks(at.clone(), response.into_body()).boxed());
        Ok(lines
            .map(move |line| {
                serde_json::from_slice(&line?).map_err(|error| ClientError::ConnectionFailed {
                    at: at.clone(),
                    why: error.to_string(),
                })
            })
            .boxed())
    }

    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>> {
        let body = match body {
            None => Vec::new(),
            Some(body) => serde_json::to_vec(body).map_err(|error| self.broken(error))?,
        };
        self.request_with_type(method, path, "application/json", body.into())
            .await
    }

    async fn request_with_type(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, kind)
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        self.exchange(request, Some(PATIENCE)).await
    }

    /// Sends a request. The response is returned when its head is received, within the timeout; a status that is no success is an error.
    pub(super) async fn exchange<B>(
        &self,
        request: Request<B>,
        timeout: Option<Duration>,
    ) -> Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let method = request.method().clone();
        let sending = self.send(request);
        let answer = match timeout {
            None => sending.await?,
            Some(limit) => tokio::time::timeout(limit, sending).await.map_err(|_| {
                let reason = format!("no response within {} s", limit.as_secs());
                self.unanswered(&method, reason)
            })??,
        };
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(match self.token {
                Some(_) => ClientError::TokenRefused(self.url().clone()),
                None => ClientError::TokenRequired(self.url().clone()),
            });
        }
        let body = answer.into_body().collect().await;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
            error: format!("sliced responded with status {status}"),
            problems: Vec::new(),
        });
        Err(ClientError::Refused {
            status: status.as_u16(),
            problem,
        })
    }

    async fn send<B>(&self, mut request: Request<B>) -> Result<Response<Incoming>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let headers = request.headers_mut();
        let host = header::HeaderValue::try_from(self.endpoint.host());
        headers.insert(header::HOST, host.map_err(|error| self.broken(error))?);
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.header());
        }
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(EarlyResponse::new(stream)))
            .await
            .map_err(|error| self.broken(error))?;
        // Ends with the response body: there is one request per connection.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection closed with an error");
            }
        });
        let method = request.method().clone();
        // It is sent once: a command must not be executed twice.
        let response = sender.send_request(request).await;
        response.map_err(|error| self.unanswered(&method, error))
    }

    /// There is no response to a request that was sent.
    fn unanswered(&self, method: &Method, reason: impl ToString) -> ClientError {
        let reason = reason.to_string();
        match [Method::GET, Method::HEAD].contains(method) {
            true => self.broken(reason),
            false => self.broken(format!("{reason}; the request may have been executed")),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Connection>> {
        let (mut attempts, mut starts) = (0, 0);
        loop {
            let source = match self.endpoint.connect().await {
                Ok(stream) => return Ok(stream),
                Err(source) => source,
            };
            return Err(match source.kind() {
                // EAGAIN: the backlog of the socket is full (unix(7)).
                io::ErrorKind::WouldBlock if attempts < BACKLOG_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(BACKLOG_INTERVAL).await;
                    continue;
                }
                // The daemon creates its socket soon after its start; the socket of one that has exited refuses connections.
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    if starts < self.start_attempts =>
                {
                    starts += 1;
                    tokio::time::sleep(START_INTERVAL).await;
                    continue;
                }
                kind => match (self.url(), kind) {
                    (Url::Unix(path), io::ErrorKind::PermissionDenied) => {
                        ClientError::PermissionDenied(path.clone())
                    }
                    // Of TLS: the daemon is there.
                    (Url::Tcp { .. }, io::ErrorKind::InvalidData) => self.broken(source),
                    (at, _) => ClientError::Unreachable {
                        at: at.clone(),
                        source,
                    },
                },
            });
        }
    }

    pub(super) fn broken(&self, reason: impl ToString) -> ClientError {
        ClientError::ConnectionFailed {
            at: self.url().clone(),
            why: reason.to_string(),
        }
    }
}

/// A request without a body.
pub(super) const NO_BODY: Option<&()> = None;

fn object_path(kind: Kind, name: Option<&Name>) -> String {
    match name {
        None => format!("/v1/objects/{kind}"),
        Some(name) => format!("/v1/objects/{kind}/{name}"),
    }
}

/// Percent-encodes all but the unreserved characters (RFC 3986, section 2.3).
pub(super) fn percent_encode(text: &str) -> String {
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, ENCODED).to_string()
}

pub(super) fn chunks(at: Url, body: Incoming) -> impl Stream<Item = Result<Bytes>> + Send {
    BodyStream::new(body).filter_map(move |frame| {
        let chunk = match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(ClientError::ConnectionFailed {
                at: at.clone(),
                why: error.to_string(),
            })),
        };
        async move { chunk }
    })
}

/// Splits chunks into lines without their line feeds; a last line without a line feed is included.
fn split_lines(
    chunks: BoxStream<'static, Result<Bytes>>,
) -> impl Stream<Item = Result<BytesMut>> + Send {
    stream::unfold((chunks, BytesMut::new()), |(mut chunks, mut rest)| async {
        loop {
            if let Some(newline) = rest.iter().position(|&byte| byte == b'\n') {
                let mut line = rest.split_to(newline + 1);
                line.truncate(newline);
                return Some((Ok(line), (chunks, rest)));
            }
            match chunks.next().await {
                Some(Ok(chunk)) => rest.extend_from_slice(&chunk),
                Some(Err(error)) => return Some((Err(error), (chunks, rest))),
                None if rest.is_empty() => return None,
                None => return Some((Ok(rest.split()), (chunks, rest))),
            }
        }
    })
}

#[cfg(test)]
mod tests;
