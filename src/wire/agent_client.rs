//! The client of agents, through the daemon: requests, streams of lines, and connections that are upgraded to WebSocket.
//! Out of scope: what they mean ([`crate::guest::protocol`]).
//!
//! The daemon is trusted, but the bodies are those of a guest: the memory for them is limited.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::client::{Client, ClientError, PATIENCE, Result, chunks};
use crate::api::meta::Name;
use crate::guest::lines::Lines;
use crate::guest::protocol::LINE_LIMIT;

/// The maximum size of a response in JSON, in bytes.
const JSON_LIMIT: usize = 4 << 20;

/// The maximum size of a WebSocket message, in bytes.
const MESSAGE_LIMIT: usize = 1 << 20;

/// The size of the buffers of a WebSocket, in bytes. The default is for one connection, not for a thousand.
const BUFFER: usize = 16 << 10;

/// A connection of messages to an agent.
pub type AgentSocket = WebSocketStream<TokioIo<Upgraded>>;

/// The body of a request.
pub enum Upload {
    /// None.
    Empty,
    /// JSON.
    Json(Bytes),
    /// A stream of bytes.
    Stream(BoxStream<'static, io::Result<Bytes>>),
}

/// A request to the agent of a VM.
pub struct AgentRequest {
    vm: Name,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Upload,
    timeout: Option<Duration>,
}

impl AgentRequest {
    /// A request without a body. `path` is that of [`crate::guest::protocol`], with a slash at the begin and with the query.
    pub fn new(method: Method, vm: &Name, path: impl Into<String>) -> Self {
        Self {
            vm: vm.clone(),
            method,
            path: path.into(),
            headers: Vec::new(),
            body: Upload::Empty,
            timeout: Some(PATIENCE),
        }
    }

    /// `GET`.
    pub fn get(vm: &Name, path: impl Into<String>) -> Self {
        Self::new(Method::GET, vm, path)
    }

    /// `POST`.
    pub fn post(vm: &Name, path: impl Into<String>) -> Self {
        Self::new(Method::POST, vm, path)
    }

    /// `DELETE`.
    pub fn delete(vm: &Name, path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, vm, path)
    }

    /// With a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a body in JSON.
    pub fn json(self, body: &impl Serialize) -> Self {
        // The types of the protocol have no maps with keys that are not text.
        let body = serde_json::to_vec(body).unwrap_or_default();
        let body = Upload::Json(body.into());
        Self { body, ..self }
    }

    /// With a body that is a stream.
    pub fn stream(self, body: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        let body = Upload::Stream(body.boxed());
        Self { body, ..self }
    }

    /// Without a timeout for the head of the response: the daemon has one, or it takes as long as the command or the copy.
    pub fn without_timeout(self) -> Self {
        Self {
            timeout: None,
            ..self
        }
    }

    fn build(self) -> hyper::http::Result<Request<UnsyncBoxBody<Bytes, io::Error>>> {
        let uri = format!("/v1/vms/{}/agent{}", self.vm, self.path);
        let mut request = Request::builder().method(self.method).uri(uri);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let never = |never: std::convert::Infallible| match never {};
        match self.body {
            Upload::Empty => request.body(Empty::new().map_err(never).boxed_unsync()),
            Upload::Json(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(body).map_err(never).boxed_unsync()),
            Upload::Stream(body) => request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .body(StreamBody::new(body.map(|part| part.map(Frame::data))).boxed_unsync()),
        }
    }
}

impl Client {
    /// Sends a request to an agent. The response is returned when its head is received; the body of the request may continue.
    pub async fn agent(&self, request: AgentRequest) -> Result<Response<Incoming>> {
        let timeout = request.timeout;
        let request = request.build().map_err(|error| self.broken(error))?;
        self.exchange(request, timeout).await
    }

