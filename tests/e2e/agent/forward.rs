//! Connections in the guest.
//! Out of scope: listening on the host.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hyper::StatusCode;
use slicectl::guest::protocol::{HALF_CLOSE, UPSTREAM};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Agent, LIMIT};

async fn forward(
    agent: &Agent,
    upstream: &str,
    half_close: bool,
) -> Result<WebSocketStream<UnixStream>, (StatusCode, String)> {
    let headers = [(UPSTREAM, upstream), (HALF_CLOSE, "true")];
    agent
        .websocket("/forward", &headers[..if half_close { 2 } else { 1 }])
        .await
}

/// A server on a free port of 127.0.0.1.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

async fn next(stream: &mut WebSocketStream<UnixStream>) -> Message {
    let next = timeout(LIMIT, stream.next()).await.expect("in time");
    next.expect("a message").expect("a message")
}

async fn assert_closed(stream: &mut WebSocketStream<UnixStream>, code: CloseCode) {
    match next(stream).await {
        Message::Close(Some(frame)) => assert_eq!(frame.code, code),
        other => panic!("{other:?}"),
    }
}

async fn send(stream: &mut WebSocketStream<UnixStream>, bytes: impl Into<Bytes>) {
    stream
        .send(Message::Binary(bytes.into()))
        .await
        .expect("sent");
}

#[tokio::test]
async fn bytes_pass_in_both_directions_to_ports_names_and_sockets() {
    let agent = Agent::start().await;
    let address = server(echo).await;
    let port = address.rsplit_once(':').expect("a port").1;
    let path = agent.directory.path().join("upstream.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    for upstream in [
        address.clone(),
        format!("localhost:{port}"),
        format!("unix:{}", path.display()),
    ] {
        let mut stream = forward(&agent, &upstream, false).await.expect("connected");
        send(&mut stream, "ping").await;
        assert_eq!(next(&mut stream).await.into_data(), "ping");
        // Without the header, an empty message is nothing.
        send(&mut stream, "").await;
        send(&mut stream, "again").await;
        assert_eq!(next(&mut stream).await.into_data(), "again");
        stream.close(None).await.expect("closed");
    }
}

#[tokio::test]
async fn what_cannot_be_connected_is_an_error_before_the_upgrade() {
    let agent = Agent::start().await;
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port")
        .local_addr()
        .expect("an address");
    for (upstream, status, expected) in [
        (
            free.to_string(),
            StatusCode::BAD_GATEWAY,
            "connection refused",
        ),
        (
            "unix:/absent".to_owned(),
            StatusCode::BAD_GATEWAY,
            "no such file or directory",
        ),
        (
            "example.invalid:80".to_owned(),
            StatusCode::BAD_GATEWAY,
            "not in /etc/hosts",
        ),
        (
            "unix:relative".to_owned(),
            StatusCode::BAD_REQUEST,
            "expected HOST:PORT or unix:/PATH",
        ),
        (
            "80".to_owned(),
            StatusCode::BAD_REQUEST,
            "expected HOST:PORT",
        ),
    ] {
        let (found, body) = forward(&agent, &upstream, false)
            .await
            .expect_err("an error");
        assert_eq!(found, status, "{upstream}: {body}");
        assert!(body.contains(expected), "{upstream}: {body}");
    }
    let (status, body) = agent
        .websocket("/forward", &[])
        .await
        .expect_err("an error");
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
}

#[tokio::test]
async fn the_end_of_the_upstream_closes_with_1000_after_all_data_and_a_reset_with_1011() {
    let agent = Agent::start().await;
    let bye = server(|mut stream| async move {
        stream
            .write_all(&vec![b'x'; 1 << 20])
            .await
            .expect("written");
    })
    .await;
    let mut stream = forward(&agent, &bye, false).await.expect("connected");
    let mut length = 0;
    let close = loop {
        match next(&mut stream).await {
            Message::Binary(data) => length += data.len(),
            other => break other,
        }
    };
    assert!(matches!(close, Message::Close(Some(frame)) if frame.code == CloseCode::Normal));
    assert_eq!(length, 1 << 20);
    let reset = server(|mut stream| async move {
        let _ = stream.read_u8().await;
        stream.set_zero_linger().expect("set");
    })
    .await;
    let mut stream = forward(&agent, &reset, false).await.expect("connected");
    send(&mut stream, "x").await;
    assert_closed(&mut stream, CloseCode::Error).await;
}

