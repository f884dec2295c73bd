//! The daemon's own requests to the agent of a guest: whether it answers, what the guest gets, the end of its userdata.
//! Out of scope: when they are sent, and what is done with the answers.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;

use super::client::{self, Error};
use super::endpoint::HeadTimeout;
use super::protocol::{AgentError, Health, Provision, Provisioned, UserdataStatus};

/// How long the agent may take for the response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the agent may take to provision its guest.
const PROVISION_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of problems that are read, and the maximum length of the name of a signal.
const PROBLEMS_LIMIT: usize = 4;
const SIGNAL_LIMIT: usize = 16;
/// The maximum size of the response in bytes.
const BODY_LIMIT: usize = 16 << 10;
/// The maximum length of a message, in characters.
const MESSAGE_LIMIT: usize = 200;

/// Asks the agent behind the socket of a vsock device.
///
/// # Errors
/// Why it has not answered: one line of at most 200 characters, without control characters and paths.
pub async fn health(socket: &Path) -> Result<Health, String> {
    let timeout = HeadTimeout::AfterHead(TIMEOUT);
    let answer: Health = ask(socket, (Method::GET, "/health"), Bytes::new(), timeout).await?;
    Ok(Health {
        userdata: answer.userdata.map(checked),
        ..answer
    })
}

/// Gives a guest what it is to get.
///
/// # Errors
/// As [`health`]. Problems of the guest are part of the response; they are as short as errors.
pub async fn provision(socket: &Path, desired: &Provision) -> Result<Provisioned, String> {
    let body = serde_json::to_vec(desired).map_err(|error| error.to_string())?;
    let timeout = HeadTimeout::AfterBody(PROVISION_TIMEOUT);
    let request = (Method::PUT, "/provision");
    let answer: Provisioned = ask(socket, request, body.into(), timeout).await?;
    let problems = answer.problems.iter().take(PROBLEMS_LIMIT);
    Ok(Provisioned {
        problems: problems.map(|text| sanitize(text)).collect(),
        userdata: checked(answer.userdata),
    })
}

/// Waits until the userdata of a guest has ended. It has no deadline.
///
/// # Errors
/// As [`health`].
pub async fn userdata_ended(socket: &Path) -> Result<UserdataStatus, String> {
    let request = (Method::GET, "/userdata/wait-exit");
    let answer = ask(socket, request, Bytes::new(), HeadTimeout::Never).await;
    answer.map(checked)
}

async fn ask<T: DeserializeOwned>(
    socket: &Path,
    (method, path): (Method, &'static str),
    body: Bytes,
    timeout: HeadTimeout,
) -> Result<T, String> {
    let asked = async {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "slice-agent")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let response = client::send(socket, request, timeout).await;
        let response = response.map_err(|error: Error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect();
        let body = tokio::time::timeout(TIMEOUT, body).await;
        if status != StatusCode::OK {
            let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes());
            let cause = body.and_then(|body| serde_json::from_slice::<AgentError>(&body).ok());
            let cause = cause.map_or_else(String::new, |cause| format!(": {}", cause.error));
            let status = status.as_u16();
            return Err(format!("status {status}, expected 200{cause}"));
        }
        let body =
            body.map_err(|_| format!("no complete response within {} s", TIMEOUT.as_secs()))?;
        let body = body.map_err(|error| format!("invalid response: {error}"))?;
        serde_json::from_slice::<T>(&body.to_bytes())
            .map_err(|error| format!("invalid response: {error}"))
    };
    asked.await.map_err(|message| sanitize(&message))
}

/// The name of a signal is shown to users.
fn checked(status: UserdataStatus) -> UserdataStatus {
    let is_name = |text: &String| {
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b" +-".contains(&byte);
        text.len() <= SIGNAL_LIMIT && text.bytes().all(is_valid)
    };
    UserdataStatus {
        signal: status.signal.filter(is_name),
        ..status
    }
}

/// Parts of the message may be the guest's.
fn sanitize(message: &str) -> String {
    let shown = message.chars().filter(|c| !c.is_control());
    shown.take(MESSAGE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn ask(reply: &'static [u8]) -> Result<Health, String> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = [0; 12];
            stream.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"CONNECT 516\n");
            stream.write_all(b"OK 1073741824\n").await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            let _ = stream.write_all(reply).await;
            stream
        });
        let result = health(&socket).await;
        server.abort();
        result
    }

    #[tokio::test]
    async fn only_a_complete_answer_of_an_agent_counts() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"hostname\":\"a\"}";
        assert_eq!(ask(answer).await.unwrap().hostname, "a");
        for (reply, words) in [
            (
                &b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"[..],
                "status 503",
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[1]",
                "invalid response",
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n{",
                "no complete response",
            ),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "invalid response"),
        ] {
            let error = ask(reply).await.unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_message_is_one_short_line() {
        let message = sanitize(&format!("a\n\u{1b}[31m{}", "x".repeat(9_000)));
        assert!(message.starts_with("a[31mx"));
        assert_eq!(message.chars().count(), MESSAGE_LIMIT);
    }
}
