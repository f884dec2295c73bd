//! Forwards requests to the agents of VMs: `ANY /v1/vms/{vm}/agent/{path}`, and those of the REST API below `/vm/{vm}/`.
//! Out of scope: connecting to an agent ([`crate::guest::client`]); the bytes after an upgrade ([`super::tunnel`]).
//!
//! Only requests and headers that the protocol lists are forwarded, in both directions: a token of a client is none of the guest's business,
//! and a guest does not choose what a client does with a connection. Bodies are streams with back-pressure in both directions. The connection
//! of the client is used for one request, and is closed when either side goes.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use super::admission::{Client, busy};
use super::agent_rules::{ERRORS, method, not_allowed};
use super::agents::AgentPermit;
use super::backend::Backend;
use super::browser;
use super::extract::Extract;
use super::problem::problem;
use super::shared::{ApiError, AppState, Shared, read};
use super::stoppable::StoppableBody;
use super::tunnel::{self, Far};
use crate::api::meta::Name;
use crate::api::plain_text;
use crate::clock;
use crate::guest::client::{self, AgentBody, Error};
use crate::guest::endpoint::{Endpoint, Unknown};
use crate::guest::protocol::{self, AgentError, copy_header};

/// The maximum size of the body of an agent's error, in bytes, and the time for receiving it.
const ERROR_LIMIT: usize = 64 << 10;
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum size of the response to a question of the daemon itself, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// The maximum length of an agent's error, in bytes.
const MESSAGE_LIMIT: usize = 1000;

/// The headers of requests and responses that are forwarded.
pub(super) const FORWARDED: [HeaderName; 10] = [
    header::CONTENT_TYPE,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static(protocol::UPSTREAM),
    HeaderName::from_static("x-inlets-mode"),
    HeaderName::from_static("x-slicer-unpacked-size"),
    HeaderName::from_static(protocol::HALF_CLOSE),
    HeaderName::from_static(copy_header::MODE),
    HeaderName::from_static(copy_header::SOURCE_TYPE),
    HeaderName::from_static(copy_header::SOURCE_NAME),
    HeaderName::from_static(copy_header::MTIME),
];

/// In addition, those of a request and its response that upgrade to WebSocket.
pub(super) const UPGRADE: [HeaderName; 3] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_ACCEPT,
];

/// The number of segments before the path at the agent: `/v1/vms/{vm}/agent/`.
const V1_PREFIX: usize = 5;
/// The same of the REST API: `/vm/{vm}/`.
pub(super) const PREFIX: usize = 3;

/// The number of segments before the path at the agent.
pub(super) fn prefix(path: &str) -> usize {
    match path.starts_with("/v1/") {
        true => V1_PREFIX,
        false => PREFIX,
    }
}

/// The handler of `/v1`.
pub(super) async fn agent<B: Backend>(
    State(state): AppState<B>,
    ConnectInfo(caller): ConnectInfo<Client>,
    Extract(Path((vm, _))): Extract<Path<(String, String)>>,
    request: Request,
) -> Result<Response, Response> {
    let vm = read(&vm).map_err(|refusal| ApiError::from(refusal).into_response())?;
    forward(&state, &caller, (vm, V1_PREFIX), request).await
}

