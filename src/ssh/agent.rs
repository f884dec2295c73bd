//! Requests to the agent of a VM.
//! Out of scope: what they mean ([`crate::guest::protocol`]).
//!
//! All that is received is a guest's: it is limited in size and time.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::Frame as BodyFrame;
use hyper::{Request, Response, StatusCode, header};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::TEXT_LIMIT;
use super::flow::Input;
use crate::api::meta::Name;
use crate::api::plain_text;
use crate::guest::client::{self, AgentBody, Error};
use crate::guest::endpoint::{Access, HEAD_TIMEOUT, HeadTimeout};
use crate::guest::lines::Lines;
use crate::guest::protocol::{AgentError, ExecQuery, Frame, Kill, LINE_LIMIT};
use crate::wire::{Backend, Refusal};

/// The maximum size of the body of an error, in bytes, and the time for receiving it.
const ERROR_LIMIT: usize = 64 << 10;
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum size of a message, in bytes, and the size of the buffers of a WebSocket.
const MESSAGE_LIMIT: usize = 1 << 20;
const BUFFER: usize = 16 << 10;

/// The maximum length of a path with its query: agents read up to 65,534 bytes.
const PATH_LIMIT: usize = 60_000;

/// A connection of messages.
pub type Socket = WebSocketStream<UnixStream>;

type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

/// The agent of a VM.
#[derive(Clone, Debug)]
pub struct Agent {
    vm: Name,
    socket: PathBuf,
}

/// Why there is no agent to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAgent {
    /// There is no such VM.
    NotFound(String),
    /// The VM cannot answer now.
    Unavailable(String),
}

impl NoAgent {
    /// The sentence.
    pub fn into_text(self) -> String {
        match self {
            Self::NotFound(text) | Self::Unavailable(text) => text,
        }
    }
}

/// A refusal of the daemon in one sentence.
pub fn sentence(refusal: Refusal) -> String {
    match refusal {
        Refusal::Conflict(problems) | Refusal::Invalid(problems) => problems.join("; "),
        other => other.to_string(),
    }
}

impl Agent {
    /// The agent of a VM that runs; the access is recorded.
    pub async fn of<B: Backend>(backend: &B, vm: &Name, access: Access) -> Result<Self, NoAgent> {
        Self::find(backend, vm, Some(access)).await
    }

    async fn find<B: Backend>(
        backend: &B,
        vm: &Name,
        access: Option<Access>,
    ) -> Result<Self, NoAgent> {
        match backend.agent(vm.clone(), access).await {
            Ok(socket) => Ok(Self {
                vm: vm.clone(),
                socket,
            }),
            Err(refusal @ (Refusal::NotFound(_) | Refusal::NotFoundWithSuggestion(..))) => {
                Err(NoAgent::NotFound(refusal.to_string()))
            }
            Err(refusal) => Err(NoAgent::Unavailable(sentence(refusal))),
        }
    }

    /// Runs a command.
    ///
    /// # Errors
    /// One sentence: the agent does not answer, or it refuses the command.
    pub async fn exec(&self, query: &ExecQuery, input: Input) -> Result<Frames, String> {
        let data = stream::unfold(input, |mut input| async move {
            let data = input.next().await?;
            Some((Ok::<_, Infallible>(BodyFrame::data(data)), input))
        });
        let body = StreamBody::new(data.boxed()).boxed_unsync();
        let path = path("/exec", query)?;
        let request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body);
        let response = self.send(request).await?;
        Ok(Frames {
            body: response.into_body(),
            lines: Lines::new(LINE_LIMIT),
        })
    }

    /// Sends a signal to a command.
    pub async fn kill(&self, id: &str, kill: &Kill) -> Result<(), String> {
        let is_id = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !id.bytes().all(is_id) {
            return Err(self.invalid("the id of a command is invalid"));
        }
        let body = serde_json::to_vec(kill).unwrap_or_default();
        let request = Request::post(format!("/exec/{id}/kill"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.into()).boxed_unsync());
        self.send(request).await.map(drop)
    }

    /// Upgrades a connection to WebSocket.
    ///
    /// # Errors
    /// One sentence: the agent does not answer, or it refuses the request.
    pub async fn socket(
        &self,
        endpoint: &str,
        query: &impl Serialize,
        headers: &[(&'static str, &str)],
    ) -> Result<Socket, String> {
        let key = generate_key();
        let mut request = Request::get(path(endpoint, query)?)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Empty::new().boxed_unsync())).await?;
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let is_accepted = accept.is_some_and(|value| *value == *derive_accept_key(key.as_bytes()));
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !is_accepted {
            return Err(self.invalid("no upgrade to WebSocket"));
        }
        let upgraded = client::upgraded(response).await;
        let upgraded = upgraded.map_err(|error| self.failed(&error))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * MESSAGE_LIMIT)
            .max_message_size(Some(MESSAGE_LIMIT))
            .max_frame_size(Some(MESSAGE_LIMIT));
        let received = upgraded.received.to_vec();
        let (stream, role) = (upgraded.stream, Role::Client);
        Ok(WebSocketStream::from_partially_read(stream, received, role, Some(config)).await)
    }

    async fn send(
        &self,
        request: hyper::http::Result<Request<RequestBody>>,
    ) -> Result<Response<AgentBody>, String> {
        let mut request = request.map_err(|error| format!("invalid request: {error}"))?;
        let host = header::HeaderValue::from_static("agent");
        request.headers_mut().insert(header::HOST, host);
        let timeout = HeadTimeout::AfterHead(HEAD_TIMEOUT);
        let response = client::send(&self.socket, request, timeout).await;
        let response = response.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), ERROR_LIMIT).collect();
        let body = match tokio::time::timeout(ERROR_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        Err(match serde_json::from_slice::<AgentError>(&body) {
            Ok(AgentError { error }) => plain_text::line(&error, TEXT_LIMIT).into_owned(),
            Err(_) => self.invalid(&format!("status {}", status.as_u16())),
        })
    }

    fn failed(&self, error: &Error) -> String {
        self.invalid(&error.to_string())
    }

    fn invalid(&self, why: &str) -> String {
        let why = plain_text::line(why, TEXT_LIMIT);
        format!("the agent of vm/{} does not answer: {why}", self.vm)
    }

    /// Why a connection to the agent has ended before its time.
    pub async fn lost<B: Backend>(&self, backend: &B) -> String {
        match Self::find(backend, &self.vm, None).await {
            Err(reason) => reason.into_text(),
            Ok(_) => format!(
                "the connection to the agent of vm/{} was closed unexpectedly",
                self.vm
            ),
        }
    }
}

fn path(endpoint: &str, query: &impl Serialize) -> Result<String, String> {
    let query = serde_html_form::to_string(query);
    let query = query.map_err(|error| format!("invalid request: {error}"))?;
    let path = format!("{endpoint}?{query}");
    match path.len() <= PATH_LIMIT {
        true => Ok(path),
        false => Err(format!(
            "the command is too long: {} bytes in a request, expected at most {PATH_LIMIT}",
            path.len()
        )),
    }
}

/// The lines of the output of a command.
pub struct Frames {
    body: AgentBody,
    lines: Lines,
}

impl Frames {
    /// The next frame; `None` if the connection has ended or the agent has sent something else.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(line) = self.lines.next_line().ok()? {
                return serde_json::from_slice(&line).ok();
            }
            if let Ok(data) = self.body.frame().await?.ok()?.into_data() {
                self.lines.push(&data);
            }
        }
    }
}
