//! Asks whether the agent of a guest answers: `GET /health`.
//! Out of scope: when it is asked, and what is done with the answer.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode};

use super::client::{self, Error};
use super::endpoint::HeadTimeout;
use super::protocol::Health;

/// How long the agent may take for the response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum size of the response in bytes.
const BODY_LIMIT: usize = 16 << 10;
/// The maximum length of a message, in characters.
const MESSAGE_LIMIT: usize = 200;

/// Asks the agent behind the socket of a vsock device.
///
/// # Errors
/// Why it has not answered: one line of at most 200 characters, without control characters and paths.
pub async fn health(socket: &Path) -> Result<Health, String> {
    let asked = async {
        let request = Request::get("/health")
            .header("host", "slice-agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let timeout = HeadTimeout::AfterHead(TIMEOUT);
        let response = client::send(socket, request, timeout).await;
        let response = response.map_err(|error: Error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!(
                "status {}, expected 200",
                response.status().as_u16()
            ));
        }
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect();
        let body = tokio::time::timeout(TIMEOUT, body).await;
        let body =
            body.map_err(|_| format!("no complete response within {} s", TIMEOUT.as_secs()))?;
        let body = body.map_err(|error| format!("invalid response: {error}"))?;
        serde_json::from_slice::<Health>(&body.to_bytes())
            .map_err(|error| format!("invalid response: {error}"))
    };
    asked.await.map_err(|message| sanitize(&message))
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
