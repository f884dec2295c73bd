//! Connections to agents that misbehave.
//! Out of scope: the real agent (`tests/e2e/guest_access.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::net::UnixListener;

use super::*;
use crate::clock;

/// A VMM that does this with each connection after the line of the client was read.
fn vmm<F>(
    how: impl Fn(UnixStream, usize) -> F + Send + 'static,
) -> (tempfile::TempDir, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("vsock.sock")).unwrap();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let mut line = [0; 12];
            if stream.read_exact(&mut line).await.is_ok() {
                assert_eq!(&line, b"CONNECT 516\n");
                tokio::spawn(how(stream, number));
            }
        }
    });
    (dir, count)
}

/// The socket of a VMM.
fn socket(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join("vsock.sock")
}

/// Sends this, then does nothing.
fn says(text: &'static [u8]) -> (tempfile::TempDir, Arc<AtomicUsize>) {
    vmm(move |mut stream, _| async move {
        let _ = stream.write_all(text).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
}

/// Confirms the connection, then does this with it when a request was received.
fn agent<F>(
    how: impl Fn(UnixStream) -> F + Send + Sync + 'static,
) -> (tempfile::TempDir, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let how = Arc::new(how);
    vmm(move |mut stream, _| {
        let how = Arc::clone(&how);
        async move {
            let _ = stream.write_all(b"OK 1\n").await;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            how(stream).await;
        }
    })
}

/// An agent that answers with this, then does nothing.
fn answers(text: &'static [u8]) -> (tempfile::TempDir, Arc<AtomicUsize>) {
    agent(move |mut stream| async move {
        let _ = stream.write_all(text).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::builder().uri(path).header("host", "agent");
    request.body(Empty::new()).unwrap()
}

const SHORT: HeadTimeout = HeadTimeout::AfterHead(Duration::from_millis(300));

#[tokio::test]
async fn a_connection_is_made_only_by_a_correct_confirmation() {
    for (line, is_correct) in [
        (&b"OK 1073741824\n"[..], true),
        (b"OK 0\nHTTP/1.1 200 OK\r\n", true),
        (b"OK \n", false),
        (b"OK\n", false),
        (b"ok 1\n", false),
        (b"OK 1x\n", false),
        (b"\n", false),
        (b"HTTP/1.1 200 OK\r\n\r\n", false),
        (
            b"OK 111111111111111111111111111111111111111111111111111111\n",
            false,
        ),
    ] {
        let (dir, _) = says(line);
        let result = connect(&socket(&dir)).await;
        assert_eq!(result.is_ok(), is_correct, "{line:?}: {result:?}");
        if let Ok(mut stream) = result {
            let after = line.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let mut rest = vec![0; line.len() - after];
            stream.read_exact(&mut rest).await.unwrap();
            assert_eq!(rest, line[after..], "nothing is taken from the agent");
        }
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_for_a_bounded_time() {
    let (dir, count) = vmm(|mut stream, number| async move {
        if number == 3 {
            let _ = stream.write_all(b"OK 5\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    connect(&socket(&dir)).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 4);
    let (dir, count) = vmm(|_, _| async {});
    let begin = clock::monotonic();
    let error = connect(&socket(&dir)).await.unwrap_err();
    assert!(matches!(error, Error::Refused), "{error}");
    assert_eq!(count.load(Ordering::SeqCst), PAUSES.len() + 1);
    assert!(clock::monotonic().duration_since(begin) < 2 * CONNECT_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_silent_vmm_costs_a_timeout() {
    let (dir, _) = says(b"");
    let error = connect(&socket(&dir)).await.unwrap_err();
    assert!(matches!(error, Error::ConnectTimeout), "{error}");
}

#[tokio::test]
async fn a_path_of_any_length_is_connected_to_and_a_link_is_not() {
    let (dir, _) = says(b"OK 1\n");
    let long = dir.path().join("x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    std::fs::rename(socket(&dir), long.join("vsock.sock")).unwrap();
    connect(&long.join("vsock.sock")).await.unwrap();
    std::os::unix::fs::symlink(long.join("vsock.sock"), socket(&dir)).unwrap();
    assert!(connect(&socket(&dir)).await.is_err(), "a link");
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert!(connect(&dir.path().join("file")).await.is_err(), "a file");
    let error = connect(&dir.path().join("none")).await.unwrap_err();
    assert!(matches!(error, Error::NoDevice), "{error}");
    let text = error.to_string();
    assert!(!text.contains('/'), "no path of the host: {text}");
}

#[tokio::test]
async fn a_response_that_is_none_is_an_error_within_the_timeout() {
    let endless_head = || {
        agent(|mut stream| async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        })
    };
    let endless_continue = || {
        agent(|mut stream| async move {
            while stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .is_ok()
            {
                tokio::task::yield_now().await;
            }
        })
    };
    let cases: Vec<(&str, (tempfile::TempDir, Arc<AtomicUsize>))> = vec![
        ("silent", says(b"OK 1\n")),
        ("closed", agent(|_| async {})),
        (
            "early",
            says(b"OK 1\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ),
        ("garbage", answers(b"\x00\xff\x00 garbage\r\n\r\n")),
        ("half a head", answers(b"HTTP/1.1 200 OK\r\ncontent-le")),
        ("an endless head", endless_head()),
        ("endless 100", endless_continue()),
        ("another protocol", answers(b"SSH-2.0-OpenSSH_9.2\r\n")),
        (
            "two lengths",
            answers(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"),
        ),
    ];
    for (name, (dir, _)) in cases {
        let begin = clock::monotonic();
        let result = send(&socket(&dir), get("/health"), SHORT).await;
        let took = clock::monotonic().duration_since(begin);
        assert!(result.is_err(), "{name}");
        assert!(took < Duration::from_secs(2), "{name}: {took:?}");
    }
}

#[tokio::test]
async fn a_copy_may_take_long_while_its_client_sends_but_not_while_the_agent_does_not_read() {
    let limit = HeadTimeout::AfterBody(Duration::from_millis(300));
    let slow = |count: u64| {
        let parts = futures::stream::unfold(0, move |sent| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let part = Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"x")));
            (sent < count).then_some((part, sent + 1))
        });
        Request::post("/cp")
            .body(StreamBody::new(Box::pin(parts)))
            .unwrap()
    };
    let (dir, _) = vmm(|mut stream, _| async move {
        let _ = stream.write_all(b"OK 1\n").await;
        let mut received = Vec::new();
        while !received.ends_with(b"0\r\n\r\n") {
            received.push(stream.read_u8().await.unwrap());
        }
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
    });
    let response = send(&socket(&dir), slow(10), limit).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.as_ref(), b"ok");
    let (dir, _) = says(b"OK 1\n");
    let error = send(&socket(&dir), slow(3), limit).await.err().unwrap();
    assert!(matches!(error, Error::HeadTimeout(_)), "{error}");
    let large = Request::post("/cp").body(Full::new(Bytes::from(vec![0; 4 << 20])));
    let (dir, _) = vmm(|mut stream, _| async move {
        let _ = stream.write_all(b"OK 1\n").await;
        std::future::pending::<()>().await;
    });
    let error = send(&socket(&dir), large.unwrap(), limit)
        .await
        .err()
        .unwrap();
    assert!(matches!(error, Error::HeadTimeout(_)), "{error}");
}

#[tokio::test]
async fn dropping_a_response_closes_the_connection() {
    let (sender, mut closed) = tokio::sync::mpsc::channel(1);
    let (dir, _) = agent(move |mut stream| {
        let sender = sender.clone();
        async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nendless").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            let _ = sender.send(()).await;
        }
    });
    let mut response = send(&socket(&dir), get("/exec"), SHORT).await.unwrap();
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap().as_ref(), b"endless");
    assert!(closed.try_recv().is_err());
    drop(response);
    closed.recv().await.unwrap();
}

#[tokio::test]
async fn what_follows_an_upgrade_is_kept() {
    let (dir, _) = answers(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly",
    );
    let request = Request::get("/shell")
        .header("connection", "upgrade")
        .header("upgrade", "websocket");
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = send(&socket(&dir), request, SHORT).await.unwrap();
    assert_eq!(response.status(), hyper::StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = upgraded(response).await.unwrap();
    let mut received = upgraded.received.to_vec();
    let mut stream = upgraded.stream;
    while received.len() < 5 {
        received.push(stream.read_u8().await.unwrap());
    }
    assert_eq!(received, b"early");
}

/// The agent closes before it has read the body, and the next part of the body is sent only then.
#[tokio::test]
async fn a_response_before_the_request_was_read_is_received() {
    let closed = Arc::new(tokio::sync::Notify::new());
    let closing = Arc::clone(&closed);
    let (dir, _) = agent(move |stream| {
        let closing = Arc::clone(&closing);
        async move {
            let response = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno";
            assert_eq!(stream.try_write(response).unwrap(), response.len());
            drop(stream);
            closing.notify_one();
        }
    });
    let parts = futures::stream::once(async move {
        closed.notified().await;
        Ok::<_, io::Error>(Frame::data(Bytes::from_static(&[0; 64 << 10])))
    });
    let request = Request::post("/exec").header("host", "agent");
    let request = request.body(StreamBody::new(Box::pin(parts))).unwrap();
    let response = send(&socket(&dir), request, SHORT).await.unwrap();
    assert_eq!(response.status(), 404);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "no");
}
