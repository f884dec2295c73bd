//! A server of HTTP that answers each request by a function.
//! Out of scope: etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::fleet::kv::Url;

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A complete response.
    Status(u16, String),
    /// These bytes, and the connection is closed.
    Raw(Vec<u8>),
    /// The head of a stream and these parts, with a pause before each, and no end.
    Stream(Vec<(Duration, String)>),
    /// The connection is closed.
    Close,
    /// Nothing.
    Silence,
}

impl Reply {
    pub fn ok(body: impl Into<String>) -> Self {
        Self::Status(200, body.into())
    }

    /// A stream of these lines.
    pub fn lines(lines: &[String]) -> Self {
        let parts = lines
            .iter()
            .map(|line| (Duration::ZERO, format!("{line}\n\n")));
        Self::Stream(parts.collect())
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub path: String,
    pub body: String,
    pub authorization: Option<String>,
    pub has_leader: bool,
}

/// A server, until it is dropped.
pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&seen);
        let answer = Arc::new(answer);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            // With this task, connections end as well.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream, Arc::clone(&answer), Arc::clone(&all)));
            }
        });
        Self {
            port,
            seen,
            accepted,
            task,
        }
    }

    /// One that answers every request in the same way.
    pub async fn always(reply: Reply) -> Self {
        Self::start(move |_| reply.clone()).await
    }

    pub fn url(&self) -> Url {
        format!("http://127.0.0.1:{}", self.port).parse().unwrap()
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub fn paths(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.path).collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: Arc<impl Fn(&Seen) -> Reply>,
    all: Arc<Mutex<Vec<Seen>>>,
) {
    while let Some(seen) = request(&mut stream).await {
        all.lock().push(seen.clone());
        match answer(&seen) {
            Reply::Status(status, body) => {
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Reply::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::Stream(parts) => return follow(stream, parts).await,
            Reply::Close => return,
            Reply::Silence => std::future::pending().await,
        }
    }
}

async fn follow(mut stream: TcpStream, parts: Vec<(Duration, String)>) {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    for (pause, part) in parts {
        tokio::time::sleep(pause).await;
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        if stream.write_all(chunk.as_bytes()).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

async fn request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let header = |name: &str| {
        let mut lines = text.lines();
        let line = lines.find(|line| line.to_lowercase().starts_with(name))?;
        Some(line.split_once(": ")?.1.to_owned())
    };
    let length: usize = header("content-length")?.parse().unwrap();
    while bytes.len() < head + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Seen {
        path: text.split(' ').nth(1)?.to_owned(),
        body: String::from_utf8(bytes.split_off(head + 4)).unwrap(),
        authorization: header("authorization"),
        has_leader: header("grpc-metadata-hasleader").is_some(),
    })
}
