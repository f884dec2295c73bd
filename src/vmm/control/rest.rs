//! The requests to the HTTP APIs of Firecracker and Cloud Hypervisor that the daemon uses.
//! Out of scope: connecting, deadlines, when to send them.
//!
//! Specifications: `src/firecracker/swagger/firecracker.yaml`, `vmm/src/api/openapi/cloud-hypervisor.yaml` in their sources.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Command, GuestState};
use crate::api::metrics::{self, Counters};

/// Maximum size of a response in bytes. The largest is `vm.info`, which contains the whole configuration.
const MAX_RESPONSE: usize = 256 << 10;

#[derive(Deserialize)]
struct Info {
    state: String,
}

pub(super) async fn firecracker_state(stream: UnixStream) -> io::Result<GuestState> {
    let response = send(stream, Method::GET, "/", None).await?;
    Ok(match read_state(&response)?.as_str() {
        "Running" => GuestState::Running,
        "Paused" => GuestState::Paused,
        _ => GuestState::Starting,
    })
}

pub(super) async fn send_to_firecracker(stream: UnixStream, order: Command) -> io::Result<()> {
    let (method, path, body) = match order {
        Command::PowerDown => (
            Method::PUT,
            "/actions",
            r#"{"action_type":"SendCtrlAltDel"}"#,
        ),
        Command::Pause => (Method::PATCH, "/vm", r#"{"state":"Paused"}"#),
        Command::Resume => (Method::PATCH, "/vm", r#"{"state":"Resumed"}"#),
    };
    send(stream, method, path, Some(body)).await.map(drop)
}

/// `Created` is the state before the boot, and after the end of the guest if the process stays; here the process boots at its start.
pub(super) async fn cloud_hypervisor_state(stream: UnixStream) -> io::Result<GuestState> {
    let response = send(stream, Method::GET, "/api/v1/vm.info", None).await?;
    Ok(match read_state(&response)?.as_str() {
        "Running" => GuestState::Running,
        "Paused" | "BreakPoint" => GuestState::Paused,
        "Shutdown" => GuestState::Ended,
        _ => GuestState::Starting,
    })
}

pub(super) async fn send_to_cloud_hypervisor(stream: UnixStream, order: Command) -> io::Result<()> {
    let path = match order {
        Command::PowerDown => "/api/v1/vm.power-button",
        Command::Pause => "/api/v1/vm.pause",
        Command::Resume => "/api/v1/vm.resume",
    };
    send(stream, Method::PUT, path, None).await.map(drop)
}

/// Makes Firecracker write its metrics into the pipe.
pub(super) async fn firecracker_flush(stream: UnixStream) -> io::Result<()> {
    let body = r#"{"action_type":"FlushMetrics"}"#;
    send(stream, Method::PUT, "/actions", Some(body))
        .await
        .map(drop)
}

pub(super) async fn cloud_hypervisor_counters(stream: UnixStream) -> io::Result<Counters> {
    let response = send(stream, Method::GET, "/api/v1/vm.counters", None).await?;
    counters(&serde_json::from_slice(&response)?)
}

pub(super) fn counters(value: &Value) -> io::Result<Counters> {
    let mut counters = Counters::new();
    metrics::collect(&mut counters, "", value);
    match value.is_object() {
        true => Ok(counters),
        false => Err(io::Error::other("the response contains no counters")),
    }
}

fn read_state(response: &[u8]) -> io::Result<String> {
    Ok(serde_json::from_slice::<Info>(response)?.state)
}

/// Sends a request on a new connection. A response with another status than success is an error that contains its body.
async fn send(
    stream: UnixStream,
    method: Method,
    path: &str,
    json: Option<&'static str>,
) -> io::Result<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost");
    if json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from_static(json.unwrap_or_default().as_bytes()));
    let request = request.body(body).map_err(io::Error::other)?;
    // The connection makes progress only while it is polled.
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), MAX_RESPONSE).collect();
    let text = bytes.await.map_err(io::Error::other)?.to_bytes();
    check_status(status, text)
}

fn check_status(status: StatusCode, body: Bytes) -> io::Result<Bytes> {
    match status.is_success() {
        true => Ok(body),
        false => {
            let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
            Err(io::Error::other(format!("{status}: {text}")))
        }
    }
}
