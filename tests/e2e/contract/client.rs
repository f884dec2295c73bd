//! A client that sends bytes and shows what it has received.
//! Out of scope: what any of it means.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use test_support::harness::Harness;
use test_support::openapi;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// The socket of a daemon.
#[derive(Clone)]
pub struct Api(PathBuf);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Api {
    pub fn of(harness: &Harness) -> Self {
        Self(harness.run.join("sliced.sock"))
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(&body.to_string()))
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None)
    }

    /// Sends a request with the headers of the Go SDK: an empty token, and the host name `unix`.
    pub fn send(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.send_bytes(method, path, body.map(str::as_bytes))
            .expect("an answer")
    }

    /// The same; `None`: the connection ends without an answer.
    pub fn send_bytes(&self, method: &str, path: &str, body: Option<&[u8]>) -> Option<Answer> {
        let stream = self.try_connect()?;
        let _ = request(&stream, method, path, body);
        let answer = answer(stream, method)?;
        answer.check(method, path);
        Some(answer)
    }

    /// A connection; `None`: the daemon does not listen.
    pub fn try_connect(&self) -> Option<UnixStream> {
        let stream = UnixStream::connect(&self.0).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Some(stream)
    }
}

/// Sends a request with the headers of the Go SDK. An error says nothing of what the daemon has received.
pub fn request(
    mut stream: &UnixStream,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> std::io::Result<()> {
    let length = match body {
        Some(body) => format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ),
        None => String::new(),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: unix\r\nAuthorization: Bearer \r\nConnection: close\r\n{length}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.unwrap_or_default())
}

/// The answer to a request with this method; `None`: the connection has ended before its end.
pub fn answer(mut stream: UnixStream, method: &str) -> Option<Answer> {
    let mut all = Vec::new();
    // A daemon that ends resets its connections after what it has sent.
    let ended = stream.read_to_end(&mut all);
    let answer = Answer::parse(&all)?;
    // The length is that of the answer to GET.
    let length = answer.header("content-length").filter(|_| method != "HEAD");
    let is_complete = length.map_or(ended.is_ok(), |length| {
        length.parse() == Ok(answer.body.len())
    });
    is_complete.then_some(answer)
}

impl Answer {
    pub fn parse(all: &[u8]) -> Option<Self> {
        let end = all.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let rest = &all[end + 4..];
        let body = match head.contains("transfer-encoding: chunked") {
            true => chunks(rest),
            false => rest.to_vec(),
        };
        Some(Self { status, head, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Checks that the answer is as the OpenAPI document declares it: every answer of these tests is.
    fn check(&self, method: &str, path: &str) {
        let answer = openapi::Answer {
            status: self.status,
            content_type: self.header("content-type"),
            body: &self.body,
        };
        openapi::check(method, path, answer).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The frames of a stream.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }
}

fn chunks(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let start = end + 2;
        if size == 0 || rest.len() < start + size {
            break;
        }
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[(start + size + 2).min(rest.len())..];
    }
    body
}