/// Forwards a request to the agent of a VM. The path at the agent is behind `prefix` segments.
pub(super) async fn forward<B: Backend>(
    state: &Shared<B>,
    caller: &Client,
    (vm, prefix): (Name, usize),
    request: Request,
) -> Result<Response, Response> {
    let refuse = |error: ApiError| error.into_response();
    let (endpoint, path) = endpoint(&request, prefix).map_err(|response| *response)?;
    let permit = state.agents.acquire(caller.user, &vm).map_err(busy)?;
    let socket = state.backend.agent(vm.clone(), endpoint.access()).await;
    let socket = socket.map_err(|refusal| refuse(refusal.into()))?;
    if endpoint.access().is_some() {
        state.agents.note_use(&vm, clock::now());
    }
    let permit = Arc::new(permit);
    caller.connection.forwards(Arc::clone(&permit));
    let to = Destination {
        vm,
        socket: &socket,
        endpoint,
        path,
    };
    let stop = caller.stop(&state.stop);
    let mut response = match endpoint.is_upgrade() {
        true => to.upgrade(stop, request, permit).await,
        false => to.exchange(stop, request).await,
    };
    if let Ok(response) | Err(response) = &mut response
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// What the agent of a VM answers to a `GET` without a query, at most [`ANSWER_LIMIT`] bytes.
pub(super) async fn ask<B: Backend>(
    state: &Shared<B>,
    caller: &Client,
    vm: &Name,
    endpoint: (Endpoint, &'static str),
) -> Result<Bytes, Response> {
    let (endpoint, path) = endpoint;
    let _permit = state.agents.acquire(caller.user, vm).map_err(busy)?;
    let socket = state.backend.agent(vm.clone(), endpoint.access()).await;
    let socket = socket.map_err(|refusal| ApiError::from(refusal).into_response())?;
    let to = Destination {
        vm: vm.clone(),
        socket: &socket,
        endpoint,
        path: Uri::from_static(path),
    };
    let response = to.send(Request::new(Body::empty())).await?;
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect();
    match tokio::time::timeout(ERROR_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) | Err(_) => Err(to.problem(StatusCode::BAD_GATEWAY, "incomplete response")),
    }
}

/// The endpoint of a request, and its path and query at the agent.
pub(super) fn endpoint(request: &Request, prefix: usize) -> Result<(Endpoint, Uri), Box<Response>> {
    // As it was sent: what is decoded could be another path at the agent.
    let mut segments = request.uri().path().splitn(prefix + 1, '/');
    let path = segments.nth(prefix).unwrap_or_default();
    let method = method(request.method());
    let endpoint = Endpoint::of(method, path).map_err(|unknown| {
        Box::new(match unknown {
            Unknown::Path => {
                let error = format!("path {} not found", request.uri().path());
                problem(StatusCode::NOT_FOUND, error, Vec::new())
            }
            Unknown::Method(allowed) => not_allowed(request, &allowed),
        })
    })?;
    if request.method() == Method::HEAD && endpoint.is_upgrade() {
        return Err(Box::new(not_allowed(request, &[Method::GET])));
    }
    let target = match request.uri().query() {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    };
    let target = target.parse().map_err(|error| {
        let error = format!("invalid path: {error}");
        Box::new(problem(StatusCode::BAD_REQUEST, error, Vec::new()))
    })?;
    Ok((endpoint, target))
}

/// The agent that a request is forwarded to.
struct Destination<'s> {
    vm: Name,
    socket: &'s FilePath,
    endpoint: Endpoint,
    path: Uri,
}