    /// The same, for a response in JSON.
    pub async fn agent_json<T: DeserializeOwned>(&self, request: AgentRequest) -> Result<T> {
        let response = self.agent(request).await?;
        let body = Limited::new(response.into_body(), JSON_LIMIT).collect();
        let body = tokio::time::timeout(PATIENCE, body).await;
        let body = body.map_err(|_| self.broken("the agent's response does not end"))?;
        let body = body.map_err(|error| self.broken(error))?.to_bytes();
        serde_json::from_slice(&body).map_err(of_agent)
    }

    /// The same, for a response of lines in JSON.
    pub async fn agent_lines<T: DeserializeOwned + Send + 'static>(
        &self,
        request: AgentRequest,
    ) -> Result<BoxStream<'static, Result<T>>> {
        let response = self.agent(request).await?;
        let body = chunks(self.url().clone(), response.into_body()).boxed();
        let lines = split_lines(body, LINE_LIMIT);
        let parsed = lines.map(|line| serde_json::from_slice(&line?).map_err(of_agent));
        Ok(parsed.boxed())
    }

    /// Upgrades a connection to WebSocket.
    pub async fn agent_socket(&self, request: AgentRequest) -> Result<AgentSocket> {
        let key = generate_key();
        let request = request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", &key);
        let response = self.agent(request).await?;
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        let is_accepted = accept.is_some_and(|value| *value == *derive_accept_key(key.as_bytes()));
        if response.status() != StatusCode::SWITCHING_PROTOCOLS || !is_accepted {
            return Err(of_agent("the connection was not upgraded to WebSocket"));
        }
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|error| self.broken(error))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * MESSAGE_LIMIT)
            .max_message_size(Some(MESSAGE_LIMIT))
            .max_frame_size(Some(MESSAGE_LIMIT));
        let io = TokioIo::new(upgraded);
        Ok(WebSocketStream::from_raw_socket(io, Role::Client, Some(config)).await)
    }
}

/// An error in what an agent has sent.
fn of_agent(reason: impl ToString) -> ClientError {
    ClientError::InvalidAgent(reason.to_string())
}

/// Splits chunks into lines. A longer line is an error, and so is a last line without a line feed: it was cut off.
fn split_lines(
    chunks: BoxStream<'static, Result<Bytes>>,
    limit: usize,
) -> impl Stream<Item = Result<BytesMut>> + Send {
    let start = Some((chunks, Lines::new(limit)));
    stream::unfold(start, async |state| {
        let (mut chunks, mut lines) = state?;
        loop {
            let error = match lines.next_line() {
                Ok(Some(line)) => return Some((Ok(line), Some((chunks, lines)))),
                Err(error) => of_agent(error),
                Ok(None) => match chunks.next().await {
                    Some(Ok(chunk)) => {
                        lines.push(&chunk);
                        continue;
                    }
                    None if lines.is_empty() => return None,
                    // By the agent, or the daemon that forwards it.
                    Some(Err(_)) | None => ClientError::AgentClosed,
                },
            };
            return Some((Err(error), None));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(chunks: &[&'static str]) -> Vec<std::result::Result<String, String>> {
        let chunks: Vec<Result<Bytes>> = chunks
            .iter()
            .map(|text| Ok(Bytes::from_static(text.as_bytes())))
            .collect();
        let lines = split_lines(stream::iter(chunks).boxed(), 8);
        let text = |line: Result<BytesMut>| match line {
            Ok(line) => Ok(String::from_utf8_lossy(&line).into_owned()),
            Err(error) => Err(error.to_string()),
        };
        lines.map(text).collect().await
    }

    #[tokio::test]
    async fn lines_are_split_and_neither_long_nor_cut_off() {
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(
            lines(&["a\nb", "c\n", "\nd\n"]).await,
            [ok("a"), ok("bc"), ok(""), ok("d")]
        );
        assert!(lines(&[]).await.is_empty());
        for (chunks, expected) in [
            (&["ok\n", "01234567", "8\n"][..], "more than 8 bytes"),
            (&["ok\n", "cut"], "closed unexpectedly"),
        ] {
            let found = lines(chunks).await;
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(
                found[1].as_ref().unwrap_err().contains(expected),
                "{found:?}"
            );
        }
    }
}
