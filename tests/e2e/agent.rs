//! `slice-agent` on a Unix socket, with the handshake of a VMM, asked through HTTP as the daemon does.
//! Out of scope: vsock, guests, the daemon.
//!
//! | file | what it tests |
//! |---|---|
//! | `background` | commands in the background |
//! | `exec` | commands in the foreground: end, output, user, environment, directory |
//! | `forward` | connections in the guest |
//! | `service` | the process: limits, rest, figures, the static binary |
//! | `shell` | terminals |
//! | `streaming` | commands in the foreground: input, readers that stop, clients that leave |

mod background;
mod exec;
mod forward;
mod service;
mod shell;
mod streaming;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use slicectl::guest::protocol::{AgentError, Buffered, ExecQuery, Frame, FrameKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;

/// The deadline of everything that a test waits for.
const LIMIT: Duration = Duration::from_secs(60);

/// The name of its socket.
const SOCKET: &str = "agent.sock";

/// An agent, which ends with the test.
struct Agent {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    async fn start() -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_slice-agent"))).await
    }

    async fn start_program(program: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(program);
        command
            .args(["serve", "--unix"])
            .arg(directory.path().join(SOCKET));
        let child = command.stdin(Stdio::null()).spawn().expect("an agent");
        Self::of_child(child, directory).await
    }

    /// An agent that was started with [`SOCKET`] in a directory.
    async fn of_child(child: Child, directory: tempfile::TempDir) -> Self {
        let agent = Self { child, directory };
        until("the agent listens", || UnixStream::connect(agent.socket())).await;
        agent
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// A connection after the handshake.
    async fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket())
            .await
            .expect("a connection");
        stream.write_all(b"CONNECT 516\n").await.expect("written");
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await.expect("an answer to the handshake"));
        }
        let line = String::from_utf8(line).expect("text");
        let number = line.strip_prefix("OK ").expect("OK").trim().parse::<u32>();
        assert!(number.is_ok(), "{line}");
        stream
    }

    async fn request(&self, method: &str, path: &str, body: impl Into<Body>) -> Response<Incoming> {
        self.request_until_abort(method, path, body).await.0
    }

    /// A response, and the connection, which is closed when its task is aborted.
    async fn request_until_abort(
        &self,
        method: &str,
        path: &str,
        body: impl Into<Body>,
    ) -> (Response<Incoming>, AbortHandle) {
        let io = TokioIo::new(self.connect().await);
        let (mut sender, connection) = http1::handshake(io).await.expect("HTTP");
        let task = tokio::spawn(connection);
        let response = timeout(LIMIT, sender.send_request(request(method, path, body))).await;
        let response = response.expect("a response in time").expect("a response");
        (response, task.abort_handle())
    }

    /// The object in a response that succeeds.
    async fn get<T: DeserializeOwned>(&self, method: &str, path: &str) -> T {
        let response = self.request(method, path, Body::empty()).await;
        let status = response.status();
        let bytes = bytes(response).await;
        assert!(
            status.is_success(),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&bytes)
        );
        serde_json::from_slice(&bytes).expect("an object")
    }

    /// The error in a response that fails.
    async fn error(&self, method: &str, path: &str) -> (StatusCode, String) {
        let response = self.request(method, path, Body::empty()).await;
        let status = response.status();
        let bytes = bytes(response).await;
        let error: AgentError = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            panic!(
                "{method} {path}: {status} {error}: {}",
                String::from_utf8_lossy(&bytes)
            )
        });
        (status, error.error)
    }

    async fn buffered(&self, query: ExecQuery) -> Buffered {
        let query = ExecQuery {
            buffered: true,
            ..query
        };
        self.get("POST", &exec_path(&query)).await
    }

    /// The frames of a command in the foreground.
    async fn frames(&self, query: &ExecQuery, stdin: impl Into<Body>) -> Vec<Frame> {
        let response = self.request("POST", &exec_path(query), stdin).await;
        assert_eq!(response.status(), StatusCode::OK);
        frames(response).await
    }

    async fn websocket(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<WebSocketStream<UnixStream>, (StatusCode, String)> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut request = format!("ws://localhost{path}")
            .into_client_request()
            .expect("a request");
        for (name, value) in headers {
            request
                .headers_mut()
                .insert(*name, value.parse().expect("a value"));
        }
        match tokio_tungstenite::client_async(request, self.connect().await).await {
            Ok((stream, _)) => Ok(stream),
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((
                    response.status(),
                    String::from_utf8_lossy(&body).into_owned(),
                ))
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// A figure of `/proc/PID/status`, in KiB.
    fn memory(&self, name: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect(name);
        let figure = line
            .split_ascii_whitespace()
            .next()
            .and_then(|figure| figure.parse().ok());
        figure.expect("a figure")
    }

    /// The ids of the children, with zombies.
    fn children(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("threads");
        let lists =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
        lists
            .flat_map(|list| {
                list.split_ascii_whitespace()
                    .map(|pid| pid.parse().expect("an id"))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    async fn until_no_child(&self) {
        until("no child is left", || async {
            self.children().is_empty().then_some(()).ok_or(())
        })
        .await;
    }
}

/// Waits for a success.
async fn until<T, E, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let repeated = async {
        loop {
            match attempt().await {
                Ok(value) => return value,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(LIMIT, repeated)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    let builder = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "agent");
    builder.body(body.into()).expect("a request")
}

fn query<T: Serialize>(query: &T) -> String {
    serde_html_form::to_string(query).expect("a query")
}

fn exec_path(exec: &ExecQuery) -> String {
    format!("/exec?{}", query(exec))
}

/// `sh -c SCRIPT` as root.
fn sh(script: &str) -> ExecQuery {
    ExecQuery {
        cmd: "sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        uid: Some(0),
        ..ExecQuery::default()
    }
}

async fn bytes(response: Response<Incoming>) -> Vec<u8> {
    let body = timeout(LIMIT, response.into_body().collect()).await;
    body.expect("a body in time")
        .expect("a body")
        .to_bytes()
        .to_vec()
}

async fn frames(response: Response<Incoming>) -> Vec<Frame> {
    parse_frames(&bytes(response).await)
}

fn parse_frames(bytes: &[u8]) -> Vec<Frame> {
    let lines = bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).expect("a frame"))
        .collect()
}

/// All output of a kind.
fn text(frames: &[Frame], kind: FrameKind) -> String {
    let of_kind = frames.iter().filter(|frame| frame.kind == kind);
    let texts = of_kind.filter_map(|frame| match kind {
        FrameKind::Stderr => frame.stderr.as_deref(),
        _ => frame.stdout.as_deref(),
    });
    texts.collect()
}

fn process_exists(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').expect("a name").1.starts_with(" Z"))
}