impl Destination<'_> {
    /// Forwards a request and its response.
    async fn exchange(
        &self,
        stop: CancellationToken,
        request: Request,
    ) -> Result<Response, Response> {
        let response = self.send(request).await?;
        let (parts, body) = response.into_parts();
        let mut response = Response::new(Body::new(StoppableBody::new(body, stop)));
        *response.status_mut() = parts.status;
        copy(&FORWARDED, &parts.headers, response.headers_mut());
        Ok(response)
    }

    /// Forwards a request that upgrades its connection, and then the bytes of both sides.
    async fn upgrade(
        &self,
        stop: CancellationToken,
        mut request: Request,
        permit: Arc<AgentPermit>,
    ) -> Result<Response, Response> {
        let is_websocket =
            |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let upgrade = upgrade.filter(|_| {
            request
                .headers()
                .get(header::UPGRADE)
                .is_some_and(is_websocket)
        });
        let Some(of_client) = upgrade else {
            let error = format!("{} requires an upgrade to WebSocket", self.path.path());
            return Err(problem(StatusCode::UPGRADE_REQUIRED, error, Vec::new()));
        };
        let mut response = Response::new(Body::empty());
        if browser::offers_subprotocol(request.headers()) {
            let name = HeaderValue::from_static(browser::SUBPROTOCOL);
            let headers = response.headers_mut();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
        }
        let answer = self.send(request.map(|_| Body::empty())).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.problem(StatusCode::BAD_GATEWAY, "no upgrade to WebSocket"));
        }
        copy(&UPGRADE, answer.headers(), response.headers_mut());
        let of_agent = client::upgraded(answer).await;
        let of_agent = of_agent.map_err(|error| self.failed(&error))?;
        let (read, write) = of_agent.stream.into_split();
        let of_agent = Far {
            read,
            write,
            received: of_agent.received,
            lingers: false,
        };
        tokio::spawn(async move {
            tunnel::run(of_client, of_agent, stop).await;
            drop(permit);
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        upgrade_headers(response.headers_mut());
        Ok(response)
    }

    /// Sends a request to the agent. An error of the agent is an error, with a body of the daemon.
    async fn send(&self, request: Request) -> Result<axum::http::Response<AgentBody>, Response> {
        let (parts, body) = request.into_parts();
        let mut request = Request::new(body);
        *request.method_mut() = method(&parts.method).clone();
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_static("agent"));
        copy(&FORWARDED, &parts.headers, headers);
        if self.endpoint.is_upgrade() {
            copy(&UPGRADE, &parts.headers, headers);
            upgrade_headers(headers);
        }
        let timeout = self
            .endpoint
            .head_timeout(self.path.query().unwrap_or_default());
        let response = client::send(self.socket, request, timeout).await;
        let response = response.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if ERRORS.contains(&status) {
            return Err(self.refused(status, response.into_body()).await);
        }
        // A guest may upgrade only a connection that is to be upgraded.
        let is_upgraded = status == StatusCode::SWITCHING_PROTOCOLS && self.endpoint.is_upgrade();
        if !status.is_success() && !is_upgraded {
            let message = format!("unexpected status {}", status.as_u16());
            return Err(self.problem(StatusCode::BAD_GATEWAY, &message));
        }
        Ok(response)
    }

    /// The error of an agent, with the message of its body.
    async fn refused(&self, status: StatusCode, body: AgentBody) -> Response {
        let body = Limited::new(body, ERROR_LIMIT).collect();
        let body = match tokio::time::timeout(ERROR_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        let message = match serde_json::from_slice::<AgentError>(&body) {
            Ok(AgentError { error }) => error,
            Err(_) => format!("status {}", status.as_u16()),
        };
        problem(
            status,
            plain_text::line(&message, MESSAGE_LIMIT).into_owned(),
            Vec::new(),
        )
    }

    fn failed(&self, error: &Error) -> Response {
        let status = match error {
            Error::NoDevice => StatusCode::CONFLICT,
            Error::Refused | Error::Connect(_) => StatusCode::SERVICE_UNAVAILABLE,
            Error::ConnectTimeout | Error::HeadTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Error::Invalid(_) => StatusCode::BAD_GATEWAY,
        };
        self.problem(status, &error.to_string())
    }

    fn problem(&self, status: StatusCode, message: &str) -> Response {
        let error = format!(
            "the agent of vm/{} does not answer: {}",
            self.vm,
            plain_text::line(message, MESSAGE_LIMIT)
        );
        problem(status, error, Vec::new())
    }
}

pub(super) fn copy(names: &[HeaderName], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(name) {
            to.insert(name.clone(), value.clone());
        }
    }
}

pub(super) fn upgrade_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_forwarded_as_it_was_sent() {
        let of = |path: &str| {
            let request = Request::get(path).body(Body::empty()).expect("a request");
            endpoint(&request, V1_PREFIX)
                .map(|(_, path)| path.to_string())
                .map_err(|r| r.status().as_u16())
        };
        assert_eq!(
            of("/v1/vms/a/agent/fs/stat?path=/a%20b"),
            Ok("/fs/stat?path=/a%20b".to_owned())
        );
        for (path, status) in [
            ("/v1/vms/a/agent/fs%2Fstat?path=/", 404),
            ("/v1/vms/a/agent/exec/../health", 404),
            ("/v1/vms/a/agent//health", 404),
            ("/v1/vms/a/agent/", 404),
            ("/v1/vms/a/agent/fs/remove", 405),
        ] {
            assert_eq!(of(path), Err(status), "{path}");
        }
    }
}