#[tokio::test]
async fn each_direction_ends_by_itself_with_half_close() {
    let agent = Agent::start().await;
    // Answers only after the end of the request.
    let count = server(|mut stream| async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.expect("read");
        stream
            .write_all(format!("{} bytes", request.len()).as_bytes())
            .await
            .expect("written");
    })
    .await;
    let mut stream = forward(&agent, &count, true).await.expect("connected");
    send(&mut stream, vec![b'x'; 100_000]).await;
    send(&mut stream, "").await;
    assert_eq!(next(&mut stream).await.into_data(), "100000 bytes");
    assert_eq!(next(&mut stream).await, Message::Binary(Bytes::new()));
    assert_closed(&mut stream, CloseCode::Normal).await;
    // Ends its direction first, and still reads.
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let first = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            stream.shutdown().await.expect("shut down");
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.expect("read");
            sender.send(rest).expect("sent");
        }
    })
    .await;
    let mut receiver = receiver;
    let mut stream = forward(&agent, &first, true).await.expect("connected");
    assert_eq!(next(&mut stream).await, Message::Binary(Bytes::new()));
    send(&mut stream, "late").await;
    send(&mut stream, "").await;
    assert_closed(&mut stream, CloseCode::Normal).await;
    assert_eq!(
        timeout(LIMIT, receiver.recv())
            .await
            .expect("in time")
            .expect("bytes"),
        b"late"
    );
}

#[tokio::test]
async fn data_of_a_client_that_closes_at_once_arrives() {
    let agent = Agent::start().await;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let slow = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            sender.send(all.len()).expect("sent");
        }
    })
    .await;
    let mut stream = forward(&agent, &slow, false).await.expect("connected");
    send(&mut stream, vec![b'x'; 1 << 20]).await;
    drop(stream);
    assert_eq!(
        timeout(LIMIT, receiver.recv()).await.expect("in time"),
        Some(1 << 20)
    );
}

#[tokio::test]
async fn neither_side_makes_the_agent_store_what_the_other_does_not_read() {
    let agent = Agent::start().await;
    let sink = server(|stream| async move {
        tokio::time::sleep(LIMIT).await;
        drop(stream);
    })
    .await;
    let source = server(|mut stream| async move {
        let block = vec![b'x'; 1 << 16];
        while stream.write_all(&block).await.is_ok() {}
    })
    .await;
    drop(forward(&agent, &sink, false).await);
    let before = agent.memory("VmHWM:");
    let mut one = forward(&agent, &sink, false).await.expect("connected");
    let _two = forward(&agent, &source, false).await.expect("connected");
    let endless = async {
        loop {
            send(&mut one, vec![b'x'; 32 << 10]).await;
        }
    };
    let blocked: Result<(), _> = timeout(Duration::from_secs(3), endless).await;
    assert!(blocked.is_err());
    let grown = agent.memory("VmHWM:") - before;
    assert!(grown < 4096, "{grown} KiB");
}

#[tokio::test]
async fn a_thousand_connections_are_open_at_once() {
    let agent = Agent::start().await;
    let address = server(echo).await;
    let before = agent.memory("VmRSS:");
    let mut streams = Vec::new();
    for _ in 0..1000 {
        streams.push(forward(&agent, &address, true).await.expect("connected"));
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        send(stream, number.to_string()).await;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(next(stream).await.into_data(), number.to_string());
    }
    println!(
        "1,000 connections: {} KiB each",
        (agent.memory("VmRSS:") - before) / 1000
    );
    for stream in &mut streams {
        send(stream, "").await;
    }
    for stream in &mut streams {
        assert_eq!(next(stream).await, Message::Binary(Bytes::new()));
        assert_closed(stream, CloseCode::Normal).await;
    }
}
