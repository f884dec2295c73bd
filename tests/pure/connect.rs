//! How the client connects: it waits for a daemon that is starting.
//! Out of scope: requests.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use slicectl::api::view::Kind;
use slicectl::wire::Client;

/// Answers one request with an empty list.
fn answer(listener: &UnixListener) {
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut request = [0; 4096];
    let read = stream.read(&mut request).expect("a request");
    assert!(read > 0);
    let body = r#"{"items":[]}"#;
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    stream
        .write_all((head + body).as_bytes())
        .expect("an answer");
}

#[tokio::test]
async fn a_request_waits_for_a_daemon_that_is_starting() {
    for leftover in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sliced.sock");
        if leftover {
            // The socket of a daemon that has exited refuses connections.
            drop(UnixListener::bind(&socket).unwrap());
        }
        let path = socket.clone();
        let daemon = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            let _ = std::fs::remove_file(&path);
            answer(&UnixListener::bind(&path).unwrap());
        });
        let list = Client::new(&socket).get(Kind::Vm, None).await.unwrap();
        assert!(list.items.is_empty());
        daemon.join().unwrap();
    }
}

async fn failure(client: Client) -> (String, Duration) {
    let begin = Instant::now();
    let error = client.get(Kind::Vm, None).await.unwrap_err();
    (error.to_string(), begin.elapsed())
}

#[tokio::test]
async fn without_a_daemon_the_error_names_the_socket_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (absent, refusing) = (dir.path().join("absent"), dir.path().join("refusing"));
    drop(UnixListener::bind(&refusing).unwrap());
    let cases: [(&Path, &str); 2] = [(&absent, "no such file"), (&refusing, "connection refused")];
    for (socket, reason) in cases {
        let expected = format!(
            "cannot connect to sliced at {}: {reason}. Is it running?",
            socket.display()
        );
        let (error, took) = failure(Client::new(socket)).await;
        assert_eq!(error, expected);
        assert!(took >= Duration::from_secs(2), "{took:?}");
        let (error, took) = failure(Client::new(socket).without_retry()).await;
        assert_eq!(error, expected);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    // What does not become a socket by waiting is reported at once.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("sliced.sock");
    let (error, took) = failure(Client::new(&below)).await;
    assert!(error.contains("Is it running?"), "{error}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
