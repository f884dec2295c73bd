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

use super::{GuestState, Order};
use crate::api::metrics::{self, Counters};

/// Maximum size of a response in bytes. The largest is `vm.info`, which contains the whole configuration.
const LONGEST_ANSWER: usize = 256 << 10;

#[derive(Deserialize)]
struct Info {
    state: String,
}

pub(super) async fn firecracker_state(stream: UnixStream) -> io::Result<GuestState> {
    let answer = ask(stream, Method::GET, "/", None).await?;
    Ok(match read_state(&answer)?.as_str() {
        "Running" => GuestState::Running,
        "Paused" => GuestState::Paused,
        _ => GuestState::Starting,
    })
}

pub(super) async fn firecracker_order(stream: UnixStream, order: Order) -> io::Result<()> {
    let (method, path, body) = match order {
        Order::PowerDown => (
            Method::PUT,
            "/actions",
            r#"{"action_type":"SendCtrlAltDel"}"#,
        ),
        Order::Pause => (Method::PATCH, "/vm", r#"{"state":"Paused"}"#),
        Order::Resume => (Method::PATCH, "/vm", r#"{"state":"Resumed"}"#),
    };
    ask(stream, method, path, Some(body)).await.map(drop)
}

/// `Created` is the state before the boot, and after the end of the guest if the process stays; here the process boots at its start.
pub(super) async fn cloud_hypervisor_state(stream: UnixStream) -> io::Result<GuestState> {
    let answer = ask(stream, Method::GET, "/api/v1/vm.info", None).await?;
    Ok(match read_state(&answer)?.as_str() {
        "Running" => GuestState::Running,
        "Paused" | "BreakPoint" => GuestState::Paused,
        "Shutdown" => GuestState::Ended,
        _ => GuestState::Starting,
    })
}

pub(super) async fn cloud_hypervisor_order(stream: UnixStream, order: Order) -> io::Result<()> {
    let path = match order {
        Order::PowerDown => "/api/v1/vm.power-button",
        Order::Pause => "/api/v1/vm.pause",
        Order::Resume => "/api/v1/vm.resume",
    };
    ask(stream, Method::PUT, path, None).await.map(drop)
}

/// Makes Firecracker write its metrics into the pipe.
pub(super) async fn firecracker_flush(stream: UnixStream) -> io::Result<()> {
    let body = r#"{"action_type":"FlushMetrics"}"#;
    ask(stream, Method::PUT, "/actions", Some(body))
        .await
        .map(drop)
}

pub(super) async fn cloud_hypervisor_counters(stream: UnixStream) -> io::Result<Counters> {
    let answer = ask(stream, Method::GET, "/api/v1/vm.counters", None).await?;
    counters(&serde_json::from_slice(&answer)?)
}

pub(super) fn counters(told: &Value) -> io::Result<Counters> {
    let mut counters = Counters::new();
    metrics::collect(&mut counters, "", told);
    match told.is_object() {
        true => Ok(counters),
        false => Err(io::Error::other("the response contains no counters")),
    }
}

fn read_state(answer: &[u8]) -> io::Result<String> {
    Ok(serde_json::from_slice::<Info>(answer)?.state)
}

/// Sends a request on a new connection. A response with another status than success is an error that contains its body.
async fn ask(
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
    let answer = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = answer.status();
    let said = Limited::new(answer.into_body(), LONGEST_ANSWER).collect();
    let said = said.await.map_err(io::Error::other)?.to_bytes();
    judge(status, said)
}

fn judge(status: StatusCode, said: Bytes) -> io::Result<Bytes> {
    match status.is_success() {
        true => Ok(said),
        false => {
            let said: String = String::from_utf8_lossy(&said).chars().take(300).collect();
            Err(io::Error::other(format!("{status}: {said}")))
        }
    }
}
